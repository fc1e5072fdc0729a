"""Recipe index: from keys to references of their newest rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys
from factory.cache.format.segment import ShardRecord
from factory.cache.format.shard import RowLayout, row_bytes
from factory.cache.index.sorted_run import SortedRun, halves

# Number of a shard that is none.
_ABSENT = -1


@dataclass(frozen=True, eq=False)
class RowRefs:
    """References to n rows of one store: which shard each lies in, and where.

    Attributes:
        shards: What the shards are numbered after.
        shard: int64 [n], number in `shards`; -1 where there is no row.
        row: Row in the shard, integers [n].
        checksum: uint64 [n].
    """

    shards: Sequence[ShardRecord]
    shard: NDArray[np.int64]
    row: NDArray[Any]
    checksum: NDArray[np.uint64]

    def put(self, places: NDArray[np.int64], others: "RowRefs") -> None:
        """Let the rows at some places be others, of the same shards, whose arrays are that long."""
        self.shard[places], self.row[places] = others.shard, others.row
        self.checksum[places] = others.checksum

    def part(self, some: slice) -> "RowRefs":
        """Return the references at some places."""
        return RowRefs(self.shards, self.shard[some], self.row[some], self.checksum[some])

    @classmethod
    def joined(cls, parts: "Sequence[RowRefs]") -> "RowRefs":
        """Return references of the same shards as one."""
        columns = zip(*((each.shard, each.row, each.checksum) for each in parts), strict=True)
        return cls(parts[0].shards, *map(np.concatenate, columns))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        numbers, counts = np.unique(self.shard, return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        return sum(row_bytes(self.shards[n].layout) * count for n, count in pairs if n >= 0)


@dataclass(frozen=True, eq=False)
class NewestEntries:
    """The newest entry of each key.

    Attributes:
        table: int64 [n], number of the table it is in; -1 where there is none.
        entry: int64 [n], its number there.
    """

    table: NDArray[np.int64]
    entry: NDArray[np.int64]


class RecipeIndex:
    """A snapshot of which keys have rows; never changes.

    Attributes:
        shards: The shards that are there.
        tables: What is searched; where several hold a key, the newest entry counts.
    """

    def __init__(self, tables: Sequence[SortedRun]) -> None:
        """Number the shards of all tables, whose entries must all lie in shards that are there."""
        self.tables = [table for table in tables if len(table)]
        origins = [origin for table in self.tables for origin in table.origins]
        ranks = {rank: n for n, rank in enumerate(sorted({origin.rank for origin in origins}))}
        records = {o.shard.name: o.shard for o in origins if o.shard is not None and o.rows}
        # In order of their names, so that all processes number them alike.
        numbers = {name: n for n, name in enumerate(sorted(records))}
        known: dict[RowLayout, RowLayout] = {}
        self.shards = [
            replace(record, layout=known.setdefault(record.layout, record.layout))
            for record in (records[name] for name in numbers)
        ]
        self._shards = [
            np.array(
                [_ABSENT if o.shard is None else numbers.get(o.shard.name, _ABSENT)
                 for o in table.origins],
                np.int64,
            )
            for table in self.tables
        ]  # fmt: skip
        self._ranks = [np.array([ranks[o.rank] for o in t.origins]) for t in self.tables]

    def find(self, keys: Keys) -> RowRefs:
        """Return where the rows of the keys, V16 [n], lie."""
        count = len(keys)
        if len(self.tables) == 1:  # the usual case, and the path of every batch
            (table,), (shards,) = self.tables, self._shards
            hit, entry = table.search(halves(keys))
            shard = np.where(hit, shards[table.origin[entry]], _ABSENT)
            return RowRefs(self.shards, shard, table.row[entry], table.checksum[entry])
        found = RowRefs(
            self.shards,
            np.full(count, _ABSENT),
            np.zeros(count, np.int64),
            np.zeros(count, np.uint64),
        )
        newest = self.newest(keys)
        for number, (table, shards) in enumerate(zip(self.tables, self._shards, strict=True)):
            here = np.flatnonzero(newest.table == number)
            entry = newest.entry[here]
            found.shard[here] = shards[table.origin[entry]]
            found.row[here] = table.row[entry]
            found.checksum[here] = table.checksum[entry]
        return found

    def newest(self, keys: Keys) -> NewestEntries:
        """Return the newest entry of each key, V16 [n], drops among them."""
        parts, count = halves(keys), len(keys)
        found = NewestEntries(np.full(count, _ABSENT), np.zeros(count, np.int64))
        best = np.full(count, -1)
        for number, (table, ranks) in enumerate(zip(self.tables, self._ranks, strict=True)):
            hit, entry = table.search(parts)
            rank = ranks[table.origin[entry]]
            hit &= rank > best
            np.copyto(best, rank, where=hit)
            np.copyto(found.table, number, where=hit)
            np.copyto(found.entry, entry, where=hit)
        return found
