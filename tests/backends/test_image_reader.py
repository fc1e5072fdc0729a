"""Latents stay with their samples, however they come: cached, waiting, or encoded now."""

import logging
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import ImageBackend, ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.backends.encode_missing import EncodeCounts, read_captions
from factory.backends.encode_mode import EncodeMode
from factory.backends.prepared import PreparedBackend
from factory.cache.store import UnusableRowsError
from factory.catalog.captions.sources import FilenameCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import AccessDeniedError, CacheError
from factory.registry.precompute import fill_captions
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.request import BatchRequest
from factory.sampling.plan import PlanStep
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.backends.test_embeddings import Counting
from tests.catalog.fakes import ENGINE, Watched
from tests.support.pictures import colour, write_pictures

COUNT = 8
NUMBERS = count()  # of caches in memory, each its own
KEEPING = [EncodeMode.precompute, EncodeMode.on_demand]
LATE = [EncodeMode.on_demand, EncodeMode.transient]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of one bucket; nothing writes there."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "p", COUNT, sizes=((96, 64),))
    return root


@pytest.fixture(scope="module")
def scanned(pictures: Path) -> PreparedBackend:
    """The pictures scanned, without a store."""
    backend = ImageBackend(
        name="pics",
        prefix="p",
        caption=FilenameCaptions(),
        storage=Watched(str(pictures)),
        resolution=64,
        alignment=16,
    )
    return PreparedBackend(backend, backend.catalog(backend.scan(None, ENGINE), 0))


def store(cache: Workspace | None = None, **made: Any) -> ImageEmbedBackend:
    """Return a store of latents that counts what it encodes, in memory if nowhere else."""
    cache = cache or Workspace(MemoryStorage(f"reading {next(NUMBERS)}"))
    return ImageEmbedBackend(
        name="latents", cache=cache, encoder=made.pop("encoder", Counting()), batch_size=3, **made
    )


def on_disk(root: Path, **made: Any) -> Workspace:
    return Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"), **made)


def broken(source: PreparedBackend, rows: set[int]) -> PreparedBackend:
    """Return the source with objects that cannot be decoded any more."""
    files = Watched(source.backend.storage.root)  # type: ignore[attr-defined]
    keys = {source.catalog.facts.key(row) for row in rows}
    spoiled = replace(source.backend, storage=Spoiled(files.root, spoiled=frozenset(keys)))
    return replace(source, backend=spoiled)


class Spoiled(LocalStorage):
    """A folder in which some objects are no pictures any more."""

    def __init__(self, root: str, spoiled: frozenset[str] = frozenset()) -> None:
        """Store the names of the objects."""
        super().__init__(root)
        object.__setattr__(self, "spoiled", spoiled)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return junk for some."""
        return b"junk" if key in self.spoiled else super().read(key, start, length)  # type: ignore[attr-defined]


def batch(source: PreparedBackend, rows: list[int], epoch: int = 0) -> Batch:
    """Return the batch of some rows, as training makes it."""
    name = source.catalog.decisions.buckets[0].name
    step = PlanStep(epoch, 0, 0, source.name, name, np.array(rows), 0, 0, seed=3)
    return Collate({source.name: source}, ENGINE, seed=3)(BatchRequest(step, np.arange(len(rows))))


def check_pairs(made: Batch) -> None:
    """See that each latent is that of the picture its key names."""
    assert made.latents is not None
    decoded = BlockDCT().decode(made.latents)
    for key, picture in zip(made.keys, decoded, strict=True):
        wanted = torch.tensor(colour(int(Path(key).stem)))
        assert (picture[8, 8].int() - wanted).abs().max() <= 2


def put(source: PreparedBackend, rows: set[int]) -> None:
    """Encode some rows beforehand."""
    assert source.latents is not None
    places = np.array(sorted(rows), dtype=np.int64)
    chosen, reader = source.columns(places), source.backend.reader
    recipe, keys = source.latents.recipe(reader), source.latents.keys(reader, chosen)
    pixels = [reader(picture) for picture in chosen.each()]
    with source.latents.store.writer(recipe) as writer:
        for n, sample in enumerate(pixels):
            fields = source.latents.encode(torch.from_numpy(sample[None]), ["a"])
            writer.add(keys[n : n + 1], fields)
    source.latents.store.refresh()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=7),
    cached=st.sets(st.integers(0, COUNT - 1)),
    unreadable=st.sets(st.integers(0, COUNT - 1), max_size=3),
    waiting=st.sets(st.integers(0, COUNT - 1), max_size=3),
    mode=st.sampled_from(LATE),
)
def test_every_latent_is_its_sample_s_own(
    scanned: PreparedBackend,
    rows: list[int],
    cached: set[int],
    unreadable: set[int],
    waiting: set[int],
    mode: EncodeMode,
) -> None:
    whole = replace(scanned, latents=store(), encode_mode=mode)
    if cached:
        put(whole, cached)
    for row in sorted(waiting):
        batch(whole, [row])
    # What is in the cache, or on its way there, need not be read.
    there = cached | waiting if mode.keeps else set()
    source = broken(whole, unreadable)
    # Renamed by its storage's class alone; keys of rows name the storage, which is the same.
    made = batch(source, rows)
    check_pairs(made)
    used = [source.catalog.facts.key(row) for row in made.rows.tolist()]
    assert made.keys == used
    lost = unreadable - there
    for planned, now in zip(rows, made.rows.tolist(), strict=True):
        assert now not in lost
        assert (now == planned) == (planned not in lost)
    assert {each.row for each in made.replaced} == lost & set(rows)
    assert made.encoded == len(set(made.rows.tolist()) - there)
    if not there:
        pixels = batch(replace(source, latents=None), rows)
        assert made.keys == pixels.keys  # the substitutes are those of a run on pixels


@settings(max_examples=25, deadline=None)
@given(
    captions=st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=8),
    cached=st.sets(st.sampled_from(["", "a", "b", "c", "d"])),
    mode=st.sampled_from([*KEEPING, EncodeMode.transient]),
)
def test_every_caption_has_its_own_row(
    captions: list[str], cached: set[str], mode: EncodeMode
) -> None:
    texts = TextEmbedBackend(
        name="text", cache=Workspace(MemoryStorage(f"reading {next(NUMBERS)}")),
        encoder=HashedText(), batch_size=2,
    )  # fmt: skip
    fill_captions(texts, cached, ENGINE)
    tally = EncodeCounts()
    fields = read_captions(texts, captions, mode, "pics", tally)
    for name, wanted in HashedText().encode(captions).items():
        assert torch.equal(fields[name], wanted)
    there = cached if mode.keeps else set()
    assert tally.encoded == len(set(captions) - there)
    assert tally.rebuilt == (tally.encoded if mode.ahead else 0)


def test_what_is_encoded_is_kept_and_not_encoded_again(
    scanned: PreparedBackend, tmp_path: Path
) -> None:
    encoder = Counting()
    embeds = store(on_disk(tmp_path), encoder=encoder)
    source = replace(scanned, latents=embeds, encode_mode=EncodeMode.on_demand)
    assert batch(source, [0, 1, 2, 0]).encoded == 3
    assert batch(source, [2, 1, 3]).encoded == 1
    assert sum(shape[0] for shape in encoder.batches) == 4
    embeds.close()
    again = replace(source, latents=store(on_disk(tmp_path), encoder=encoder))
    check_pairs(batch(again, [3, 1, 2, 0]))
    assert sum(shape[0] for shape in encoder.batches) == 4


def test_nothing_is_kept_of_what_is_transient(scanned: PreparedBackend, tmp_path: Path) -> None:
    embeds = store(on_disk(tmp_path))
    source = replace(scanned, latents=embeds, encode_mode=EncodeMode.transient)
    assert [batch(source, [0, 1]).encoded for _ in range(2)] == [2, 2]
    embeds.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_killed_loses_what_was_not_published(
    scanned: PreparedBackend, tmp_path: Path
) -> None:
    killed = store(on_disk(tmp_path), write_batch_size=2)
    source = replace(scanned, latents=killed, encode_mode=EncodeMode.on_demand)
    for row in range(5):
        batch(source, [row])
    # Never closed: another process finds the two full shards.
    next_run = replace(source, latents=store(on_disk(tmp_path)))
    made = batch(next_run, [0, 1, 2, 3, 4])
    assert made.encoded == 1
    check_pairs(made)


def shards(root: Path) -> list[Path]:
    return sorted((root / "cache/tensors/latents/shards").iterdir())


def spoil_first_row(root: Path) -> None:
    """Change a byte of the first row's latent in the only shard."""
    (file,) = shards(root)
    data = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("mode", KEEPING)
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_damaged_or_vanished_row_is_encoded_anew_told_and_written(
    scanned: PreparedBackend,
    tmp_path: Path,
    mode: EncodeMode,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = replace(scanned, latents=store(on_disk(tmp_path)), encode_mode=mode)
    put(source, set(range(COUNT)))
    (file,) = shards(tmp_path)
    if how == "damaged":
        spoil_first_row(tmp_path)
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, "factory"):
        made = batch(source, [0, 1, 2])
    check_pairs(made)
    lost = 1 if how == "damaged" else 3
    assert (made.encoded, made.rebuilt) == (lost, lost)
    (record,) = (each for each in caplog.records if each.name == "factory")
    told = record.getMessage()
    assert told.startswith(f"latents: {lost} rows of pics cannot be used and are encoded anew")
    assert "'p/0000.png' (key " in told
    assert file.name in told
    assert "delete" not in told
    assert batch(source, [2, 1, 0]).encoded == 0
    assert source.latents is not None
    source.latents.close()
    again = replace(source, latents=store(on_disk(tmp_path)))
    made = batch(again, [0, 1, 2])
    check_pairs(made)
    assert made.encoded == 0


def test_rows_that_another_process_has_moved_are_not_lost(
    scanned: PreparedBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = replace(scanned, latents=store(on_disk(tmp_path)))
    put(source, set(range(COUNT)))
    # As if another process had compacted: the same rows in a new shard, the old one removed.
    (file,) = shards(tmp_path)
    mover = replace(source, latents=store(on_disk(tmp_path)))
    assert mover.latents is not None
    pictures = mover.pictures(np.arange(COUNT))
    keys = mover.latents.keys(mover.backend.reader, pictures)
    fields = mover.latents.store.gather(keys)
    with mover.latents.store.writer({}) as writer:
        writer.add(keys, fields)
    file.unlink()
    made = batch(source, [0, 1, 2])
    check_pairs(made)
    assert (made.encoded, made.rebuilt) == (0, 0)
    assert "cannot be used" not in caplog.text


def test_a_row_that_is_missing_though_prepared_is_encoded_anew(
    scanned: PreparedBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = replace(scanned, latents=store(on_disk(tmp_path)))
    made = batch(source, [4, 5])
    check_pairs(made)
    assert (made.encoded, made.rebuilt) == (2, 2)
    assert "2 of 2 rows asked for are not in the cache" in caplog.text


@pytest.mark.parametrize("mode", KEEPING)
def test_a_run_may_be_stopped_by_damage_instead(
    scanned: PreparedBackend, tmp_path: Path, mode: EncodeMode
) -> None:
    cache = on_disk(tmp_path, damaged="stop")
    source = replace(scanned, latents=store(cache), encode_mode=mode)
    put(source, set(range(COUNT)))
    spoil_first_row(tmp_path)
    with pytest.raises(UnusableRowsError, match=r"row 0 of .* does not match its checksum; .*anew"):
        batch(source, [0, 1])
    with pytest.raises(ValueError, match=r"cache\.damaged must be one of rebuild, stop"):
        on_disk(tmp_path, damaged="ignore")


def test_what_cannot_be_encoded_anew_is_the_error_it_was(
    scanned: PreparedBackend, tmp_path: Path
) -> None:
    source = replace(scanned, latents=store(on_disk(tmp_path)))
    put(source, set(range(COUNT)))
    spoil_first_row(tmp_path)
    with pytest.raises(UnusableRowsError, match="does not match its checksum; ") as caught:
        batch(broken(source, {0}), [0, 1])
    (note,) = (note for note in caught.value.__notes__ if "anew" in note)
    assert note.startswith("and 'p/0000.png' of 'pics' cannot be encoded anew: decode failed: ")


@pytest.mark.parametrize("mode", LATE)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("nan", r"field 'latents' holds NaN or infinity for 'p/\d{4}\.png'"),
        ("count", "the rows that came are"),
    ],
)
def test_an_encoder_that_errs_trains_nothing(
    scanned: PreparedBackend, tmp_path: Path, mode: EncodeMode, spoil: str, said: str
) -> None:
    embeds = store(on_disk(tmp_path), encoder=Counting(spoil))
    source = replace(scanned, latents=embeds, encode_mode=mode)
    with pytest.raises(CacheError, match=said):
        batch(source, [0, 1])


@pytest.mark.parametrize("mode", LATE)
def test_a_storage_that_fails_as_a_whole_is_no_sample_s_fault(
    scanned: PreparedBackend, mode: EncodeMode
) -> None:
    files = Watched(scanned.backend.storage.root)  # type: ignore[attr-defined]
    files.broken["p/0003.png"] = AccessDeniedError("expired")
    source = replace(
        scanned, backend=replace(scanned.backend, storage=files), latents=store(), encode_mode=mode
    )
    with pytest.raises(AccessDeniedError):
        batch(source, [2, 3])


def test_threads_encode_a_row_once(scanned: PreparedBackend) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder = Counting()
    source = replace(scanned, latents=store(encoder=encoder), encode_mode=EncodeMode.on_demand)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda n: batch(source, [n % 3, 3, 4]), range(12)):
            check_pairs(made)
    assert sum(shape[0] for shape in encoder.batches) == 5
