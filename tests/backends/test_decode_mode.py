"""The setting `decode`: checked, composed, obeyed, and part of what cached rows are found by."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factory
from factory import ImageBackend, VideoBackend
from factory.backends.pixels import Picture, ReadPicture
from factory.catalog.catalog import SampleCrop
from factory.config.compose import compose
from factory.storage.memory import MemoryStorage
from tests.config.test_compose import problems
from tests.media.pictures import encode

SIZE = (128, 96)
CUT = SampleCrop((SIZE[0], SIZE[1]), (0, 0), SIZE)


def photograph() -> bytes:
    import skimage.data

    return encode(Image.fromarray(skimage.data.coffee()), "JPEG", quality=92)


def read(decode: str) -> np.ndarray:
    storage = MemoryStorage()
    storage.write("a.jpg", photograph())
    return ReadPicture(storage, decode)(Picture(0, "a.jpg", "e", CUT))


def test_exact_is_pillows_lanczos_and_fast_is_near_it() -> None:
    import io

    with Image.open(io.BytesIO(photograph())) as image:
        wanted = np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS))
    exact, fast = read("exact"), read("fast")
    assert np.array_equal(exact, wanted)
    assert not np.array_equal(fast, wanted)
    assert np.abs(fast.astype(int) - wanted).mean() < 3


def test_rows_of_the_two_are_not_mixed_up() -> None:
    storage = MemoryStorage()
    fast, exact = ReadPicture(storage).recipe, ReadPicture(storage, "exact").recipe
    assert ReadPicture(storage, "fast").recipe == fast
    assert fast != exact
    assert {key for key in fast if fast[key] != exact[key]} == {"decode"}


def test_modes_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="decode must be one of fast, exact, nearest, got 'best'"):
        ReadPicture(MemoryStorage(), "best")
    with pytest.raises(ValueError, match="must be one of fast, exact, got 'best'"):
        ImageBackend(name="a", storage=MemoryStorage(), decode="best")
    assert "best" in problems("data.backends.photos.decode=best")


def test_a_composed_backend_reads_as_it_says(tmp_path: Path) -> None:
    cfg = compose(["data.backends.photos.decode=exact", f"storage.root={tmp_path}"])
    data = factory.build(cfg)
    photos, holdout = data.registry.data["photos"], data.registry.eval["holdout"]
    assert photos.reader == ReadPicture(photos.storage, "exact")
    assert holdout.reader == ReadPicture(holdout.storage, "fast")
    data.close()


def test_clips_are_read_the_same_either_way() -> None:
    settings = {"name": "clips", "storage": MemoryStorage()}
    readers = [VideoBackend(**settings, decode=mode).reader for mode in ("fast", "exact")]
    assert readers[0] == readers[1]
