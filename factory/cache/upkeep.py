"""Is what a cache holds sound, and how is a row forgotten?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.container import DamagedError
from factory.cache.recipe import Keys, as_keys
from factory.cache.segment import (
    SHARD_NAME,
    Place,
    Segment,
    ShardRecord,
    new_segment,
    read_segment,
)
from factory.cache.store import TensorStore
from factory.cache.writer import publish_segment
from factory.errors import CacheError, ObjectNotFoundError
from factory.records import UNKNOWN_SIZE
from factory.telemetry import progress


def drop(store: TensorStore, keys: Keys | NDArray[Any] | Sequence[bytes]) -> None:
    """Forget the rows of these keys; rows written afterwards count again.

    Raises:
        StorageError: The storage cannot be written to.
    """
    store.refresh()  # so that this comes after every row that is there
    names = np.unique(as_keys(keys))
    zeros, stamp = np.zeros(len(names), np.uint64), store.next_stamp()
    segment = new_segment(stamp, [Place(stamp, None)], names, zeros, zeros, zeros)
    publish_segment(store.index_files, segment)
    store.refresh()


def drop_shard(store: TensorStore, name: str) -> None:
    """Remove a shard, whatever its state, with the segments that list no other.

    Raises:
        CacheError: That is not a shard's name.
        StorageError: The storage cannot be written to.
    """
    if not SHARD_NAME.fullmatch(name):
        raise CacheError(f"{name!r} is not the name of a shard; verify() shows those at fault")
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


def verify(store: TensorStore) -> list[str]:
    """Compare every file and row with its checksum; return what is wrong, a sentence each.

    Raises:
        CacheError: A file was written in a newer format.
        StorageError: The storage cannot be listed or read.
    """
    store.refresh()
    problems = store.problems
    listed = store.shard_files.listed()
    records = store.snapshot().records
    for name in sorted(set(listed) - set(records)):
        problems.append(
            f"{store.shard_files.where(name)} is in no index: a run was killed while it "
            "wrote it, or writes it now; it is not read, and may be deleted if no run is on"
        )
    with progress("verify cache", len(records), "shards") as advance:
        for name in sorted(store.snapshot().segments):
            try:
                segment = read_segment(store.index_files.data(name), name)
            except (DamagedError, ObjectNotFoundError) as error:
                problems.append(str(error))
                continue
            for record, rows, checksums in by_record(segment):
                # What is gone, or of another size, was told already.
                info = listed.get(record.name)
                if info is not None and info.size in (record.size, UNKNOWN_SIZE):
                    problems.extend(_unsound_rows(store, record, rows, checksums))
                advance(1)
    return problems


def by_record(
    segment: Segment,
) -> Iterator[tuple[ShardRecord, NDArray[np.uint32], NDArray[np.uint64]]]:
    """Yield each shard of a segment, with the rows in it and their checksums."""
    shards = segment.shards
    numbers = [-1 if place.shard is None else shards.index(place.shard) for place in segment.places]
    shard = np.array(numbers)[segment.place]
    for number, record in enumerate(shards):
        at = np.flatnonzero(shard == number)
        yield record, segment.row[at], segment.checksum[at]


def _unsound_rows(
    store: TensorStore,
    record: ShardRecord,
    rows: NDArray[np.uint32],
    checksums: NDArray[np.uint64],
) -> list[str]:
    try:
        bad = store.opened(record).unsound(rows.tolist(), checksums.tolist())
    except (DamagedError, ObjectNotFoundError) as error:
        return [f"{error}; {store.mend(record)}"]
    if not bad:
        return []
    where = store.shard_files.where(record.name)
    return [f"{len(bad)} rows of {where} are damaged, first row {bad[0]}; {store.mend(record)}"]
