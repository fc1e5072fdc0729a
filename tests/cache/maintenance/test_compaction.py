"""Does compaction lose, double or revive no row, whoever writes, reads or dies meanwhile?"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.index.explain_miss import stored_rows
from factory.cache.maintenance import compaction as compaction_module
from factory.cache.maintenance import lease as lease_module
from factory.cache.maintenance.compaction import compact
from factory.cache.maintenance.garbage import collect, garbage
from factory.cache.maintenance.lease import LeaseTakenError, alone
from factory.cache.store import TensorStore
from factory.storage import LocalStorage, MemoryStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import drop, verify

Make = Callable[..., torch.Tensor]
MakeKeys = Callable[..., Keys]

# Written by six writers, 30 rows each; a full shard holds 256.
ROWS = 180
DROPPED = range(10, 14)
REWRITTEN = range(40, 45)


@dataclass(frozen=True)
class Mortal(LocalStorage):
    """A storage whose process is killed at one of its writes or deletions."""

    left: list[int] = field(default_factory=list, compare=False)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write while alive."""
        self._step()
        super().write(key, data)

    def delete(self, key: str) -> None:
        """Delete while alive."""
        self._step()
        super().delete(key)

    def _step(self) -> None:
        if self.left:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyboardInterrupt


def write(
    store: TensorStore, keys: Keys, rows: torch.Tensor, recipe: dict[str, str] = RECIPE
) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=recipe) as writer:
        labels = [f"{key.tobytes().hex()}.png" for key in keys]
        writer.add(keys, {"field": rows}, labels, [{"etag": label} for label in labels])
    store.refresh()


def fill(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    """Publish the rows, some of them twice, and drop some."""
    for start in range(0, ROWS, 30):
        write(store, keys_of(30, start), rows_of(30, start))
    write(store, keys_of(len(REWRITTEN), REWRITTEN.start), rows_of(5, 1000 + REWRITTEN.start))
    drop(store, keys_of(len(DROPPED), DROPPED.start))


def check(store: TensorStore, keys_of: MakeKeys) -> None:
    """Compare every row with what `fill` wrote."""
    present = np.array([n not in DROPPED for n in range(ROWS)])
    assert store.contains(keys_of(ROWS)).tolist() == present.tolist()
    numbers = np.flatnonzero(present)
    expected = np.where(np.isin(numbers, REWRITTEN), numbers + 1000, numbers)
    got = store.gather(keys_of(ROWS)[present])["field"]
    assert got[:, 0].tolist() == got[:, -1].tolist() == expected.tolist()
    assert store.problems == []


@pytest.fixture
def filled(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> TensorStore:
    """A store of many thin shards."""
    fill(store, keys_of, rows_of)
    return store


def test_thin_shards_become_full_ones(filled: TensorStore, keys_of: MakeKeys) -> None:
    done = compact(filled)
    assert str(done) == f"{ROWS - len(DROPPED)} rows of 7 shards lie in 1 now"
    check(filled, keys_of)
    assert len(filled.snapshot().index.shards) == 1
    assert len(filled.shard_files.listed()) == 8
    assert {one.reason[:19] for one in collect(filled, min_age_s=0)} == {"holds no row that c"}
    check(filled, keys_of)
    check(TensorStore(filled.storage, filled.prefix), keys_of)
    assert len(filled.shard_files.listed()) == 1
    assert len(filled.index_files.listed()) == 2  # with the piece that says what was dropped
    assert verify(filled) == []


def test_doing_it_again_finds_nothing_to_do(filled: TensorStore) -> None:
    compact(filled)
    collect(filled, min_age_s=0)
    assert compact(filled).rows == 0
    assert garbage(filled) == []


def test_rows_keep_what_was_noted_of_them(filled: TensorStore, keys_of: MakeKeys) -> None:
    compact(filled)
    collect(filled, min_age_s=0)
    for key in keys_of(2, start=60):
        label = f"{key.tobytes().hex()}.png"
        (row,) = stored_rows(filled, label)
        assert (row.key, row.common, row.parts) == (key.tobytes(), RECIPE, {"etag": label})


def test_recipes_and_shapes_are_kept_apart(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    for start, recipe, width in [(0, "a", 8), (10, "b", 8), (20, "a", 9), (30, "a", 8)]:
        write(store, keys_of(10, start), rows_of(10, start, width=width), {"encoder": recipe})
    assert compact(store).after == 1
    shards = store.snapshot().index.shards
    assert sorted((s.recipe, s.rows, s.layout[0].shape) for s in shards) == [
        ('{"encoder":"a"}', 10, (9,)),
        ('{"encoder":"a"}', 20, (8,)),
        ('{"encoder":"b"}', 10, (8,)),
    ]


def test_full_shards_are_left_alone(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    write(store, keys_of(256), rows_of(256))
    write(store, keys_of(10, 300), rows_of(10, 300))
    assert compact(store).rows == 0
    write(store, keys_of(10, 400), rows_of(10, 400))
    assert (compact(store).before, len(store.snapshot().index.shards)) == (2, 2)


def test_shards_stay_as_small_as_their_store_wants_them(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    small = replace(store, shard_rows=30)
    for start in range(0, 90, 30):
        write(small, keys_of(30, start), rows_of(30, start))
    assert compact(small).rows == 0
    for start in range(100, 150, 10):
        write(small, keys_of(10, start), rows_of(10, start))
    done = compact(small)
    assert (done.rows, done.before, done.after) == (50, 5, 2)
    collect(small, min_age_s=0)
    assert sorted(shard.rows for shard in small.snapshot().index.shards) == [20, 30, 30, 30, 30]


def test_a_shard_most_of_which_is_dead_is_written_anew(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(store, keys_of(256), rows_of(256))
    drop(store, keys_of(200))
    assert compact(store).rows == 56
    collect(store, min_age_s=0)
    assert [record.rows for record in store.snapshot().index.shards] == [56]
    assert not store.contains(keys_of(200)).any()


def test_a_killed_compaction_or_collection_harms_nothing(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "_runs", lambda pid: False)
    died = 0
    for step in range(100):
        storage = Mortal(root=str(tmp_path / str(step)))
        store = TensorStore(storage, "cache", shard_mb=1 / 64)  # a full shard holds 64 rows
        fill(store, keys_of, rows_of)
        storage.left.append(step)
        try:
            compact(store)
            collect(store, min_age_s=0)
        except KeyboardInterrupt:
            died += 1
        storage.left.clear()
        again = TensorStore(storage, "cache", shard_mb=1 / 64)
        check(again, keys_of)
        compact(again)
        collect(again, min_age_s=0)
        check(again, keys_of)
        assert verify(again) == []
        assert sum(shard.rows for shard in again.snapshot().index.shards) == ROWS - len(DROPPED)
        if died <= step:  # it came to its end
            break
    assert died > 10


def test_a_drop_made_meanwhile_counts(
    filled: TensorStore, keys_of: MakeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TensorStore(filled.storage, filled.prefix, shard_mb=filled.shard_mb)
    whole = compaction_module._Work._copy

    def interrupted(*args: Any) -> Any:
        drop(other, keys_of(1, start=100))
        return whole(*args)

    monkeypatch.setattr(compaction_module._Work, "_copy", interrupted)
    compact(filled)
    assert not filled.contains(keys_of(1, start=100)).any()
    assert [one.segment for one in collect(filled) if one.shard is None] == []
    monkeypatch.undo()
    write(other, keys_of(1, start=100), torch.full((1, 64), 7, dtype=torch.int32))
    compact(filled)
    collect(filled, min_age_s=0)
    assert filled.gather(keys_of(1, start=100))["field"][0, 0] == 7


def test_readers_with_an_old_snapshot_find_their_rows_where_they_are_now(
    filled: TensorStore, keys_of: MakeKeys
) -> None:
    reader = TensorStore(filled.storage, filled.prefix)
    reader.open()
    reader.gather(keys_of(10))
    compact(filled)
    collect(filled, min_age_s=0)
    check(reader, keys_of)


def test_damaged_rows_stay_where_they_are_and_are_told_of(
    filled: TensorStore, keys_of: MakeKeys, tmp_path: Path
) -> None:
    index = filled.snapshot().index
    found = index.find(keys_of(1, start=100))
    path = tmp_path / "cache/images/shards" / index.shards[int(found.shard[0])].name
    data = bytearray(path.read_bytes())
    data[4096 + 256 * int(found.row[0])] ^= 1
    path.write_bytes(data)
    done = compact(filled)
    assert done.rows == ROWS - len(DROPPED) - 1
    assert "does not match its checksum" in done.problems[0]
    collect(filled, min_age_s=0)
    (problem,) = verify(filled)
    assert path.name in problem
    assert filled.contains(keys_of(1, start=100)).all()


def test_garbage_is_left_alone_for_a_while(filled: TensorStore, keys_of: MakeKeys) -> None:
    compact(filled)
    old = TensorStore(filled.storage, filled.prefix)
    assert collect(filled) == []
    assert len(collect(old, min_age_s=0)) == 7
    check(filled, keys_of)


def test_shards_in_no_index_are_garbage(filled: TensorStore, keys_of: MakeKeys) -> None:
    name = f"{time.time_ns() // 1000 - 7200 * 10**6:016x}{'0' * 16}.safetensors"
    for shard in (name, "f" * 32 + ".safetensors", "mine.safetensors"):
        filled.storage.write(filled.shard_files.key(shard), b"")
    assert [one.shard for one in collect(filled)] == [name]
    check(filled, keys_of)
    assert len(collect(filled, min_age_s=0)) == 1
    assert "mine.safetensors" in filled.shard_files.listed()


def test_shards_whose_index_is_damaged_are_no_garbage(
    filled: TensorStore, keys_of: MakeKeys, tmp_path: Path
) -> None:
    path = min((tmp_path / "cache/images/index").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = TensorStore(filled.storage, filled.prefix)
    assert all(one.segment is not None for one in collect(again, min_age_s=0))
    path.write_bytes(data)
    check(TensorStore(filled.storage, filled.prefix), keys_of)


def test_rows_of_old_recipes_stay(filled: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    write(filled, keys_of(5, 500), rows_of(5, 500), {"encoder": "old"})
    compact(filled)
    collect(filled, min_age_s=0)
    assert filled.contains(keys_of(5, 500)).all()
    check(filled, keys_of)


def test_a_shard_goes_when_all_its_rows_were_dropped(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(store, keys_of(256), rows_of(256))
    drop(store, keys_of(3))
    collect(store, min_age_s=0)
    assert store.contains(keys_of(256)).sum() == 253
    drop(store, keys_of(256))
    assert len(collect(store, min_age_s=0)) == 1
    assert store.shard_files.listed() == {}
    assert not store.contains(keys_of(256)).any()


def test_one_at_a_time(filled: TensorStore) -> None:
    taken = threading.Event()
    done = threading.Event()

    def hold() -> None:
        with alone(filled.storage, f"{filled.folder}/upkeep", "compaction"):
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        for work in (compact, collect):
            with pytest.raises(
                LeaseTakenError, match=rf"compaction is done by process {os.getpid()}"
            ):
                work(filled)
    finally:
        done.set()
        thread.join()
    compact(filled)
    assert list(filled.storage.objects(f"{filled.folder}/upkeep")) == []


@pytest.mark.parametrize("claim", ["late", "ended", "broken"])
def test_claims_that_hold_no_longer_are_removed(claim: str) -> None:
    storage = MemoryStorage(name=f"claims-{claim}")
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, check=True, text=True)  # fmt: skip
    claims = {
        "late": {"host": "elsewhere", "pid": 1, "until": time.time() - 1, "work": "compaction"},
        "ended": {
            "host": socket.gethostname(), "pid": int(ended.stdout), "until": time.time() + 999,
            "work": "compaction",
        },
        "broken": ["?"],
    }  # fmt: skip
    storage.write("upkeep/other.json", json.dumps(claims[claim]).encode())
    with alone(storage, "upkeep", "compaction"):
        assert not storage.exists("upkeep/other.json")


def test_a_claim_of_another_machine_holds_until_its_time() -> None:
    storage = MemoryStorage(name="claims-held")
    claim = {"host": "elsewhere", "pid": 1, "until": time.time() + 60, "work": "compaction"}
    storage.write("upkeep/other.json", json.dumps(claim).encode())
    with (
        pytest.raises(
            LeaseTakenError, match=r"process 1 on elsewhere.*delete memory://claims-held"
        ),
        alone(storage, "upkeep", "compaction"),
    ):
        pass
    assert [info.key for info in storage.objects("upkeep")] == ["upkeep/other.json"]
