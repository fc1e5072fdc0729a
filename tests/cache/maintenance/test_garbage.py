"""Is garbage found without all keys in memory, and is nothing taken for it that is none?"""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.index import snapshot as snapshot_module
from factory.cache.index.sorted_run import merged
from factory.cache.maintenance import garbage as garbage_module
from factory.cache.maintenance import live_rows as counting_module
from factory.cache.maintenance.garbage import collect, garbage
from factory.cache.maintenance.live_rows import counted, live_rows
from factory.cache.maintenance.verify import drop
from factory.cache.store import TensorStore
from factory.storage import LocalStorage
from tests.cache.conftest import RECIPE

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


class Held:
    """Counts keys in arrays that are still in use."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0

    def note(self, keys: Keys) -> Keys:
        """Count an array until it is let go of."""
        self.now += len(keys)
        self.all += len(keys)
        self.most = max(self.most, self.now)
        weakref.finalize(keys, self._let_go, len(keys))
        return keys

    def _let_go(self, count: int) -> None:
        self.now -= count


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """What is held of the keys that looking for garbage reads, and of those it puts together."""
    counter, read, put = Held(), garbage_module._keys, garbage_module._block

    def block(names: list[str], parts: list[Keys]) -> object:
        made = put(names, parts)
        counter.note(made.keys)
        return made

    monkeypatch.setattr(garbage_module, "_keys", lambda *args: counter.note(read(*args).copy()))
    monkeypatch.setattr(garbage_module, "_block", block)
    return counter


def test_drops_are_looked_at_in_bounded_memory(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pieces, rows, block = 40, 100, 150
    for n in range(pieces):
        write(store, keys_of(rows, start=n * rows), rows_of(rows))
        drop(store, keys_of(rows // 2, start=n * rows))
    needless = keys_of(370, start=10**6)  # more than are held at once, of no row
    drop(store, needless)
    monkeypatch.setattr(garbage_module, "_KEYS_AT_ONCE", block)
    found = garbage(store)
    gc.collect()
    assert [one.reason for one in found] == ["drops keys that have no row left"]
    # A block and the one before it, the drop that it is cut from, and one piece, read anew.
    assert held.most <= 2 * block + len(needless) + 2 * rows
    assert held.all > 5 * held.most  # all were looked at, but not at once
    assert held.now == 0


def test_a_drop_larger_than_a_block_stays_while_it_hides_one_row(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage_module, "_KEYS_AT_ONCE", 7)
    for hidden in (0, 13, 49):
        other = TensorStore(store.storage, f"cache/{hidden}", shard_mb=1 / 16)
        write(other, np.concatenate([keys_of(1, start=hidden), keys_of(1, start=999)]), rows_of(2))
        drop(other, keys_of(50))
        assert garbage(other) == []
        assert not other.contains(keys_of(50)).any()


def test_blocks_are_never_larger_than_allowed(
    store: TensorStore, keys_of: MakeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        drop(store, keys_of(10 * n + 1, start=100 * n))
    monkeypatch.setattr(garbage_module, "_KEYS_AT_ONCE", 16)
    drops = sorted(store.snapshot().segments)
    blocks = list(garbage_module._blocks(store, drops))
    assert [len(block.keys) for block in blocks] == [16] * 6 + [9]
    assert {name for block in blocks for name in block.names} == set(drops)


@pytest.fixture
def layered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep several tables, none merged with another, and look at few keys at once."""
    monkeypatch.setattr(snapshot_module, "SMALL", 0)
    monkeypatch.setattr(snapshot_module, "_RATIO", 0)
    monkeypatch.setattr(counting_module, "CHUNK", 7)
    return


@pytest.mark.usefixtures("layered")
def test_rows_are_counted_as_if_all_tables_were_merged(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    for start, count in ((0, 50), (20, 30), (40, 30), (0, 5)):
        write(store, keys_of(count, start=start), rows_of(count))
    drop(store, keys_of(3, start=60))
    store.refresh()
    index = store.snapshot().index
    assert len(index.tables) > 2
    one = merged(index.tables)
    expected = {origin.segment: origin.rows for origin in one.origins}
    assert {origin.segment: rows for origin, rows in counted(index)} == expected
    assert sum(live_rows(store).values()) == 70 - 3


@pytest.mark.parametrize("ratio", [0, 4])
def test_what_is_superseded_goes_however_the_index_lies(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch, ratio: int
) -> None:
    monkeypatch.setattr(snapshot_module, "SMALL", 0)
    monkeypatch.setattr(snapshot_module, "_RATIO", ratio)
    store = TensorStore(LocalStorage(root=str(tmp_path)), "cache", shard_mb=1 / 16)
    for start in (0, 0, 100):
        write(store, keys_of(20, start=start), rows_of(20, start=start))
    (one,) = collect(store, min_age_s=0)
    assert one.reason.startswith("holds no row that counts")
    assert store.contains(keys_of(20)).all()
    assert garbage(store) == []


def test_a_shard_that_is_lost_is_no_garbage(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    write(store, keys_of(20), rows_of(20))
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    data = path.read_bytes()
    path.unlink()
    assert collect(store, min_age_s=0) == []
    path.write_bytes(data)  # the disk is mounted again
    store.refresh()
    assert store.contains(keys_of(20)).all()
