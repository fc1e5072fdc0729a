"""Pictures side by side: strips, and what they add to a recipe."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory.backends.image import ImageBackend
from factory.backends.pixels import Picture, ReadPicture
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.catalog import SampleCrop
from factory.engine.local_engine import LocalEngine
from factory.media.composite import Composite
from factory.storage.memory import MemoryStorage


def striped(widths: list[int], kind: str = "PNG") -> bytes:
    """Return a picture of vertical stripes of grey 0, 50, 100 and so on."""
    greys = [np.full((8, width), 50 * n, np.uint8) for n, width in enumerate(widths)]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(greys, axis=1)).convert("RGB").save(file, kind)
    return file.getvalue()


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 5))
def test_strips_are_equal_and_in_order(count: int, width: int, extra: int) -> None:
    pixels = np.arange(width * count + extra % count, dtype=np.uint8)[None, :, None].repeat(3, 2)
    strips = [Composite(count, n).of(pixels) for n in range(count)]
    assert {strip.shape for strip in strips} == {(1, width, 3)}
    joined = np.concatenate(strips, axis=1)
    assert np.array_equal(joined, pixels[:, : width * count])
    assert Composite(count, 0).widths(np.array([pixels.shape[1]], np.int32)).tolist() == [width]


def test_a_plain_picture_adds_nothing_to_a_recipe() -> None:
    storage = MemoryStorage("plain")
    assert "strip" not in ReadPicture(storage).recipe
    assert ReadPicture(storage, composite=Composite(4, 1)).recipe["strip"] == [4, 1]
    assert not Composite()
    assert Composite(4, 1)


@pytest.mark.parametrize(("count", "index"), [(0, 0), (4, 4), (4, -1)])
def test_bad_numbers(count: int, index: int) -> None:
    with pytest.raises(ValueError, match=r"image_count|select_index"):
        Composite(count, index)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_backend_trains_on_one_strip(kind: str) -> None:
    storage = MemoryStorage(f"strips-{kind}")
    storage.write("a.png", striped([16, 16, 16, 16], kind))
    read = {}
    for index in range(4):
        backend = ImageBackend(
            name="c", storage=storage, caption=FilenameCaptions(), resolution=16, alignment=8,
            resolution_type="pixel", composite=Composite(4, index),
        )  # fmt: skip
        whole = backend.scan(None, LocalEngine(1))
        assert whole.column("width").tolist() == [64]  # facts stay: no scan when it changes
        catalog = backend.catalog(whole, 0)
        assert catalog.facts.column("width").tolist() == [16]
        cut = catalog.crop(0)
        read[index] = backend.reader(Picture(0, "a.png", "", cut, 16, 8))
        assert read[index].shape[:2] == cut.target[::-1]
        # JPEG blocks of the 4:2:0 kind are as wide as a strip, so no colour crosses over.
        assert np.abs(read[index].astype(int) - 50 * index).max() <= 2
    assert isinstance(cut, SampleCrop)


def test_one_column_of_pixels_cannot_be_divided() -> None:
    storage = MemoryStorage("narrow")
    storage.write("a.png", striped([1, 1, 1]))
    storage.write("b.png", striped([16, 16, 16, 16]))
    backend = ImageBackend(
        name="c",
        storage=storage,
        caption=FilenameCaptions(),
        resolution=16,
        alignment=8,
        composite=Composite(4, 0),
    )
    catalog = backend.catalog(backend.scan(None, LocalEngine(1)), 0)
    assert catalog.decisions.dropped() == {"geometry_error": 1}
