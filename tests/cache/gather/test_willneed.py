"""What will be read soon is asked of a disk at once, and nothing else is."""

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.gather import gather_plan
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.index.recipe_index import RowRefs
from factory.cache.store import TensorStore
from factory.cache.tiers.mapped_file import mapped_file, willneed
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage

ROWS = 40
# 64 numbers of four bytes, and one of one.
ROW_BYTES = 257
PAGE = mmap.PAGESIZE
Make = Callable[..., torch.Tensor]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Addresses and lengths of what the system is asked to read."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(gather_plan, "willneed", lambda *part: found.append(part))
    return found


def fill(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    with store.writer({"kind": "test"}) as writer:
        writer.add(keys, {"field": rows, "mask": rows[:, 0].to(torch.int8)})
    store.refresh()


def found(store: TensorStore, keys: Keys) -> RowRefs:
    return store.snapshot().index.find(keys)


def test_rows_are_asked_for_field_by_field_until_they_were_read(
    store: TensorStore, keys_of: Any, rows_of: Make, asked: list[tuple[int, int]]
) -> None:
    keys = keys_of(ROWS)
    fill(store, keys, rows_of(ROWS))
    wanted = found(store, keys[[3, 7, 3]])
    GatherPlan(store, wanted).willneed()
    (number,) = set(wanted.shard.tolist())
    opened = store._open.whole(store.snapshot().index.shards[number].name)
    assert opened is not None
    assert sorted(asked) == sorted(
        (address + row * field.stride, field.stride)
        for address, field in zip(opened.addresses, opened.layout, strict=True)
        for row in set(wanted.row.tolist())
    )

    store.gather(keys[[3]])
    asked.clear()
    GatherPlan(store, wanted).willneed()
    assert len(asked) == 2  # both fields of the other row


def test_rows_of_the_batch_that_comes_first_are_asked_for_first(
    tmp_path: Path, keys_of: Any, rows_of: Make, asked: list[tuple[int, int]]
) -> None:
    store = TensorStore(LocalStorage(str(tmp_path)), "cache", shard_rows=4)
    fill(store, keys_of(12), rows_of(12))
    wanted = found(store, keys_of(12)[[9, 1, 5, 9, 0]])
    assert len(set(wanted.shard.tolist())) == 3
    GatherPlan(store, wanted).willneed()
    records = store.snapshot().index.shards
    shards = [store._open.whole(records[number].name) for number in wanted.shard.tolist()]
    places = list(zip(shards, wanted.row.tolist(), strict=True))
    assert [address for address, _ in asked] == [
        address + row * field.stride
        for shard, row in [places[n] for n in (0, 1, 2, 4)]
        if shard is not None
        for address, field in zip(shard.addresses, shard.layout, strict=True)
    ]


def test_no_more_is_asked_for_at_once_than_stays_in_memory_until_it_is_used(
    store: TensorStore, keys_of: Any, rows_of: Make, asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fill(store, keys_of(ROWS), rows_of(ROWS))
    monkeypatch.setattr(gather_plan, "WILLNEED_LIMIT", 3 * ROW_BYTES)
    GatherPlan(store, found(store, keys_of(ROWS))).willneed()
    assert sum(length for _, length in asked) == 3 * ROW_BYTES


def test_rows_that_may_have_left_memory_are_asked_for_again(
    store: TensorStore, keys_of: Any, rows_of: Make, asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keys = keys_of(ROWS)
    memory = psutil.virtual_memory()._replace(total=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    fill(store, keys, rows_of(ROWS))
    store.gather(keys)
    GatherPlan(store, found(store, keys)).willneed()
    assert len(asked) == 2 * ROWS


def test_rows_that_are_nowhere_or_damaged_are_left_to_whoever_reads_them(
    store: TensorStore, keys_of: Any, rows_of: Make, asked: list[Any]
) -> None:
    fill(store, keys_of(ROWS), rows_of(ROWS))
    wanted = found(store, keys_of(ROWS + 5))
    assert (wanted.shard < 0).any()
    for record in store.snapshot().index.shards:
        path = store.storage.local_path(store.shard_files.key(record.name))
        assert path is not None
        path.write_bytes(b"short")
    GatherPlan(store, wanted).willneed()
    assert not asked


def test_of_rows_elsewhere_nothing_is_fetched(keys_of: Any, rows_of: Make) -> None:
    class Far(MemoryStorage):
        """A storage that may be listed, and not read from."""

        reads = 0

        def read(self, *given: Any) -> bytes:
            """Count."""
            self.reads += 1
            return super().read(*given)

    far = Far("foreseen")
    store = TensorStore(far, "cache")
    fill(store, keys_of(ROWS), rows_of(ROWS))
    before = far.reads
    GatherPlan(store, found(store, keys_of(ROWS))).willneed()
    assert far.reads == before


def test_packed_shards_are_not_unpacked_before_they_are_needed(
    tmp_path: Path, keys_of: Any, rows_of: Make, asked: list[Any]
) -> None:
    store = TensorStore(LocalStorage(str(tmp_path)), "cache", compression="zstd")
    fill(store, keys_of(ROWS), rows_of(ROWS))
    GatherPlan(store, found(store, keys_of(ROWS))).willneed()
    assert not asked
    assert store.gather(keys_of(ROWS))["field"].shape[0] == ROWS
    GatherPlan(store, found(store, keys_of(ROWS))).willneed()
    assert not asked


def resident(data: Any) -> Any:
    """Tell which pages of a map are in memory, bool [pages]."""
    pages = -(-data.size // PAGE)
    flags = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(data.ctypes.data)
    if libc.mincore(address, ctypes.c_size_t(data.size), flags):
        pytest.skip("this system does not tell which pages are in memory")
    return np.frombuffer(flags, np.uint8) % 2 == 1


def put_out_of_memory(path: Path) -> Any:
    """Have the system forget a file; return its map, of which no page is in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = mapped_file(path)
    if resident(data).any():
        pytest.skip("this file system keeps its files in memory")
    return data


def test_to_open_a_shard_reads_its_header_and_no_row(
    tmp_path: Path, keys_of: Any, rows_of: Make
) -> None:
    store = TensorStore(LocalStorage(str(tmp_path)), "cache")
    fill(store, keys_of(64), rows_of(64, width=4 * PAGE))
    (record,) = store.snapshot().index.shards
    path = store.storage.local_path(store.shard_files.key(record.name))
    assert path is not None
    store.close()
    data = put_out_of_memory(path)
    store._open.open(record, np.empty(0, np.int64))
    assert np.flatnonzero(resident(data)).tolist() == [0]


def test_the_system_reads_what_was_asked_for_and_nothing_around_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(512 * PAGE))
    data = put_out_of_memory(path)
    willneed(data.ctypes.data + 200 * PAGE + 7, 3 * PAGE)
    assert data[200 * PAGE + 7 : 203 * PAGE + 7].any()  # waits for it
    assert np.flatnonzero(resident(data)).tolist() == [200, 201, 202, 203]
