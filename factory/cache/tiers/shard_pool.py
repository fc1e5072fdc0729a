"""Pool of open shards, with the copies that their rows are read from."""

import threading
from collections.abc import Iterable
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.compression import plain_name
from factory.cache.format.segment import ShardRecord
from factory.cache.format.shard import TensorShard, row_bytes
from factory.cache.tiers.local_copy import FileCopy, TierCopy, WholeFile
from factory.cache.tiers.shard_files import PublishedFiles
from factory.errors import CacheError

RowNumbers: TypeAlias = NDArray[np.integer[Any]]


class ShardPool:
    """The shards a store has open, each with the copy that its rows are read from.

    Thread-safe. Shards stay open until they are let go of: all of them where files are local
    or everything fits, else as long as nobody needs their room.
    """

    def __init__(self, files: PublishedFiles) -> None:
        """Hold where the shards lie; nothing is opened."""
        self._files = files
        self._shards: dict[str, tuple[TensorShard, FileCopy]] = {}
        self._opening: dict[str, threading.Lock] = {}
        files.on_need(self.let_go)

    def whole(self, name: str) -> TensorShard | None:
        """Return a shard if it is open and read where it was published: all of it is there."""
        found = self._shards.get(name)
        return found[0] if found is not None and isinstance(found[1], WholeFile) else None

    def ready(self, record: ShardRecord, rows: RowNumbers) -> TensorShard | None:
        """Return a shard if it is open and rows of it are there to be read, integers [n]."""
        found = self._shards.get(plain_name(record.name))
        if found is None:
            return None
        shard, copy = found
        there = isinstance(copy, WholeFile) or copy.has(row_ranges(record, rows))
        return shard if there else None

    def open(self, record: ShardRecord, rows: RowNumbers) -> TensorShard:
        """Return a shard of which some rows, integers [n], are there to be read.

        Raises:
            ObjectNotFoundError: Its file is gone.
            DamagedError: It is not what its index says.
            StorageError: It cannot be fetched or read.
        """
        ranges = row_ranges(record, rows)
        # One thread opens; the others of this shard wait, those of others do not.
        with self._opening.setdefault(record.name, threading.Lock()):
            found = self._shards.get(plain_name(record.name))
            if found is not None and found[1].fetch(ranges):
                return found[0]
            for copy in self._files.copies(record.name, record.size, record.plain_size):
                if copy.fetch(ranges):
                    return self._held(record, copy)
        raise CacheError(f"no copy of {self._files.where(record.name)} has room")

    def prefetch(self, record: ShardRecord, rows: RowNumbers, plan: int, step: int) -> bool:
        """Fetch rows ahead of their use, into a tier; False if none has room.

        Args:
            record: The shard.
            rows: Rows in it, integers [n].
            plan: Which plan will use them.
            step: The step that will.

        Raises:
            ObjectNotFoundError, DamagedError, StorageError: As `open` does.
        """
        ranges = row_ranges(record, rows)
        found = self._shards.get(plain_name(record.name))
        if found is not None and isinstance(found[1], TierCopy) and found[1].has(ranges):
            found[1].needed(plan, step)
            return True
        with self._opening.setdefault(record.name, threading.Lock()):
            found = self._shards.get(plain_name(record.name))
            copies = self._files.copies(record.name, record.size, record.plain_size)
            for copy in copies if found is None else chain([found[1]], copies):
                if not isinstance(copy, TierCopy):
                    return False  # of what is read where it lies nothing need come nearer
                copy.needed(plan, step)
                if copy.fetch(ranges):
                    if found is None:
                        self._held(record, copy)
                    return True
        return False

    def complete(self, names: Iterable[str]) -> bool:
        """Tell whether shards are open and whole."""
        found = [self._shards.get(plain_name(name)) for name in names]
        return all(pair is not None and pair[1].complete for pair in found)

    def discard(self, record: ShardRecord) -> bool:
        """Remove the copies of a shard that is damaged; False if it has none."""
        found = self._shards.pop(plain_name(record.name), None)
        if found is None:
            return self._files.copied  # it was held for a batch alone, and is read anew
        if isinstance(found[1], TierCopy):
            # What another process has fetched anew since is left alone.
            found[1].discard()
        return not isinstance(found[1], WholeFile)

    def keep_only(self, names: set[str]) -> None:
        """Let go of all shards but those named."""
        for name in set(self._shards) - {plain_name(name) for name in names}:
            self.let_go(name)

    def let_go(self, name: str) -> None:
        """Let go of a shard; who reads from it now has it until that is done."""
        self._shards.pop(name, None)

    def close(self) -> None:
        """Let go of everything."""
        self._shards = {}
        self._files.close()

    def _held(self, record: ShardRecord, copy: FileCopy) -> TensorShard:
        where = self._files.where(record.name)
        shard = TensorShard(copy.data, where, record.layout, record.rows, copy.extent)
        if copy.kept:
            self._shards[plain_name(record.name)] = shard, copy
        return shard


def row_ranges(record: ShardRecord, rows: RowNumbers) -> NDArray[np.int64]:
    """Return what must be there to read rows, int64 [ranges, 2]: the header, and each field."""
    start = record.plain_size - record.rows * row_bytes(record.layout)
    ranges = [np.array([[0, start]], np.int64)]
    numbers = np.asarray(rows, np.int64)
    for field in record.layout:
        starts = start + numbers * field.stride
        ranges.append(np.stack([starts, np.full_like(starts, field.stride)], axis=1))
        start += record.rows * field.stride
    found: NDArray[np.int64] = np.concatenate(ranges)
    # An index may lie about its rows; what is beyond the end is met when it is read.
    inside: NDArray[np.int64] = found[found.sum(axis=1) <= record.plain_size]
    return inside
