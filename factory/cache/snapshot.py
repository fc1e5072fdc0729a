"""What had been published when the cache was last looked at?"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import xxhash

from factory.cache.container import DamagedError
from factory.cache.files import Files
from factory.cache.index import SEGMENT_NAME, Index, Segment, ShardRecord, read_segment
from factory.errors import ObjectNotFoundError
from factory.records import UNKNOWN_SIZE, ObjectInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The index as it was at one moment; never changes.

    Attributes:
        index: Which keys have rows, and where.
        segments: The pieces it was made from, by file name.
        problems: What had to be left out, a sentence each; its rows are missing.
    """

    index: Index
    segments: Mapping[str, Segment] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def newest(self) -> int:
        """The highest stamp of a segment."""
        return max((segment.stamp for segment in self.segments.values()), default=0)

    @cached_property
    def identity(self) -> str:
        """Hash of what is published: equal for equal shards and rows, 32 hex digits."""
        state = xxhash.xxh3_128()
        # Numbers of shards follow from the order of the index, so that counts as well.
        for name in (*sorted(self.segments), *(record.name for record in self.index.shards)):
            state.update(name.encode())
        return state.hexdigest()

    @property
    def records(self) -> dict[str, ShardRecord]:
        """Every shard that a segment lists, there or not, by name."""
        return {each.name: each for one in self.segments.values() for each in one.shards}


def take_snapshot(shards: Files, index: Files, known: Mapping[str, Segment]) -> Snapshot:
    """Read what is published now.

    Args:
        shards: The shards' files.
        index: The segments' files.
        known: Segments that were read before, by file name; they are not read again.

    Raises:
        CacheError: A segment was written in a newer format.
        StorageError: The storage cannot be listed or read.
    """
    # Index first: a shard is there before its segment, so none is missed in between.
    listed = index.listed()
    sizes = {name: info.size for name, info in shards.listed().items()}
    problems = [
        f"{index.where(name)} is not of the cache; not read"
        for name in listed
        if not SEGMENT_NAME.fullmatch(name)
    ]
    kept = {name: old for name, old in known.items() if name in listed}
    new = [i for n, i in listed.items() if n not in kept and SEGMENT_NAME.fullmatch(n)]
    kept.update(_read(index, new, problems))
    alive = set()
    for record in (record for segment in kept.values() for record in segment.shards):
        if sizes.get(record.name) in (record.size, UNKNOWN_SIZE):
            alive.add(record.name)
        else:
            problems.append(_lost(shards, record, sizes.get(record.name)))
    if problems:
        logger.warning(
            "cache %s: %d problems, such as: %s", index.folder, len(problems), problems[0]
        )
    return Snapshot(Index(list(kept.values()), alive), kept, tuple(problems))


def _read(
    index: Files, infos: list[ObjectInfo], problems: list[str]
) -> Iterator[tuple[str, Segment]]:
    for info, data in zip(infos, index.all_data(infos), strict=True):
        name = info.key.rpartition("/")[2]
        try:
            if isinstance(data, Exception):
                raise data
            yield name, read_segment(data, name)
        except ObjectNotFoundError:
            continue  # another process removed it since it was listed
        except DamagedError as error:
            problems.append(f"{error}; its rows count as missing; delete it to be rid of this")


def _lost(shards: Files, record: ShardRecord, size: int | None) -> str:
    state = "is gone" if size is None else f"is {size} bytes, not the {record.size} published"
    return f"{shards.where(record.name)} {state}; its {record.rows} rows count as missing"
