"""How do many small shards become few full ones, their rows in the order they are read in?

Nothing is ever changed in place, so this may run beside readers and writers, and be killed
at any moment. New shards are published first: of a row that lies in two shards both are
equal, and the later published counts. The old shards stay until `garbage.collect` removes
those that have been superseded for a while; a store that still looks for one of them then
looks again and finds its rows where they are now. A row keeps the stamp it was written with,
so what another process wrote or dropped meanwhile counts exactly as if nothing had moved.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.lease import Lease, alone
from factory.cache.recipe import Keys, as_keys
from factory.cache.segment import (
    NO_NOTE,
    Place,
    ShardRecord,
    new_segment,
    notes_of,
    read_segment,
)
from factory.cache.shard import Layout, OpenShard, matrices_of
from factory.cache.store import TensorStore, UnusableRowsError
from factory.cache.table import Table, halves, keys_of, merged
from factory.cache.writer import capacity_of, publish_segment, publish_shard
from factory.telemetry import progress

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


def compact(
    store: TensorStore, order: Keys | NDArray[Any] | Sequence[bytes] | None = None
) -> Compaction:
    """Merge thin shards into full ones; with an order, put all rows into it.

    Rows of one recipe and layout, a bucket's, lie together. Without an order they stay in
    that of their writing, which precomputing makes a bucket's own. Doing it again finds
    nothing to do. Memory: the index, some 40 bytes a row, and one open shard.

    Args:
        store: The store; it is refreshed.
        order: Keys as they will be read, such as a catalog's bucket by bucket, V16 [n];
            others come behind them.

    Raises:
        TakenError: Another process compacts this store, or removes its garbage.
        StorageError: The storage cannot be read or written to.
    """
    done = Compaction()
    with alone(store.storage, f"{store.folder}/upkeep", "compaction") as lease:
        store.refresh()
        table = merged(store.snapshot().index.tables)
        wishes = None if order is None else _positions(table, as_keys(order))
        groups = list(_groups(table))
        with progress("compact cache", sum(map(len, groups)), "rows") as advance:
            for entries in groups:
                chosen = _chosen(store, table, entries, wishes)
                advance(len(entries) - len(chosen))
                _rewrite(store, table, chosen, done, lease, advance)
        store.refresh()
    return done


def _positions(table: Table, order: Keys) -> NDArray[np.int64]:
    """Return for each entry of a table its place in an order, int64 [entries]."""
    hit, entry = table.search(halves(order))
    positions = np.full(len(table), len(order))
    # Backwards, so that of a key that comes twice the first place counts.
    places = np.flatnonzero(hit)[::-1]
    positions[entry[places]] = places
    return positions


def _groups(table: Table) -> Iterator[NDArray[np.int64]]:
    """Yield the entries that may share a shard, in the order of their writing."""
    groups: dict[tuple[Layout, str], list[int]] = {}
    for number, origin in enumerate(table.origins):
        if origin.shard is not None and origin.rows:
            groups.setdefault((origin.shard.layout, origin.shard.recipe), []).append(number)
    stamps = np.array([origin.stamp for origin in table.origins], np.uint64)
    for numbers in groups.values():
        entries = np.flatnonzero(np.isin(table.origin, numbers))
        yield entries[np.lexsort((table.row[entries], stamps[table.origin[entries]]))]


def _chosen(
    store: TensorStore,
    table: Table,
    entries: NDArray[np.int64],
    wishes: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Return which entries of a group are written anew, in their new order."""
    shard, records = _shards(table, entries)
    counts = np.bincount(shard, minlength=len(records))
    thin = counts < _THIN * capacity_of(records[0].layout, store.shard_bytes)
    if thin.sum() == 1 and counts[thin][0] == records[int(thin.argmax())].rows:
        thin[:] = False  # written anew it would be what it is
    if wishes is None:
        return entries[thin[shard]]
    sequence = np.argsort(wishes[entries], kind="stable")
    if thin.any() or not _lie_so(table.row[entries[sequence]], shard[sequence]):
        return entries[sequence]
    return entries[:0]


def _shards(
    table: Table, entries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[ShardRecord]]:
    """Return the number of each entry's shard, and the shards."""
    records: dict[ShardRecord, int] = {}
    numbers = np.zeros(len(table.origins), np.int64)
    for number in np.unique(table.origin[entries]).tolist():
        if (record := table.origins[number].shard) is not None:
            numbers[number] = records.setdefault(record, len(records))
    return numbers[table.origin[entries]], list(records)


def _lie_so(rows: NDArray[np.uint32], shard: NDArray[np.int64]) -> bool:
    """Tell whether rows lie in their shards one after the other, each shard read at one go."""
    same = shard[1:] == shard[:-1]
    ascending = rows[1:][same] > rows[:-1][same]
    return bool(ascending.all()) and int((~same).sum()) + 1 == len(np.unique(shard))


def _rewrite(
    store: TensorStore,
    table: Table,
    entries: NDArray[np.int64],
    done: Compaction,
    lease: Lease,
    advance: Callable[[int], None],
) -> None:
    """Publish new shards of some entries, whose rows share recipe and layout."""
    if not len(entries):
        return
    _, records = _shards(table, entries)
    done.before += len(records)
    capacity = capacity_of(records[0].layout, store.shard_bytes)
    notes = _notes_reader(store)
    for start in range(0, len(entries), capacity):
        part = entries[start : start + capacity]
        moved, open_shard = _copied(store, table, part, records[0].layout, done.problems)
        if len(moved):
            _publish(store, table, moved, open_shard, records[0].recipe, notes)
            done.rows += len(moved)
            done.after += 1
        lease.renew()
        advance(len(part))


def _copied(
    store: TensorStore,
    table: Table,
    entries: NDArray[np.int64],
    layout: Layout,
    problems: list[str],
) -> tuple[NDArray[np.int64], OpenShard]:
    """Copy rows into an open shard; return which could be, and the shard.

    What is damaged stays where it is, and is told of as before.
    """
    shard = OpenShard(layout, len(entries))
    moved = []
    for start in range(0, len(entries), _PIECE):
        part = entries[start : start + _PIECE]
        while len(part):
            try:
                rows = store.gather(keys_of(table, part))
            except UnusableRowsError as error:
                problems.append(str(error))
                part = np.delete(part, error.places)
            else:
                shard.append(matrices_of(layout, rows))
                moved.append(part)
                break
    return np.concatenate([entries[:0], *moved]), shard


def _publish(
    store: TensorStore,
    table: Table,
    entries: NDArray[np.int64],
    shard: OpenShard,
    recipe: str,
    notes: Callable[[str], tuple[Keys, list[str]]],
) -> None:
    """Publish a shard and its segment, the rows' own stamps kept."""
    record = publish_shard(
        store.shard_files, store.next_stamp(), shard, recipe, compress=store.compression == "zstd"
    )
    origins = [table.origins[number] for number in table.origin[entries].tolist()]
    numbers = {stamp: n for n, stamp in enumerate(dict.fromkeys(o.stamp for o in origins))}
    keys = keys_of(table, entries)
    segment = new_segment(
        store.next_stamp(),
        [Place(stamp, record) for stamp in numbers],
        keys,
        np.array([numbers[origin.stamp] for origin in origins]),
        np.arange(len(entries)),
        table.checksum[entries],
        _noted(keys, [origin.segment for origin in origins], notes),
    )
    publish_segment(store.index_files, segment)


def _noted(
    keys: Keys, segments: Sequence[str], notes: Callable[[str], tuple[Keys, list[str]]]
) -> list[str]:
    """Return what was noted of rows in the segments they were published in."""
    found = [NO_NOTE] * len(keys)
    names = np.array(segments)
    for name in dict.fromkeys(segments):
        here = np.flatnonzero(names == name)
        of, texts = notes(name)
        for n, at in zip(here.tolist(), of.searchsorted(keys[here]).tolist(), strict=True):
            found[n] = texts[at]
    return found


def _notes_reader(store: TensorStore) -> Callable[[str], tuple[Keys, list[str]]]:
    """Return what reads the keys and notes of a segment, and holds those read last."""

    @lru_cache(maxsize=_SEGMENTS)
    def read(name: str) -> tuple[Keys, list[str]]:
        segment = read_segment(store.index_files.data(name), name)
        return segment.keys, notes_of(segment, name)

    return read
