"""Compaction: many small shards become few full ones.

Nothing is ever changed in place, so this may run beside readers and writers, and be killed
at any moment. New shards are published first: of a row that lies in two shards both are
equal, and the later published counts. The old shards stay until `garbage.collect` removes
those that have been superseded for a while; a store that still looks for one of them then
looks again and finds its rows where they are now. A row keeps the stamp it was written with,
so what another process wrote or dropped meanwhile counts exactly as if nothing had moved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys
from factory.cache.format.segment import (
    NO_NOTE,
    ShardRecord,
    ShardStamp,
    new_segment,
    notes_of,
)
from factory.cache.format.shard import RowLayout, ShardBuilder, matrices_of
from factory.cache.index.sorted_run import SortedRun, keys_of, merged
from factory.cache.maintenance.lease import Lease, alone
from factory.cache.store import TensorStore, UnusableRowsError
from factory.cache.writer import capacity_of, publish_segment, publish_shard
from factory.metrics.stages import progress

# A shard less full than this, by rows that count, is merged with others: two such make at
# most one, so every merge leaves fewer.
_THIN = 0.5
# Rows copied at once: a few MB of latents.
_PIECE = 64
# Segments whose notes are held at once; rows in order of writing need one at a time.
_SEGMENTS = 32


@dataclass
class Compaction:
    """What was done.

    Attributes:
        rows: Rows that lie in new shards now.
        before: Shards they came from.
        after: Shards they lie in.
        problems: Rows that were left where they are, a sentence each.
    """

    rows: int = 0
    before: int = 0
    after: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Such as "1000 rows of 12 shards lie in 3 now"."""
        left = f"; {len(self.problems)} problems" if self.problems else ""
        return f"{self.rows} rows of {self.before} shards lie in {self.after} now{left}"


def compact(store: TensorStore) -> Compaction:
    """Merge thin shards into full ones.

    Rows of one recipe and layout, a bucket's, lie together, in the order of their writing,
    which precomputing makes a bucket's own. Doing it again finds nothing to do. Memory: the
    index, some 40 bytes a row, and one open shard.

    Args:
        store: The store; it is refreshed.

    Raises:
        LeaseTakenError: Another process compacts this store, or removes its garbage.
        StorageError: The storage cannot be read or written to.
    """
    with alone(store.storage, f"{store.folder}/upkeep", "compaction") as lease:
        store.refresh()
        table = merged(store.snapshot().index.tables)
        work = _Work(store, table, lease)
        groups = list(_groups(table))
        with progress("compact cache", sum(map(len, groups)), "rows") as advance:
            for entries in groups:
                work.rewrite(work.chosen(entries))
                advance(len(entries))
        store.refresh()
    return work.done


def _groups(table: SortedRun) -> Iterator[NDArray[np.int64]]:
    """Yield the entries that may share a shard, in the order of their writing."""
    groups: dict[tuple[RowLayout, str], list[int]] = {}
    for number, origin in enumerate(table.origins):
        if origin.shard is not None and origin.rows:
            groups.setdefault((origin.shard.layout, origin.shard.recipe), []).append(number)
    stamps = np.array([origin.stamp for origin in table.origins], np.uint64)
    for numbers in groups.values():
        entries = np.flatnonzero(np.isin(table.origin, numbers))
        yield entries[np.lexsort((table.row[entries], stamps[table.origin[entries]]))]


def _shards(
    table: SortedRun, entries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[ShardRecord]]:
    """Return the number of each entry's shard, and the shards."""
    records: dict[ShardRecord, int] = {}
    numbers = np.zeros(len(table.origins), np.int64)
    for number in np.unique(table.origin[entries]).tolist():
        if (record := table.origins[number].shard) is not None:
            numbers[number] = records.setdefault(record, len(records))
    return numbers[table.origin[entries]], list(records)


@dataclass(eq=False)
class _Work:
    """One compaction: the rows as they were when it began, and what was done since.

    Attributes:
        store: Where rows are read and published.
        table: The newest entry of each key.
        lease: Renewed after each shard.
        done: What was done.
    """

    store: TensorStore
    table: SortedRun
    lease: Lease
    done: Compaction = field(default_factory=Compaction)

    def __post_init__(self) -> None:
        """Hold the notes of the segments read last."""
        self._notes = lru_cache(maxsize=_SEGMENTS)(self._read_notes)

    def chosen(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which entries of a group are written anew: those of thin shards."""
        shard, records = _shards(self.table, entries)
        counts = np.bincount(shard, minlength=len(records))
        thin = counts < _THIN * self._capacity(records[0])
        if thin.sum() == 1 and counts[thin][0] == records[int(thin.argmax())].rows:
            thin[:] = False  # written anew it would be what it is
        return entries[thin[shard]]

    def _capacity(self, record: ShardRecord) -> int:
        """Return how many rows a full shard has, as for who writes new ones."""
        return capacity_of(record.layout, self.store.shard_bytes, self.store.shard_rows)

    def rewrite(self, entries: NDArray[np.int64]) -> None:
        """Publish new shards of some entries, whose rows share recipe and layout."""
        if not len(entries):
            return
        _, records = _shards(self.table, entries)
        self.done.before += len(records)
        capacity = self._capacity(records[0])
        for start in range(0, len(entries), capacity):
            part = entries[start : start + capacity]
            shard = ShardBuilder(records[0].layout, len(part))
            moved = self._copy(part, shard)
            if len(moved):
                self._publish(moved, shard, records[0].recipe)
                self.done.rows += len(moved)
                self.done.after += 1
            self.lease.renew()

    def _copy(self, entries: NDArray[np.int64], shard: ShardBuilder) -> NDArray[np.int64]:
        """Copy rows into an open shard; return which could be.

        What is damaged stays where it is, and is told of as before.
        """
        moved = [entries[:0]]
        for start in range(0, len(entries), _PIECE):
            part = entries[start : start + _PIECE]
            while len(part):
                try:
                    rows = self.store.gather(keys_of(self.table, part))
                except UnusableRowsError as error:
                    self.done.problems.append(str(error))
                    part = np.delete(part, error.places)
                else:
                    shard.append(matrices_of(shard.layout, rows))
                    moved.append(part)
                    break
        return np.concatenate(moved)

    def _publish(self, entries: NDArray[np.int64], shard: ShardBuilder, recipe: str) -> None:
        """Publish a shard and its segment, the rows' own stamps kept."""
        store, table = self.store, self.table
        record = publish_shard(
            store.shard_files, store.next_stamp(), shard, recipe,
            compress=store.compression == "zstd",
        )  # fmt: skip
        origins = [table.origins[number] for number in table.origin[entries].tolist()]
        numbers = {stamp: n for n, stamp in enumerate(dict.fromkeys(o.stamp for o in origins))}
        keys = keys_of(table, entries)
        segment = new_segment(
            store.next_stamp(),
            [ShardStamp(stamp, record) for stamp in numbers],
            keys,
            np.array([numbers[origin.stamp] for origin in origins]),
            np.arange(len(entries)),
            table.checksum[entries],
            self._noted(keys, [origin.segment for origin in origins]),
        )
        publish_segment(store.index_files, segment)

    def _noted(self, keys: Keys, segments: Sequence[str]) -> list[str]:
        """Return what was noted of rows in the segments they were published in."""
        found = [NO_NOTE] * len(keys)
        names = np.array(segments)
        for name in dict.fromkeys(segments):
            here = np.flatnonzero(names == name)
            known, texts = self._notes(name)
            for n, at in zip(here.tolist(), known.searchsorted(keys[here]).tolist(), strict=True):
                found[n] = texts[at]
        return found

    def _read_notes(self, name: str) -> tuple[Keys, list[str]]:
        """Return the keys of a segment, and what was noted of each."""
        segment = self.store.segment(name)
        return segment.keys, notes_of(segment, name)
