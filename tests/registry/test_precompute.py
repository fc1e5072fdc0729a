"""Reading, encoding and writing overlap, hold little, stop together, and leave nothing behind."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from factory import (
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VisionEmbedBackend,
    Workspace,
)
from factory.backends.embeddings import PictureEmbedBackend
from factory.backends.pixels import Picture, PictureColumns, ReadPicture
from factory.backends.prepared import PreparedBackend
from factory.backends.video import ReadClip
from factory.cache.format.recipe import Keys, recipe_key
from factory.cache.row_locations import LocationFiles, _path, _write
from factory.cache.writer import ShardWriter
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.crops import SampleCrop
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.engine.engine import Engine
from factory.engine.local_engine import LocalEngine
from factory.errors import CacheError, StorageError, StorageUnavailableError
from factory.media.video import Clip
from factory.registry import encode_worker
from factory.registry.precompute import (
    EncodeSummary,
    fill_captions,
    fill_pictures,
    missing_pictures,
)
from factory.registry.prepare import load, prepare
from factory.registry.registry import Registry
from factory.storage.local import LocalStorage
from tests.backends.test_image_conditioning import MeanColour
from tests.catalog.fakes import ENGINE, Watched
from tests.support.pictures import write_pictures
from tests.support.stores import drop

BATCH = 2
# No test waits so long: whoever waits is woken, and a hang is a failure.
SECONDS = 20


@dataclass
class Staged:
    """An image encoder that calls a function before each batch, counted from 0."""

    before: Any = lambda number: None
    batches: int = 0
    released: int = 0
    inner: BlockDCT = field(default_factory=BlockDCT)
    downscale: int = 8

    @property
    def fingerprint(self) -> str:
        """As the encoder inside."""
        return self.inner.fingerprint

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call, then encode."""
        number, self.batches = self.batches, self.batches + 1
        self.before(number)
        return self.inner.encode(pixels)

    def release(self) -> None:
        """Count."""
        self.released += 1


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("factory-engine"):
            thread.join(SECONDS)  # they end with the picture in hand
        assert not thread.name.startswith(("factory-read", "factory-write"))


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_pictures(tmp_path / "p", 12, sizes=[(96, 64)])
    return Watched(str(tmp_path))


def filled_of(source: PreparedBackend, engine: Engine) -> EncodeSummary:
    return fill_pictures(source, source.latents, engine)


def source_of(storage: LocalStorage, encoder: Any, *, shard_mb: float = 256) -> PreparedBackend:
    """Return the folder "p" scanned, all of one bucket, with a store of latents."""
    backend = ImageBackend(name="pics", prefix="p", storage=storage, resolution=64, alignment=16)
    place = Workspace(LocalStorage(f"{storage.root}/cache"), shard_mb=shard_mb)
    store = ImageEmbedBackend(name="latents", cache=place, encoder=encoder, batch_size=BATCH)
    return PreparedBackend(backend, backend.catalog(backend.scan(None, ENGINE), 0), store)


def test_the_next_batch_is_read_and_the_last_one_written_while_one_is_encoded(
    storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [threading.Event() for _ in range(12)]
    writing, encoding_second = threading.Event(), threading.Event()
    shaped, add = ReadPicture.shaped, ShardWriter.add

    def note_read(self: ReadPicture, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        pixels = shaped(self, data, picture)
        read[picture.row].set()
        return pixels

    def note_write(self: ShardWriter, *args: Any, **named: Any) -> None:
        writing.set()
        assert encoding_second.wait(SECONDS)  # the first batch is written while the second one
        add(self, *args, **named)  # is encoded, or both would wait for ever

    def before(number: int) -> None:
        if number == 1:
            assert writing.wait(SECONDS)
            assert read[2 * BATCH].wait(SECONDS)  # of the third batch
            encoding_second.set()

    monkeypatch.setattr(ReadPicture, "shaped", note_read)
    monkeypatch.setattr(ShardWriter, "add", note_write)
    assert filled_of(source_of(storage, Staged(before)), LocalEngine(workers=1)).encoded == 12


def test_no_more_is_read_than_has_room(storage: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one batch: one waits, one is made, and the engine holds four a thread."""
    monkeypatch.setattr(encode_worker, "READY_BYTES", 1)
    most = 0

    def before(number: int) -> None:
        nonlocal most
        most = max(most, len(storage.reads) - number * BATCH)

    source = source_of(storage, Staged(before))
    storage.taken()
    assert filled_of(source, LocalEngine(workers=1)).encoded == 12
    assert most <= (1 + 1 + 1) * BATCH + 4


def test_a_storage_that_fails_ends_all_and_keeps_its_kind(
    storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = threading.Event()
    read, write = Watched.read, LocalStorage.write

    def failing_late(self: Watched, key: str, *args: Any) -> bytes:
        assert key not in self.broken or published.wait(SECONDS)
        return read(self, key, *args)

    def note_write(self: LocalStorage, key: str, data: Any) -> None:
        write(self, key, data)
        if "/index/" in key:
            published.set()

    monkeypatch.setattr(Watched, "read", failing_late)
    monkeypatch.setattr(LocalStorage, "write", note_write)
    source = source_of(storage, Staged(), shard_mb=1e-3)
    storage.broken["p/0009.png"] = StorageUnavailableError("down")
    with pytest.raises(StorageUnavailableError, match="down") as caught:
        filled_of(source, ENGINE)
    assert any("while reading 'p/0009.png'" in note for note in caught.value.__notes__)
    storage.broken.clear()
    again = filled_of(source_of(storage, Staged()), ENGINE)
    assert 12 > again.encoded >= 4  # what was published is not done again
    assert again.encoded + again.cached == 12


def test_an_encoder_that_fails_ends_all_and_keeps_its_kind(storage: Watched) -> None:
    def before(number: int) -> None:
        if number == 2:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room") as caught:
        filled_of(source_of(storage, Staged(before)), ENGINE)
    assert any("lower data.backends.latents.batch_size=2" in n for n in caught.value.__notes__)


def test_a_disk_that_is_full_ends_all_while_the_encoder_goes_on(
    storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def full(self: LocalStorage, key: str, data: bytes) -> None:
        failed.set()
        raise StorageError("disk full")

    def before(number: int) -> None:
        assert number < 2 or failed.wait(SECONDS)

    source = source_of(storage, Staged(before), shard_mb=1e-3)
    source.latents.store.open()  # type: ignore[union-attr]
    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(StorageError, match="disk full"):
        filled_of(source, ENGINE)


def test_an_interrupt_while_encoding_ends_all(storage: Watched) -> None:
    def before(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled_of(source_of(storage, Staged(before)), ENGINE)


def test_pictures_that_cannot_be_read_only_make_their_batch_smaller(storage: Watched) -> None:
    source = source_of(storage, Staged())
    for name in ("0002", "0004", "0005"):
        Path(storage.root, f"p/{name}.png").write_bytes(b"no picture at all")
    filled = filled_of(source, ENGINE)
    assert filled.encoded == 9
    assert sorted(filled.errors) == [2, 4, 5]
    assert source.latents is not None
    assert source.latents.encoder.batches == 5  # type: ignore[attr-defined]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys of pictures were made at a time."""
    counts: list[int] = []
    keys = PictureEmbedBackend.keys

    def note(self: PictureEmbedBackend, reader: Any, pictures: Any, **marks: Any) -> Any:
        found = keys(self, reader, pictures, **marks)
        counts.append(len(found))
        return found

    monkeypatch.setattr(PictureEmbedBackend, "keys", note)
    return counts


def test_a_key_is_made_once_for_each_picture(storage: Watched, made: list[int]) -> None:
    source = source_of(storage, Staged())
    assert filled_of(source, ENGINE).encoded == 12
    source.locate()
    assert sum(made) == 12
    assert source.latents is not None
    assert (source.locations[source.latents.name].shard[source.catalog.decisions.order] >= 0).all()


def taken(made: list[int]) -> int:
    """Return how many keys were made since, and forget them."""
    count = sum(made)
    made.clear()
    return count


def started(registry: Registry) -> int:
    """Prepare once; return how many pictures were encoded."""
    prepare(registry, seed=0)
    stages = registry.telemetry.stages
    registry.close()
    return sum(int(stage.counts.get("encoded", 0)) for stage in stages)


def registry_of(root: Path, **settings: Any) -> Registry:
    """Return two folders that share a store of latents, one of which is conditioned on."""
    storage = LocalStorage(str(root))
    place = Workspace(LocalStorage(str(root / "cache")), scratch_dir=str(root / "scratch"))
    shared: dict[str, Any] = {"storage": storage, "resolution": 64, "alignment": 16}
    backends = [
        ImageBackend(name="p", prefix="p", caption=FilenameCaptions(), **shared),
        ImageBackend(
            name="q", prefix="q", caption=FilenameCaptions(), conditioning_image_embeds="looks",
            **shared,
        ),
        ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT(), **settings),
        VisionEmbedBackend(name="looks", cache=place, encoder=MeanColour()),
    ]  # fmt: skip
    return Registry(backends, cache=place, engine=ENGINE)


def test_a_start_makes_each_key_once_and_none_where_it_is_kept(
    storage: Watched, made: list[int]
) -> None:
    root = Path(storage.root)
    write_pictures(root / "q", 5, first=100)
    assert started(registry_of(root)) == 12 + 5 + 5
    assert taken(made) == 12 + 5 + 5  # latents of both, and looks of one
    for _ in range(2):
        assert started(registry_of(root)) == 0
        assert taken(made) == 0
    shutil.rmtree(root / "places")  # as on another machine
    assert started(registry_of(root)) == 0
    assert taken(made) == 12 + 5 + 5
    (root / "p/0000.png").unlink()
    assert started(registry_of(root)) == 0
    assert taken(made) == 11  # those of the other folder are kept
    drop(registry_of(root).image_embeds["latents"].store, keys_of_one(registry_of(root), "q"))
    made.clear()
    assert started(registry_of(root)) == 1
    assert taken(made) == 11 + 5


def keys_of_one(registry: Registry, name: str) -> Keys:
    """Return the key of a backend's first picture."""
    source = load(registry, seed=0)[name]
    assert source.latents is not None
    return source.latents.keys(source.backend.reader, [source.picture(0)])


def test_a_start_on_demand_makes_no_key(storage: Watched, made: list[int]) -> None:
    root = Path(storage.root)
    write_pictures(root / "q", 5, first=100)
    whole = load_rows(registry_of(root), encode=True)
    shutil.rmtree(root / "places")
    made.clear()
    registry = registry_of(root, encode_mode="on_demand")
    sources = prepare(registry, seed=0)
    assert taken(made) == 5  # of the looks, which are always encoded beforehand
    rows = sources["p"].catalog.decisions.order[:4].astype(np.int64)
    for _ in range(2):
        assert torch.equal(sources["p"].gather(sources["p"].latents, rows)["latents"], whole[:4])
    assert taken(made) == 4
    registry.close()


def load_rows(registry: Registry, *, encode: bool) -> torch.Tensor:
    """Return all latents of the folder "p", in the order of its buckets."""
    source = (prepare if encode else load)(registry, seed=0)["p"]
    latents = source.gather(source.latents, source.catalog.decisions.order.astype(np.int64))[
        "latents"
    ]
    registry.close()
    return latents


def test_rows_that_a_kept_file_says_are_nowhere_are_encoded(
    storage: Watched, made: list[int]
) -> None:
    kept = LocationFiles(Path(storage.root, "places"))
    source = source_of(storage, Staged())
    fill_pictures(source, source.latents, ENGINE, kept=kept)
    source.locate(kept)
    assert source.latents is not None
    drop(source.latents.store, source.latents.keys(source.backend.reader, [source.picture(3)]))
    again = source_of(storage, Staged())
    found = again.find(again.latents, kept)
    path = _path(kept, again._query(again.latents), found.snapshot)
    assert path is not None
    _write(path, (found.shard, found.row, found.checksum))
    made.clear()
    last = source_of(storage, Staged())
    filled = fill_pictures(last, last.latents, ENGINE, kept=kept)
    assert (filled.encoded, filled.cached) == (1, 11)
    assert taken(made) == 1
    last.locate(kept)
    assert last.latents is not None
    assert (last.locations[last.latents.name].shard >= 0).all()


def test_captions_are_written_while_the_next_ones_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()
    add, encode = ShardWriter.add, HashedText.encode

    def note_write(self: ShardWriter, *args: Any, **named: Any) -> None:
        assert second.wait(SECONDS)
        add(self, *args, **named)

    def note_encode(self: HashedText, captions: Any) -> Any:
        if "1" in captions:
            second.set()
        return encode(self, captions)

    monkeypatch.setattr(ShardWriter, "add", note_write)
    monkeypatch.setattr(HashedText, "encode", note_encode)
    place = Workspace(LocalStorage(str(tmp_path)))
    store = TextEmbedBackend(name="text", cache=place, encoder=HashedText(), batch_size=1)
    filled = fill_captions(store, ["0", "1"], ENGINE)
    assert (filled.encoded, filled.cached) == (2, 0)
    assert filled.bytes == 2 * HashedText().row_bytes()
    assert fill_captions(store, ["1", "2"], ENGINE).counts()["cached"] == 1


def test_an_encoder_that_gives_too_few_rows_is_told_with_the_last_batch(
    storage: Watched,
) -> None:
    encoder = Staged()
    encoder.inner = Short()
    with pytest.raises(CacheError, match="2 samples were encoded"):
        filled_of(source_of(storage, encoder), ENGINE)


@dataclass(frozen=True)
class Short(BlockDCT):
    """Leaves out the last row."""

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode all but one."""
        return super().encode(pixels[:-1])


def test_keys_made_by_columns_are_those_of_single_rows(tmp_path: Path) -> None:
    """Caches that were filled before stay valid: the text that is hashed has not changed."""
    cut = SampleCrop((100, 60), (3, 0), (96, 64))
    pictures = [Picture(7, 'a "b" ü%s.png', "1-2", cut, frames=90), Picture(8, "c", "", cut)]
    place = Workspace(LocalStorage(str(tmp_path)))
    store = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT())
    for reader, extra in (
        (ReadPicture(LocalStorage(str(tmp_path))), [{}, {}]),
        (ReadClip(LocalStorage(str(tmp_path)), Clip(8, 2)), [{"first": 37}, {"first": 0}]),
    ):
        rows = [
            {
                "key": picture.key, "etag": picture.etag, "resize": [100, 60], "crop": [3, 0],
                "target": [96, 64], **more,
            }
            for picture, more in zip(pictures, extra, strict=True)
        ]  # fmt: skip
        common = store.recipe(reader)
        wanted = [recipe_key({"common": common, "row": row}) for row in rows]
        assert [key.tobytes() for key in store.keys(reader, pictures)] == wanted
        columns = PictureColumns.of(pictures)
        assert [key.tobytes() for key in store.keys(reader, columns)] == wanted
        assert columns.each() == pictures


def test_only_what_is_missing_is_named_with_its_key(storage: Watched) -> None:
    source = source_of(storage, Staged())
    places, keys = missing_pictures(source, source.latents)
    assert places.tolist() == list(range(12))
    wanted = source.latents.keys(  # type: ignore[union-attr]
        source.backend.reader, source.pictures(source.catalog.decisions.order)
    )
    assert keys.tolist() == wanted.tolist()
    filled_of(source, ENGINE)
    assert missing_pictures(source, source.latents)[0].size == 0


@pytest.mark.parametrize("fails", [False, True])
def test_encoders_are_released_whether_or_not_they_fail(storage: Watched, fails: bool) -> None:
    def before(number: int) -> None:
        if fails:
            raise ZeroDivisionError

    encoder = Staged(before)
    source = source_of(storage, encoder)
    assert source.latents is not None
    made = Registry([source.backend, source.latents], cache=source.latents.cache, engine=ENGINE)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        prepare(made, seed=0)
    assert encoder.released == 1
    made.close()
