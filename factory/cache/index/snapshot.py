"""Snapshot of the index: what was published when the storage was last listed."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import xxhash

from factory.cache.format.safetensors_file import Bytes, DamagedError
from factory.cache.format.segment import SEGMENT_NAME, IndexSegment, ShardRecord, read_segment
from factory.cache.index.local_runs import LocalRuns
from factory.cache.index.recipe_index import RecipeIndex
from factory.cache.index.sorted_run import Origin, SortedRun, merged, run_of
from factory.cache.tiers.shard_files import PublishedFiles
from factory.errors import ObjectNotFoundError
from factory.records import UNKNOWN_SIZE, ObjectInfo

logger = logging.getLogger(__name__)

# So many rows are merged at each refresh, in 10 ms and 2 MB; more become a table that lasts.
SMALL = 65_536
# A table takes in those before it that are not this many times as large, so that there are
# few of them and each row is merged again few times: at most 5 for 10 million rows.
_RATIO = 4


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The index as it was at one moment; never changes.

    Attributes:
        index: Which keys have rows, and where.
        segments: Names of the segments it was made from.
        tables: Tables that last, largest first; each covers segments of its own.
        fresh: The segments that are in none of them, by file name.
        origins: Where every row published comes from, those of lost shards among them.
        unread: Names of segments that are there and are not what was published.
        problems: What had to be left out, a sentence each; its rows are missing.
    """

    index: RecipeIndex
    segments: frozenset[str] = frozenset()
    tables: tuple[SortedRun, ...] = ()
    fresh: Mapping[str, IndexSegment] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()
    unread: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()

    @property
    def newest(self) -> int:
        """The highest stamp of a segment; 0 if there is none."""
        return _newest(self.segments)

    @cached_property
    def identity(self) -> str:
        """Hash of what is published and there: 32 hex digits, the same in every process."""
        state = xxhash.xxh3_128()
        for name in (*sorted(self.segments), *sorted(shard.name for shard in self.index.shards)):
            state.update(name.encode())
        return state.hexdigest()

    @property
    def records(self) -> dict[str, ShardRecord]:
        """Every shard that a segment lists, there or not, by name."""
        return {o.shard.name: o.shard for o in self.origins if o.shard is not None}


def newest_stamp(index: PublishedFiles) -> int:
    """Return the highest stamp of a published segment, without reading any; 0 if there is none.

    Raises:
        StorageError: The storage cannot be listed.
    """
    return _newest(name for name in index.listed() if SEGMENT_NAME.fullmatch(name))


def segment_in(index: PublishedFiles, name: str, data: Bytes | None = None) -> IndexSegment:
    """Return a segment; a copy of it that was damaged on this machine is fetched once more.

    Args:
        index: The segments' files.
        name: Its file name.
        data: Its bytes, where they were read already.

    Raises:
        ObjectNotFoundError: There is no such segment.
        DamagedError: It is not what was published.
        CacheError: It was written in another format.
        StorageError: It cannot be read.
    """
    try:
        return read_segment(index.data(name) if data is None else data, name)
    except DamagedError:
        if not index.forget_mirrored(name):
            raise
    return read_segment(index.data(name), name)


def _newest(segments: Iterable[str]) -> int:
    return max((int(name[:16], 16) for name in segments), default=0)


def take_snapshot(
    shards: PublishedFiles, index: PublishedFiles, tables: LocalRuns | None, before: Snapshot | None
) -> Snapshot:
    """Read what is published now; the effort is in proportion to what is new.

    Args:
        shards: The shards' files.
        index: The segments' files.
        tables: Where merged tables are kept; None keeps them in this process's memory.
        before: What was read last; its parts are not read again.

    Raises:
        CacheError: A segment was written in another format.
        StorageError: The storage cannot be listed or read.
    """
    look = _Look(shards, index, before)
    layers = look.usable([*(before.tables if before else ()), *(tables.load() if tables else ())])
    fresh = look.fresh(layers)
    if sum(len(segment.keys) for segment in fresh.values()) > SMALL:
        layers = _settled(look, tables, layers, fresh)
        fresh = look.fresh(layers)
    lost = look.lost([*layers, *_as_tables(fresh)])
    top = merged(_as_tables(fresh), lost)
    problems = look.problems(layers, top)
    if problems:
        logger.warning(
            "cache %s: %d problems, such as: %s", index.folder, len(problems), problems[0]
        )
    origins = tuple(o for t in (*layers, top) for o in t.origins if o.segment in look.listed)
    return Snapshot(
        RecipeIndex([*layers, top]),
        frozenset(look.listed) & frozenset(fresh).union(*(table.segments for table in layers)),
        tuple(layers),
        fresh,
        origins,
        frozenset(look.unsound),
        tuple(problems),
    )


def _as_tables(segments: Mapping[str, IndexSegment]) -> list[SortedRun]:
    return [run_of(name, segment) for name, segment in segments.items()]


def _settled(
    look: "_Look", tables: LocalRuns | None, layers: list[SortedRun], fresh: dict[str, IndexSegment]
) -> list[SortedRun]:
    """Return tables that last and cover what is fresh, too."""
    if tables is None:
        return _stacked(look, layers, fresh)
    with tables.locked():
        # Another process may have merged meanwhile what this one is about to.
        layers = look.usable([*layers, *tables.load()])
        fresh = look.fresh(layers)
        if sum(len(segment.keys) for segment in fresh.values()) <= SMALL:
            return layers
        layers = _stacked(look, layers, fresh)
        layers[-1] = tables.keep(layers[-1])
        tables.prune(layers, look.listed, look.began_ns)
    return layers


def _stacked(
    look: "_Look", layers: list[SortedRun], fresh: dict[str, IndexSegment]
) -> list[SortedRun]:
    """Put what is fresh on top as one table, with the layers below that are not far larger."""
    parts, layers = _as_tables(fresh), list(layers)
    rows = sum(len(part) for part in parts)
    while layers and len(layers[-1]) < _RATIO * rows:
        parts.append(layers.pop())
        rows += len(parts[-1])
    return [*layers, merged(parts, look.lost(parts))]


class _Look:
    """One look at the storage, and what it says of tables and segments."""

    def __init__(
        self, shards: PublishedFiles, index: PublishedFiles, before: Snapshot | None
    ) -> None:
        self._shards, self._index = shards, index
        self.began_ns = time.time_ns()
        # Index first: a shard is there before its segment, so none is missed in between.
        found = index.listed()
        self._sizes = {name: info.size for name, info in shards.listed().items()}
        self._foreign = [name for name in found if not SEGMENT_NAME.fullmatch(name)]
        self.listed = {name: info for name, info in found.items() if SEGMENT_NAME.fullmatch(name)}
        self._read = dict(before.fresh) if before else {}
        self.unsound: dict[str, str] = {}

    def usable(self, tables: Iterable[SortedRun]) -> list[SortedRun]:
        """Return those that tell the truth now, largest first, no segment in two of them."""
        chosen: list[SortedRun] = []
        covered: set[str] = set()
        for table in sorted(tables, key=len, reverse=True):
            here = table.segments & self.listed.keys()
            if here and not here & covered and self._holds(table):
                chosen.append(table)
                covered |= here
        return chosen

    def fresh(self, layers: Sequence[SortedRun]) -> dict[str, IndexSegment]:
        """Return the segments that no table covers."""
        covered: set[str] = set().union(*(table.segments for table in layers))
        wanted = [name for name in self.listed if name not in covered]
        new = [self.listed[n] for n in wanted if n not in self._read and n not in self.unsound]
        self._read.update(self._segments(new))
        return {name: self._read[name] for name in wanted if name in self._read}

    def lost(self, tables: Iterable[SortedRun]) -> set[str]:
        """Return the names of shards that are not there as published."""
        records = (origin.shard for table in tables for origin in table.origins)
        return {record.name for record in records if record and not self._there(record)}

    def problems(self, layers: Sequence[SortedRun], top: SortedRun) -> list[str]:
        """Return what is wrong, a sentence each."""
        problems = [
            f"{self._index.where(name)} is not of the cache; not read" for name in self._foreign
        ]
        problems.extend(self.unsound.values())
        lost = [
            origin
            for table in (*layers, top)
            for origin in table.origins
            if origin.segment in self.listed and not self._there(origin.shard)
        ]
        if lost:
            # A shard that was collected since the index was listed has lost its segment first.
            still = self._index.listed()
            named = {o.shard: o.segment for o in lost if o.shard is not None and o.segment in still}
            problems.extend(self._lost_sentence(*pair) for pair in named.items())
        return problems

    def _holds(self, table: SortedRun) -> bool:
        """Tell whether merging the table's segments now would give the same entries."""
        for origin in table.origins:
            is_listed = origin.segment in self.listed
            if origin.rows and not (is_listed and self._there(origin.shard)):
                return False  # rows that these superseded may count again
            was_lost = origin.shard is not None and origin.shard.name in table.dead
            if was_lost and is_listed and self._there(origin.shard):
                return False  # the shard has come back
        return True

    def _there(self, record: ShardRecord | None) -> bool:
        """Tell whether a shard is there as published; a drop, which has none, always is."""
        return record is None or self._sizes.get(record.name) in (record.size, UNKNOWN_SIZE)

    def _segments(self, infos: list[ObjectInfo]) -> Iterator[tuple[str, IndexSegment]]:
        for info, data in zip(infos, self._index.all_data(infos), strict=True):
            name = info.key.rpartition("/")[2]
            try:
                if isinstance(data, Exception):
                    raise data
                yield name, segment_in(self._index, name, data)
            except ObjectNotFoundError:
                continue  # another process removed it since it was listed
            except DamagedError as error:
                self.unsound[name] = (
                    f"{error}; its rows count as missing; delete {self._index.where(name)} to be "
                    "rid of this"
                )

    def _lost_sentence(self, record: ShardRecord, segment: str) -> str:
        size = self._sizes.get(record.name)
        state = "is gone" if size is None else f"is {size} bytes, not the {record.size} published"
        where = self._shards.where(record.name)
        return (
            f"{where} {state}; its {record.rows} rows count as missing; if it is not to come back, "
            f"delete {self._index.where(segment)} to be rid of this"
        )
