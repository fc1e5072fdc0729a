"""Verification of a cache, and removal of shards from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.safetensors_file import DamagedError
from factory.cache.format.segment import (
    SHARD_NAME,
    IndexSegment,
    ShardRecord,
)
from factory.cache.maintenance.live_rows import counting
from factory.cache.store import TensorStore
from factory.errors import CacheError, ObjectNotFoundError
from factory.metrics.stages import progress
from factory.records import UNKNOWN_SIZE


def drop_shard(store: TensorStore, name: str) -> None:
    """Remove a shard, whatever its state, with the segments that list no other.

    Raises:
        CacheError: That is not a shard's name.
        StorageError: The storage cannot be written to.
    """
    if not SHARD_NAME.fullmatch(name):
        raise CacheError(
            f"{name!r} is not the name of a shard; `cache.py verify` shows those at fault"
        )
    store.refresh()
    listing: dict[str, set[str | None]] = {}
    for origin in store.snapshot().origins:
        shard = None if origin.shard is None else origin.shard.name
        listing.setdefault(origin.segment, set()).add(shard)
    for segment, shards in listing.items():
        if shards == {name}:
            store.index_files.delete(segment)
    store.shard_files.delete(name)
    store.refresh()


@dataclass
class VerifyReport:
    """What is not as it should be, a sentence each.

    Attributes:
        problems: Damage: rows that count are damaged or gone.
        leftovers: What nothing reads any more, so that its damage harms nothing.
    """

    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def inspect(store: TensorStore) -> VerifyReport:
    """Compare every file and row with its checksum; tell damage from what nothing reads.

    Raises:
        CacheError: A file was written in a newer format.
        StorageError: The storage cannot be listed or read.
    """
    store.refresh()
    found = VerifyReport(problems=store.problems)
    listed = store.shard_files.listed()
    records = store.snapshot().records
    for name in sorted(set(listed) - set(records)):
        where = store.shard_files.where(name)
        if not SHARD_NAME.fullmatch(name):
            found.problems.append(f"{where} is not of the cache; not read")
            continue
        found.leftovers.append(
            f"{where} is in no index and not read: who wrote it was stopped, and then `gc` "
            "removes it, or is at it now"
        )
    with progress("verify cache", len(records), "shards") as advance:
        for name in sorted(store.snapshot().segments):
            try:
                segment = store.segment(name)
            except (DamagedError, ObjectNotFoundError) as error:
                found.problems.append(str(error))
                continue
            for record, at in by_record(segment):
                # What is gone, or of another size, was told already.
                info = listed.get(record.name)
                if info is not None and info.size in (record.size, UNKNOWN_SIZE):
                    _look(store, segment, record, at, found)
                advance(1)
    return found


def by_record(segment: IndexSegment) -> Iterator[tuple[ShardRecord, NDArray[np.int64]]]:
    """Yield each shard of a segment, with the numbers of the entries that lie in it."""
    shards = segment.shards
    numbers = [-1 if place.shard is None else shards.index(place.shard) for place in segment.places]
    shard = np.array(numbers)[segment.place]
    for number, record in enumerate(shards):
        yield record, np.flatnonzero(shard == number)


def _look(
    store: TensorStore,
    segment: IndexSegment,
    record: ShardRecord,
    at: NDArray[np.int64],
    found: VerifyReport,
) -> None:
    """Compare the rows of a shard, which some entries of a segment list, with their checksums."""
    where = store.shard_files.where(record.name)
    try:
        shard = store.opened(record)
        bad = shard.unsound(segment.row[at].tolist(), segment.checksum[at].tolist())
    except (DamagedError, ObjectNotFoundError) as error:
        if counting(store.snapshot().index, record, segment.keys[at], segment.row[at]).any():
            found.problems.append(f"{error}; {store.mend(record)}")
        else:
            found.leftovers.append(f"{error}; no row of it counts any more: `gc` removes it")
        return
    if not bad:
        return
    at = at[np.isin(segment.row[at], bad)]
    counts = counting(store.snapshot().index, record, segment.keys[at], segment.row[at])
    if counts.any():
        rows = segment.row[at[counts]]
        found.problems.append(f"{_damaged(rows, where)}; {store.mend(record)}")
    if not counts.all():
        rows = segment.row[at[~counts]]
        found.leftovers.append(
            f"{_damaged(rows, where)}, and superseded or dropped: `compact` and `gc` remove them "
            "once most of the shard is"
        )


def _damaged(rows: NDArray[np.uint32], where: str) -> str:
    some = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
    return f"{some} of {where} {'is' if len(rows) == 1 else 'are'} damaged, first row {rows.min()}"
