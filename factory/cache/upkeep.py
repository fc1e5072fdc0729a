"""Is what a cache holds sound, where did a row come from, and how is one forgotten?"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.container import DamagedError
from factory.cache.index import SHARD_NAME, Segment, ShardRecord, read_segment
from factory.cache.recipe import Keys, as_keys
from factory.cache.store import TensorStore, by_shard
from factory.cache.writer import publish_segment
from factory.errors import CacheError, ObjectNotFoundError
from factory.telemetry import progress


def drop(store: TensorStore, keys: Keys | NDArray[Any] | Sequence[bytes]) -> None:
    """Forget the rows of these keys; rows written afterwards count again.

    Raises:
        StorageError: The storage cannot be written to.
    """
    store.refresh()  # so that this comes after every row that is there
    names = np.unique(as_keys(keys))
    zeros = np.zeros(len(names), np.uint64)
    publish_segment(store.index_files, store.next_stamp(), None, names, zeros)
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
    for segment_name, segment in store.snapshot().segments.items():
        if [record.name for record in segment.shards] == [name]:
            store.index_files.delete(segment_name)
    store.shard_files.delete(name)
    store.refresh()


def recorded(store: TensorStore, label: str) -> list[tuple[bytes, dict[str, Any]]]:
    """Return (key, common recipe) of every row that was stored under a label.

    Dropped rows and rows of old recipes are among them: they tell what a key that is
    missing now differs in.
    """
    text = label.encode(errors="surrogateescape")
    segments = store.snapshot().segments.values()
    return [pair for segment in segments for pair in _labelled(segment, text)]


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
    problems.extend(_unsound_segments(store))
    with progress("verify cache", len(records), "shards") as advance:
        for segment in store.snapshot().segments.values():
            for number, at in by_shard(segment.shard).items():
                if number == len(segment.shards):
                    continue  # dropped keys
                record = segment.shards[number]
                if record.name in listed:
                    problems.extend(_unsound_rows(store, record, segment, at))
                advance(1)
    return problems


def _unsound_segments(store: TensorStore) -> list[str]:
    problems = []
    for name in store.snapshot().segments:
        try:
            read_segment(store.index_files.data(name), name, thorough=True)
        except (DamagedError, ObjectNotFoundError) as error:
            problems.append(str(error))
    return problems


def _unsound_rows(
    store: TensorStore, record: ShardRecord, segment: Segment, at: list[int]
) -> list[str]:
    try:
        rows, checksums = segment.row[at].tolist(), segment.checksum[at].tolist()
        bad = store.opened(record).unsound(rows, checksums)
    except (DamagedError, ObjectNotFoundError) as error:
        return [f"{error}; {store.mend(record)}"]
    if not bad:
        return []
    where = store.shard_files.where(record.name)
    return [f"{len(bad)} rows of {where} are damaged, first row {bad[0]}; {store.mend(record)}"]


def _labelled(segment: Segment, text: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (key, recipe) of the rows with a label."""
    lengths = np.diff(segment.label_ends, prepend=np.uint64(0))
    for n in np.flatnonzero(lengths == len(text)).tolist():
        end = int(segment.label_ends[n])
        if segment.labels[end - len(text) : end].tobytes() == text:
            recipe = segment.shards[int(segment.shard[n])].recipe
            yield segment.keys[n].tobytes(), json.loads(recipe)
