"""Is the merged index what its segments say, mapped by all, and merged again only where new?"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cache.format.recipe import KEY_DTYPE, Keys
from factory.cache.format.segment import ShardRecord, ShardStamp, new_segment
from factory.cache.format.shard import RowField
from factory.cache.index import local_runs as local_tables_module
from factory.cache.index import snapshot as snapshot_module
from factory.cache.index.local_runs import LocalRuns
from factory.cache.index.recipe_index import RecipeIndex
from factory.cache.index.sorted_run import SortedRun, merged, pack_run, read_run, run_of
from factory.cache.store import TensorStore
from factory.errors import CacheError
from factory.storage import LocalStorage, MemoryStorage
from tests.cache.conftest import RECIPE
from tests.support.examples import examples
from tests.support.stores import drop

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]

LAYOUT = (RowField("field", "U8", (1,)),)


@pytest.fixture(autouse=True)
def small_is_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tables of more than ten rows last."""
    monkeypatch.setattr(snapshot_module, "SMALL", 10)


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})


def tables(tmp_path: Path) -> list[Path]:
    """Return the merged tables on this machine."""
    return sorted((tmp_path / "cache/images/merged").glob("*.safetensors"))


def again(store: TensorStore) -> TensorStore:
    """Return the store as another process finds it."""
    return TensorStore(store.storage, store.prefix, store.local_dir)


def no_segment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a segment is read from now on."""
    monkeypatch.setattr(
        snapshot_module, "read_segment", lambda data, name: pytest.fail(f"{name} was read")
    )


def test_what_one_process_merged_every_other_maps(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(store, keys_of(30), rows_of(30))
    write(store, keys_of(9, start=30), rows_of(9, start=30))
    store.open()
    assert len(tables(tmp_path)) == 1
    no_segment_is_read(monkeypatch)
    other = again(store)
    assert other.gather(keys_of(39))["field"][:, 0].tolist() == list(range(39))
    (table,) = other.snapshot().tables
    assert not table.heads.flags.owndata
    assert not table.heads.flags.writeable


def test_a_refresh_reads_what_is_new_and_merges_it_with_what_is_small(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    write(store, keys_of(200), rows_of(200))
    store.open()
    (first,) = tables(tmp_path)
    sizes = []
    for start in range(200, 260, 6):
        write(store, keys_of(6, start), rows_of(6, start))
        store.refresh()
        sizes.append([len(table) for table in store.snapshot().tables])
        assert sum(len(s.keys) for s in store.snapshot().fresh.values()) <= 10
        assert again(store).gather(keys_of(start + 6))["field"][:, 0].tolist() == list(
            range(start + 6)
        )
    assert sizes[0] == [200]
    assert sizes[1] == [200, 12]
    assert sizes[-1] == [200, 48, 12]
    assert first.exists()
    assert len(tables(tmp_path)) == len(sizes[-1])


def test_a_table_is_merged_with_one_that_is_not_far_larger(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    write(store, keys_of(40), rows_of(40))
    store.open()
    (first,) = tables(tmp_path)
    write(store, keys_of(20, start=40), rows_of(20, start=40))
    store.refresh()
    assert [len(table) for table in store.snapshot().tables] == [60]
    assert not first.exists()
    assert len(tables(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "foreign"])
def test_a_damaged_table_is_merged_anew(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path, damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    write(store, keys_of(30), rows_of(30))
    store.open()
    (path,) = tables(tmp_path)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    damaged = {"short": data[:5000], "flipped": flipped, "empty": b"", "foreign": b"x" * 9000}
    path.unlink()  # a file that is mapped is never written to
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert again(store).contains(keys_of(30)).all()
    assert path.name in caplog.text
    assert "merged anew" in caplog.text
    assert path.read_bytes() == data


def test_a_folder_that_cannot_be_written_to_does_not_matter(
    keys_of: MakeKeys, rows_of: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "copies").write_bytes(b"a file where a folder should be")
    store = TensorStore(MemoryStorage(name="unwritable"), "cache", None)
    write(store, keys_of(30), rows_of(30))
    store._tables = LocalRuns(str(tmp_path / "copies/merged"))
    with caplog.at_level(logging.WARNING):
        assert store.contains(keys_of(30)).all()
    assert "kept in this process's memory" in caplog.text
    write(store, keys_of(3, start=30), rows_of(3, start=30))
    caplog.clear()
    store.refresh()
    assert store.contains(keys_of(33)).all()
    assert caplog.text == ""


def test_a_store_without_a_local_folder_keeps_its_tables(
    keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TensorStore(MemoryStorage(name="no-folder"), "cache")
    write(store, keys_of(30), rows_of(30))
    store.open()
    no_segment_is_read(monkeypatch)
    store.refresh()
    assert store.contains(keys_of(30)).all()


def test_processes_that_open_at_once_merge_once(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(store, keys_of(30), rows_of(30))
    kept = []
    keep = LocalRuns.keep

    def counted(self: LocalRuns, table: SortedRun) -> SortedRun:
        kept.append(table)
        return keep(self, table)

    monkeypatch.setattr(LocalRuns, "keep", counted)
    stores = [again(store) for _ in range(6)]
    threads = [threading.Thread(target=one.open) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == len(tables(tmp_path)) == 1
    assert all(one.contains(keys_of(30)).all() for one in stores)


def test_who_waits_too_long_merges_for_itself(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(local_tables_module, "_PATIENCE_S", 0)
    write(store, keys_of(30), rows_of(30))
    holder = LocalRuns(str(tmp_path / "cache/images/merged"))
    with holder.locked(), caplog.at_level(logging.WARNING):
        assert again(store).contains(keys_of(30)).all()
    assert "is held by another process" in caplog.text


def test_a_shard_that_comes_back_counts_again(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    write(store, keys_of(30), rows_of(30))
    write(store, keys_of(12), rows_of(12, start=100))
    store.open()
    name = next(n for n, r in store.snapshot().records.items() if r.rows == 12)
    newer = tmp_path / "cache/images/shards" / name
    data = newer.read_bytes()
    newer.unlink()
    for opened in (store, again(store)):
        opened.refresh()
        assert opened.gather(keys_of(12))["field"][:, 0].tolist() == list(range(12))
        assert len(opened.problems) == 1
    newer.write_bytes(data)
    for opened in (store, again(store)):
        opened.refresh()
        assert opened.gather(keys_of(12))["field"][:, 0].tolist() == list(range(100, 112))
        assert opened.problems == []


def test_a_clock_that_runs_behind_does_not_put_new_rows_below_old_ones(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, keys_of(5), rows_of(5))
    year = 365 * 24 * 3600 * 10**9
    now = snapshot_module.time.time_ns()
    for late, first in ((-year, 100), (year, 200), (-year, 300)):
        monkeypatch.setattr("time.time_ns", lambda late=late: now + late)
        write(again(store), keys_of(5), rows_of(5, start=first))
        store.refresh()
        assert store.gather(keys_of(5))["field"][:, 0].tolist() == list(range(first, first + 5))


# Keys of few different halves, so that they meet in one or in both.
KEYS = st.tuples(st.sampled_from([0, 1, 2**64 - 1]), st.sampled_from([0, 5, 2**64 - 1]))
# A segment: its keys, its shard (None drops them), and whether that is there.
SEGMENTS = st.lists(
    st.tuples(st.lists(KEYS, unique=True, max_size=6), st.sampled_from(["drop", "there", "lost"])),
    max_size=8,
)


def bytes_of(keys: Sequence[tuple[int, int]]) -> Keys:
    """Return keys given by their halves."""
    return np.frombuffer(b"".join(b"%b%b" % (a.to_bytes(8, "big"), b.to_bytes(8, "big"))
                                  for a, b in keys), KEY_DTYPE)  # fmt: skip


def one_table(number: int, keys: Sequence[tuple[int, int]], state: str) -> SortedRun:
    """Return the table of a segment whose rows say its number in their checksum."""
    record = ShardRecord(f"{number:032x}.safetensors", 1, 6, LAYOUT, "{}", 1)
    place = ShardStamp(number, None if state == "drop" else record)
    rows = np.arange(len(keys), dtype=np.uint64)
    segment = new_segment(number, [place], bytes_of(keys), rows * 0, rows, rows + 100 * number)
    return run_of(f"{number:016x}-{'0' * 32}.safetensors", segment)


@settings(max_examples=examples(300), deadline=None)
@given(SEGMENTS, st.permutations(range(8)), st.integers(0, 8))
def test_tables_say_what_a_dictionary_would(
    segments: list[tuple[list[tuple[int, int]], str]], order: list[int], cut: int
) -> None:
    expected: dict[tuple[int, int], int | None] = {}
    parts, lost = [], set()
    for number, (keys, state) in enumerate(segments):
        parts.append(one_table(number, keys, state))
        if state == "lost":
            lost.add(f"{number:032x}.safetensors")
            continue
        for row, key in enumerate(keys):
            expected[key] = None if state == "drop" else 100 * number + row
    parts = [parts[n] for n in order if n < len(parts)]
    lower, upper = merged(parts[:cut], lost), merged(parts[cut:], lost)
    wanted = [(a, b) for a in (0, 1, 7, 2**64 - 1) for b in (0, 5, 2**64 - 1)]
    packed = [read_run(pack_run(table), "table") for table in (lower, upper)]
    for tables in ([merged([lower, upper])], [lower, upper], packed):
        found = RecipeIndex(tables).find(bytes_of(wanted))
        got = [
            int(checksum) if shard >= 0 else None
            for shard, checksum in zip(found.shard, found.checksum, strict=True)
        ]
        assert got == [expected.get(key) for key in wanted]


def test_no_damage_to_a_table_changes_what_it_says() -> None:
    table = one_table(1, [(1, 5), (2, 5)], "there")
    sound = pack_run(table)
    for at in range(0, sound.size, 7):
        data = sound.copy()
        data[at] ^= 16
        try:
            got = read_run(data, "table")
        except CacheError:
            continue
        assert (got.origins, got.segments, got.twins) == (table.origins, table.segments, False)
        assert (got.heads == table.heads).all()


def test_drops_are_remembered_when_tables_are_merged(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(store, keys_of(30), rows_of(30))
    drop(store, keys_of(12))
    write(store, keys_of(12, start=30), rows_of(12, start=30))
    store.refresh()
    for opened in (store, again(store)):
        assert opened.contains(keys_of(43)).tolist() == [12 <= n < 42 for n in range(43)]


def test_two_caches_share_a_local_folder(keys_of: MakeKeys, rows_of: Make, tmp_path: Path) -> None:
    stores = [
        TensorStore(LocalStorage(root=str(tmp_path / name)), "cache", str(tmp_path / "local"))
        for name in "ab"
    ]
    for start, store in enumerate(stores):
        write(store, keys_of(30, start), rows_of(30, start))
        store.open()
    assert [again(store).contains(keys_of(1))[0] for store in stores] == [True, False]
    assert len(list((tmp_path / "local/merged").iterdir())) == 2
