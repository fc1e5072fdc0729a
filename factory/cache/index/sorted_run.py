"""Sorted runs: the keys of many segments merged, so that one search finds a row."""

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import KEY_DTYPE, Keys
from factory.cache.format.safetensors_file import Bytes, DamagedError, header
from factory.cache.format.segment import (
    SEGMENT_NAME,
    IndexSegment,
    ShardRecord,
    checksum_text,
    columns_of,
    records_from_json,
    records_json,
    whole,
)
from factory.errors import CacheError
from factory.storage.mapped_length import Extent

# Both halves of a key as numbers: comparing those is several times as quick as comparing bytes.
Halves: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.uint64]]

_COLUMNS = {"heads": "U64", "tails": "U64", "checksum": "U64", "origin": "U32", "row": "U32"}
_TYPES: dict[str, np.dtype[Any]] = {"U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32)}


@dataclass(frozen=True)
class Origin:
    """Where rows of a table come from.

    Attributes:
        stamp: Order among the rows of one key.
        segment: Name of the segment they were published in; decides between equal stamps.
        shard: The shard; None says that the keys were dropped.
        rows: How many entries of the table are from here; the rest were superseded.
    """

    stamp: int
    segment: str
    shard: ShardRecord | None
    rows: int

    @property
    def rank(self) -> tuple[int, str]:
        """What orders the rows of one key; the highest counts."""
        return self.stamp, self.segment


@dataclass(frozen=True, eq=False)
class SortedRun:
    """Sorted keys, each once, and where their newest rows lie; never changes.

    Attributes:
        segments: Names of the segments it was merged from.
        dead: Names of the shards whose rows were left out, for they were not there.
        origins: What the entries' origins are numbered after.
        heads: uint64 [n], first halves of the keys, ascending.
        tails: uint64 [n], second halves.
        origin: uint32 [n], number in `origins`.
        row: uint32 [n], row in the shard.
        checksum: uint64 [n].
        twins: Whether any two keys share their first half.
        extent: The file that the columns are mapped from; None where they are in memory.
    """

    segments: frozenset[str]
    dead: frozenset[str]
    origins: tuple[Origin, ...]
    heads: NDArray[np.uint64]
    tails: NDArray[np.uint64]
    origin: NDArray[np.uint32]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]
    twins: bool
    extent: Extent | None = None

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self.heads)

    def search(self, keys: Halves) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Return for each key whether it is here, and at which entry."""
        if self.extent is not None and self.extent.shrunk:
            raise CacheError(
                f"{self.extent.path} was cut while it was in use; delete it and start again: it is "
                "merged anew"
            )
        heads, tails = keys
        if not len(self):
            return np.zeros(len(heads), np.bool_), np.zeros(len(heads), np.intp)
        entry = np.minimum(self.heads.searchsorted(heads), len(self.heads) - 1)
        hit = (self.heads[entry] == heads) & (self.tails[entry] == tails)
        if self.twins:
            self._look_on(keys, hit, entry)
        return hit, entry

    def _look_on(self, keys: Halves, hit: NDArray[np.bool_], entry: NDArray[np.intp]) -> None:
        """Correct the keys that lie behind another of the same first half."""
        last = len(self.heads) - 1
        for n in np.flatnonzero(~hit).tolist():
            at = int(entry[n])
            while at < last and self.heads[at] == keys[0][n] and self.tails[at] != keys[1][n]:
                at += 1
            entry[n] = at
            hit[n] = self.heads[at] == keys[0][n] and self.tails[at] == keys[1][n]


def halves(keys: Keys) -> Halves:
    """Return both halves of keys, V16 [n], as numbers in the keys' own order: uint64 [n] each."""
    both = keys.view(">u8").reshape(-1, 2)
    return both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64)


def keys_of(table: SortedRun, entries: NDArray[Any]) -> Keys:
    """Return the keys of some entries of a table, V16 [n]."""
    both = np.stack([table.heads[entries], table.tails[entries]], axis=1)
    return both.astype(">u8").reshape(-1).view(KEY_DTYPE)


def run_of(name: str, segment: IndexSegment) -> SortedRun:
    """Return one segment as a table.

    Args:
        name: The segment's file name.
        segment: The segment.
    """
    heads, tails = halves(segment.keys)
    counts = np.bincount(segment.place, minlength=len(segment.places)).tolist()
    return SortedRun(
        segments=frozenset([name]),
        dead=frozenset(),
        origins=tuple(
            Origin(place.stamp, name, place.shard, count)
            for place, count in zip(segment.places, counts, strict=True)
        ),
        heads=heads,
        tails=tails,
        origin=segment.place,
        row=segment.row,
        checksum=segment.checksum,
        twins=_has_twins(heads),
    )


def merged(tables: Sequence[SortedRun], dead: AbstractSet[str] = frozenset()) -> SortedRun:
    """Return one table with the newest row of each key.

    Args:
        tables: What to merge.
        dead: Names of shards that are not there; rows in them do not count.
    """
    origins = [origin for table in tables for origin in table.origins]
    ranks = {rank: n for n, rank in enumerate(sorted({origin.rank for origin in origins}))}
    rank = np.array([ranks[origin.rank] for origin in origins], np.int64)
    gone = np.array([o.shard is not None and o.shard.name in dead for o in origins], np.bool_)
    starts = np.cumsum([0, *(len(table.origins) for table in tables)])
    origin = _joined(
        [t.origin + np.uint32(start) for t, start in zip(tables, starts, strict=False)], np.uint32
    )
    heads = _joined([table.heads for table in tables], np.uint64)
    tails = _joined([table.tails for table in tables], np.uint64)
    order = _order(heads, tails, rank[origin])
    order = order[~gone[origin[order]]] if gone.any() else order
    heads, tails = heads[order], tails[order]
    # Of one key's rows the newest comes last.
    last = np.ones(len(order), np.bool_)
    last[:-1] = (heads[1:] != heads[:-1]) | (tails[1:] != tails[:-1])
    if not last.all():
        order, heads, tails = order[last], heads[last], tails[last]
    origin = origin[order]
    counts = np.bincount(origin, minlength=len(origins)).tolist()
    lost = {o.shard.name for o in origins if o.shard is not None and o.shard.name in dead}
    return SortedRun(
        segments=frozenset().union(*(table.segments for table in tables)),
        dead=frozenset(lost).union(*(table.dead for table in tables)),
        origins=tuple(
            Origin(o.stamp, o.segment, o.shard, count)
            for o, count in zip(origins, counts, strict=True)
        ),
        heads=heads,
        tails=tails,
        origin=origin,
        row=_joined([table.row for table in tables], np.uint32)[order],
        checksum=_joined([table.checksum for table in tables], np.uint64)[order],
        twins=_has_twins(heads),
    )


def _joined(parts: list[NDArray[Any]], kind: type[Any]) -> NDArray[Any]:
    return np.concatenate(parts, dtype=kind) if parts else np.empty(0, kind)


def _has_twins(heads: NDArray[np.uint64]) -> bool:
    return bool((heads[1:] == heads[:-1]).any())


def _order(
    heads: NDArray[np.uint64], tails: NDArray[np.uint64], rank: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Return what sorts entries by key, and those of one key by rank."""
    # A stable sort merges runs that are sorted already, which the tables are.
    order = np.argsort(heads, kind="stable")
    same = heads[order[1:]] == heads[order[:-1]]
    if same.any():
        # Only entries that share their first half with another need to be looked at whole.
        shared = np.zeros(len(order), np.bool_)
        shared[1:] |= same
        shared[:-1] |= same
        part = order[shared]
        order[shared] = part[np.lexsort((rank[part], tails[part], heads[part]))]
    return order


def pack_run(table: SortedRun) -> Bytes:
    """Return the table as a safetensors file, uint8 [bytes]."""
    shards = tuple(dict.fromkeys(o.shard for o in table.origins if o.shard is not None))
    segments = sorted(table.segments)
    shard_numbers = {shard: n for n, shard in enumerate(shards)}
    segment_numbers = {name: n for n, name in enumerate(segments)}
    content = json.dumps(
        {
            **records_json(shards),
            "segments": segments,
            "dead": sorted(table.dead),
            "origins": [
                [o.stamp, segment_numbers[o.segment],
                 None if o.shard is None else shard_numbers[o.shard], o.rows]
                for o in table.origins
            ],
            "twins": table.twins,
        }
    )  # fmt: skip
    count = len(table)
    shapes = [(name, code, (count,)) for name, code in _COLUMNS.items()]
    # The checksum is of fixed length: the header is made twice, first to know its size.
    head = len(header(shapes, {"content": content, "checksum": "0" * 16}))
    data = np.empty(head + sum(_TYPES[code].itemsize for _, code, _ in shapes) * count, np.uint8)
    end = head
    for name, code in _COLUMNS.items():
        start, end = end, end + _TYPES[code].itemsize * count
        data[start:end].view(_TYPES[code])[:] = getattr(table, name)
    checksum = checksum_text(content, data[head:].data)
    top = header(shapes, {"content": content, "checksum": checksum})
    data[:head] = np.frombuffer(top, np.uint8)
    return data


def read_run(data: Bytes, source: str) -> SortedRun:
    """Return the table in a file, its arrays views of the file's bytes.

    Raises:
        DamagedError: The file is not what was written.
        CacheError: It was written in another format.
    """
    content, columns = columns_of(data, tuple(_COLUMNS), source)
    try:
        shards = records_from_json(content)
        segments = [str(name) for name in content["segments"]]
        origins = tuple(
            Origin(
                whole(stamp),
                segments[whole(segment)],
                None if shard is None else shards[whole(shard)],
                whole(rows),
            )
            for stamp, segment, shard, rows in content["origins"]
        )
        dead, twins = frozenset(str(name) for name in content["dead"]), bool(content["twins"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DamagedError(f"{source} is damaged: {error}") from error
    if len({column.size for column in columns.values()}) != 1 or not all(
        SEGMENT_NAME.fullmatch(name) for name in segments
    ):
        raise DamagedError(f"{source} is damaged: its columns differ in length")
    return SortedRun(frozenset(segments), dead, origins, twins=twins, extent=None, **columns)
