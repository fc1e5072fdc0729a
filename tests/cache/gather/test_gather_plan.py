"""Batches whose rows were looked at together are read as alone, and no check is left out."""

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.index.recipe_index import RowRefs
from factory.cache.store import TensorStore, UnusableRowsError
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage

KEYS = recipe_keys({"kind": "test"}, {"row": range(16)})
# Rows of a length of their own: those from here on.
LONG = 12


def fields_of(first: int, count: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return rows that tell their number in each field; one field is without a byte."""
    numbers = torch.arange(first, first + count)
    return {
        "embeds": numbers[:, None, None].repeat(1, tokens, 3).to(torch.bfloat16),
        "mask": numbers[:, None].repeat(1, tokens).to(torch.uint8),
        "nothing": torch.empty(count, 0),
    }


def fill(store: TensorStore) -> TensorStore:
    with store.writer({"kind": "test"}) as writer:
        writer.add(KEYS[:LONG], fields_of(0, LONG, 4))
        writer.add(KEYS[LONG:], fields_of(LONG, len(KEYS) - LONG, 7))
    store.refresh()
    return store


@pytest.fixture(scope="module")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    """A store of several shards; all rows but number 5 were compared with their checksums."""
    root = tmp_path_factory.mktemp("ready")
    store = fill(TensorStore(LocalStorage(str(root)), "cache", shard_rows=3))
    store.gather(KEYS[[n for n in range(len(KEYS)) if n != 5]], pad=True)
    return store


def located(store: TensorStore, rows: Sequence[int], keys: Keys = KEYS) -> GatherPlan:
    return GatherPlan(store, store.snapshot().index.find(keys[list(rows)]))


def split(store: TensorStore, *batches: Sequence[int]) -> list[GatherPlan]:
    every = [row for rows in batches for row in rows]
    return list(located(store, every).split([len(rows) for rows in batches]))


def told(fields: dict[str, torch.Tensor]) -> list[tuple[str, torch.dtype, list[object]]]:
    return [(name, fields[name].dtype, fields[name].tolist()) for name in sorted(fields)]


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, LONG - 1), min_size=1, max_size=5),
            st.lists(st.integers(LONG, len(KEYS) - 1), min_size=1, max_size=5),
            st.lists(st.integers(0, len(KEYS) - 1), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_batches_looked_at_together_are_read_as_alone(
    read_once: TensorStore, batches: list[list[int]]
) -> None:
    unread = located(read_once, [5]).refs
    record = read_once.snapshot().index.shards[int(unread.shard[0])]
    shard = read_once._open.whole(record.name)
    assert shard is not None
    shard.verified[int(unread.row[0])] = False  # as at the beginning, whatever was read since
    for rows, some in zip(batches, split(read_once, *batches), strict=True):
        alike = len({row < LONG for row in rows}) == 1
        assert some.ready == (alike and 5 not in rows)
        assert told(some.read(pad=True)) == told(read_once.gather(KEYS[rows], pad=True))
        assert some.read(pad=True)["mask"][:, 0].tolist() == rows


def test_layouts_that_are_equal_but_not_one_object_are_alike(tmp_path: Path) -> None:
    store = fill(TensorStore(LocalStorage(str(tmp_path)), "cache", shard_rows=3))
    store.gather(KEYS[:LONG])
    record = store.snapshot().index.shards[int(located(store, [0]).refs.shard[0])]
    shard = store._open.whole(record.name)
    assert shard is not None
    shard.layout = (*shard.layout[:1], *shard.layout[1:])  # as of an older snapshot
    (some,) = split(store, [0, 7])
    assert some.ready
    assert some.read()["mask"][:, 0].tolist() == [0, 7]


def test_rows_are_compared_with_their_checksums_before_they_are_ready(tmp_path: Path) -> None:
    store = fill(TensorStore(LocalStorage(str(tmp_path)), "cache"))
    store.gather(KEYS[:2])
    for path in (tmp_path / "cache/shards").rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    store.close()
    store.gather(KEYS[:2])
    sound, damaged = split(store, [0, 1], [LONG - 1, 0])
    assert sound.ready
    assert not damaged.ready
    with pytest.raises(UnusableRowsError, match="does not match its checksum"):
        damaged.read()


def test_rows_that_are_nowhere_or_beyond_an_end_are_not_ready(read_once: TensorStore) -> None:
    one = located(read_once, [0]).refs
    for wrong in (
        RowRefs(one.shards, np.full(1, -1), one.row, one.checksum),
        RowRefs(one.shards, one.shard, np.array([3]), one.checksum),
    ):
        (some,) = GatherPlan(read_once, wrong).split([1])
        assert not some.ready
        with pytest.raises(UnusableRowsError):
            some.read()


def test_rows_are_there_after_their_shards_were_let_go_of(tmp_path: Path) -> None:
    store = fill(TensorStore(LocalStorage(str(tmp_path)), "cache", shard_rows=3))
    store.gather(KEYS[:LONG])
    first, second = split(store, [0, 7], [3, 11, 3])
    del first
    for path in (tmp_path / "cache/shards").rglob("*.safetensors"):
        path.unlink()
    store.refresh()
    store.close()
    gc.collect()
    assert second.ready
    assert second.read()["mask"][:, 0].tolist() == [3, 11, 3]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_copies_which_may_have_to_be_fetched_are_never_ready(
    tmp_path: Path, compression: str
) -> None:
    place = str(tmp_path / "copies")
    store = fill(
        TensorStore(MemoryStorage(f"ready-{compression}"), "cache", place, compression=compression)
    )
    store.gather(KEYS[:LONG])
    (some,) = split(store, [0, 1])
    assert not some.ready
    assert some.read()["mask"][:, 0].tolist() == [0, 1]
