"""Embeddings are made once, belong to what they were made of, and bad ones are refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from factory import ImageBackend, ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.backends.image import Crop
from factory.backends.pixels import Picture, ReadPicture
from factory.backends.prepared import PreparedBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.scan.discovery import Discovery
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import AccessDeniedError, CacheError, MediaError, StorageUnavailableError
from factory.registry.precompute import fill_captions, fill_pictures
from factory.registry.prepare import prepare
from factory.registry.registry import Registry
from factory.storage.local import LocalStorage
from tests.catalog.fakes import ENGINE, Scattered, Watched, replace_file
from tests.support.pictures import colour, write_pictures


@dataclass
class Counting:
    """An image encoder that records its batches and may spoil its output."""

    spoil: str | Exception = ""
    batches: list[tuple[int, ...]] = field(default_factory=list)
    inner: BlockDCT = field(default_factory=BlockDCT)
    downscale: int = 8

    @property
    def fingerprint(self) -> str:
        """As the encoder inside."""
        return self.inner.fingerprint

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode, record and perhaps spoil."""
        self.batches.append(tuple(pixels.shape))
        if isinstance(self.spoil, Exception):
            raise self.spoil
        latents = self.inner.encode(pixels)["latents"]
        if self.spoil == "nan":
            latents[-1, 0, 0, 0] = float("nan")
        if self.spoil == "count":
            latents = latents[:-1]
        return {"other" if self.spoil == "name" else "latents": latents}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode as the encoder inside."""
        return self.inner.decode(latents)

    def release(self) -> None:
        """Hold nothing."""


def place(root: Path) -> Workspace:
    return Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"))


def source_of(root: Path, storage: LocalStorage, encoder: Any, **settings: Any) -> PreparedBackend:
    """Return the folder "p" scanned, with a store of latents."""
    shared: dict[str, Any] = {
        "resolution": 64, "alignment": 16, "caption": FilenameCaptions(), **settings
    }  # fmt: skip
    backend = ImageBackend(name="pics", prefix="p", storage=storage, **shared)
    store = ImageEmbedBackend(name="latents", cache=place(root), encoder=encoder, batch_size=3)
    return PreparedBackend(backend, backend.catalog(backend.scan(None, ENGINE), 0), store)


def fill(source: PreparedBackend) -> tuple[int, dict[int, str]]:
    """Encode what is missing of a source."""
    filled = fill_pictures(source, source.latents, ENGINE)
    return filled.encoded, filled.errors


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_pictures(tmp_path / "p", 10)
    return Watched(str(tmp_path))


def test_pictures_are_encoded_once_in_batches_of_one_shape(
    storage: Watched, tmp_path: Path
) -> None:
    encoder = Counting()
    source = source_of(tmp_path, storage, encoder)
    assert fill(source) == (10, {})
    assert sum(batch[0] for batch in encoder.batches) == 10
    assert max(batch[0] for batch in encoder.batches) == 3
    storage.taken()
    assert fill(source) == (0, {})
    assert fill(source_of(tmp_path, storage, encoder)) == (0, {})
    assert len(encoder.batches) == 4
    assert not [key for key, count in storage.reads.items() if count > 1]


def test_latents_belong_to_their_pictures(storage: Watched, tmp_path: Path) -> None:
    source = source_of(tmp_path, storage, Counting())
    fill(source)
    for bucket in source.catalog.decisions.buckets:
        rows = bucket.rows[::-1]
        decoded = BlockDCT().decode(source.gather(source.latents, rows)["latents"])
        assert decoded.shape[1:] == (bucket.height, bucket.width, 3)
        for row, picture in zip(rows.tolist(), decoded, strict=True):
            wanted = torch.tensor(colour(int(Path(source.catalog.facts.key(row)).stem)))
            assert (picture[4, 4].int() - wanted).abs().max() <= 2


def test_another_cut_or_content_is_another_row(storage: Watched, tmp_path: Path) -> None:
    fill(source_of(tmp_path, storage, Counting()))
    assert fill(source_of(tmp_path, storage, Counting(), resolution=128))[0] == 10
    replace_file(tmp_path / "p/0000.png", tmp_path / "p/0003.png")
    assert fill(source_of(tmp_path, storage, Counting()))[0] == 1


def test_no_picture_takes_the_latents_of_another_of_its_name_or_of_other_settings(
    storage: Watched, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "p/sub", 1, first=7)
    (tmp_path / "p/sub/0007.png").rename(tmp_path / "p/0000.webp")  # read by what it is
    assert fill(source_of(tmp_path, storage, Counting())) == (11, {})
    other = BlockDCT(channels=5)
    for changed in ({"resolution": 96}, {"decode": "exact"}, {"crop": Crop("square")}):
        assert fill(source_of(tmp_path, storage, Counting(), **changed))[0] > 0
    assert fill(source_of(tmp_path, storage, other)) == (11, {})
    assert fill(source_of(tmp_path, storage, Counting())) == (0, {})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("nan", r"field 'latents' holds NaN or infinity for 'p/\d{4}\.png'"),
        ("count", r"samples were encoded \('p/\d{4}\.png'.* the rows that came are"),
        ("name", r"encoder of 'latents' gave the fields \['other'\] for 'p/\d{4}\.png'; it must"),
    ],
)
def test_an_encoder_that_errs_is_named_with_a_sample(
    storage: Watched, tmp_path: Path, spoil: str, said: str
) -> None:
    source = source_of(tmp_path, storage, Counting(spoil))
    with pytest.raises(CacheError, match=said):
        fill(source)
    healthy = source_of(tmp_path, storage, Counting())
    assert fill(healthy) == (10, {})


@pytest.mark.parametrize(
    ("kind", "text", "advised"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory", True),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory", True),
        (MemoryError, "", True),
        (RuntimeError, "shapes cannot be multiplied", False),
    ],
)
def test_an_encoder_that_fails_keeps_its_error_and_says_what_it_had(
    storage: Watched, tmp_path: Path, kind: type[Exception], text: str, advised: bool
) -> None:
    error = kind(text)
    with pytest.raises(kind) as caught:
        fill(source_of(tmp_path, storage, Counting(spoil=error)))
    assert caught.value is error
    (note,) = error.__notes__
    assert note.startswith("while the encoder of 'latents' had ")
    assert ("lower data.backends.latents.batch_size=" in note) == advised


def test_an_unreadable_picture_is_noted_and_the_others_are_encoded(
    storage: Watched, tmp_path: Path
) -> None:
    source = source_of(tmp_path, storage, Counting())
    (tmp_path / "p/0004.png").write_bytes((tmp_path / "p/0004.png").read_bytes()[:60])
    (tmp_path / "p/0005.png").unlink()
    done, errors = fill(source)
    assert done == 8
    assert set(errors) == {4, 5}
    assert errors[4].partition(":")[0] in ("truncated", "damaged")
    assert errors[5].startswith("not readable: cannot read ")


def test_a_storage_that_fails_as_a_whole_ends_the_work(storage: Watched, tmp_path: Path) -> None:
    source = source_of(tmp_path, storage, Counting())
    storage.broken["p/0003.png"] = AccessDeniedError("expired")
    with pytest.raises(AccessDeniedError) as caught:
        fill(source)
    assert caught.value.__notes__ == [f"while reading 'p/0003.png' in {storage.identity}"]


def test_one_server_of_many_that_fails_costs_its_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    storage = Scattered(str(tmp_path))
    source = source_of(tmp_path, storage, Counting())
    storage.broken["p/0001.png"] = StorageUnavailableError("no answer")
    assert fill(source) == (2, {1: "not readable: no answer"})


def registry(root: Path, storage: LocalStorage, encoder: Any, **settings: Any) -> Registry:
    """Return a registry of one backend and a store of latents."""
    shared: dict[str, Any] = {
        "resolution": 64, "alignment": 16, "caption": FilenameCaptions(), **settings
    }  # fmt: skip
    backend = ImageBackend(name="pics", prefix="p", storage=storage, **shared)
    store = ImageEmbedBackend(name="latents", cache=place(root), encoder=encoder)
    return Registry([backend, store], cache=place(root), engine=ENGINE)


def break_off(file: Path) -> None:
    """Cut a picture after its header, which discovery does not notice."""
    Image.effect_noise((96, 64), 90).convert("RGB").save(file.with_suffix(".jpg"))
    data = file.with_suffix(".jpg").read_bytes()
    file.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def test_what_proves_unreadable_is_dropped_published_and_not_tried_again(
    storage: Watched, tmp_path: Path
) -> None:
    break_off(tmp_path / "p/0100.png")
    first = prepare(registry(tmp_path, storage, Counting()), seed=0)["pics"]
    assert first.catalog.decisions.dropped() == {"truncated": 1}
    assert len(first.catalog) == 10
    storage.taken()
    again = prepare(registry(tmp_path, storage, Counting()), seed=0)["pics"]
    assert storage.taken() == []
    assert again.catalog.decisions.dropped() == {"truncated": 1}
    assert again.catalog.identity == first.catalog.identity

    Image.new("RGB", (96, 64), colour(100)).save(tmp_path / "p/0100.jpg")
    mended = prepare(registry(tmp_path, storage, Counting()), seed=0)["pics"]
    assert storage.taken() == ["p/0100.jpg"]
    assert len(mended.catalog) == 11


def test_what_takes_the_place_of_an_unreadable_picture_is_encoded_too(
    storage: Watched, tmp_path: Path
) -> None:
    for number in range(100, 130):
        break_off(tmp_path / f"p/{number:04d}.png")
    made = registry(tmp_path, storage, Counting(), max_samples=6)
    source = prepare(made, seed=0)["pics"]
    assert len(source.catalog) == 6
    for bucket in source.catalog.decisions.buckets:
        assert len(source.gather(source.latents, bucket.rows)["latents"]) == len(bucket.rows)


def test_a_picture_above_the_usual_limit_is_read_if_the_scan_let_it_in(
    storage: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.backends.pixels.MAX_PIXELS", 64)
    source = source_of(tmp_path, storage, Counting(), metadata=Discovery(max_megapixels=1))
    assert fill(source) == (10, {})
    cut = source.catalog.crop(0)
    with pytest.raises(MediaError, match="too large"):
        ReadPicture(storage)(Picture(0, "p/0000.png", "e", cut))


def test_captions_are_encoded_once(tmp_path: Path) -> None:
    store = TextEmbedBackend(name="text", cache=place(tmp_path), encoder=HashedText(), batch_size=2)
    assert fill_captions(store, ["a", "b", "a", ""], ENGINE).encoded == 3
    assert fill_captions(store, ["b", "c"], ENGINE).encoded == 1
    both, swapped = store.gather(["a", "c"]), store.gather(["c", "a"])
    assert torch.equal(both["embeds"].flip(0), swapped["embeds"])
    direct = HashedText().encode(["a", "c"])
    assert torch.equal(both["embeds"], direct["embeds"])
    with pytest.raises(CacheError, match="1 of 1 rows asked for are not in the cache"):
        store.gather(["never seen"])
    store.close()


@pytest.mark.parametrize("spoil", ["nan", "count"])
def test_a_text_encoder_that_errs_is_named_with_a_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    def encode(self: HashedText, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        embeds = torch.zeros(len(captions), 2, 3)
        embeds[-1, 0, 0] = float("nan") if spoil == "nan" else 0
        return {"embeds": embeds[:-1] if spoil == "count" else embeds}

    monkeypatch.setattr(HashedText, "encode", encode)
    store = TextEmbedBackend(name="text", cache=place(tmp_path), encoder=HashedText())
    with pytest.raises(CacheError, match="'a cat'"):
        fill_captions(store, ["a cat"], ENGINE)


def test_a_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.backends\.text\.batch_size must be at least 1"):
        TextEmbedBackend(name="text", cache=place(tmp_path), encoder=HashedText(), batch_size=0)


def test_closing_a_store_that_was_never_opened(tmp_path: Path) -> None:
    ImageEmbedBackend(name="latents", cache=place(tmp_path), encoder=BlockDCT()).close()
    assert list(tmp_path.iterdir()) == []
