"""Garbage collection: shards and pieces of the index that nothing needs."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from factory.cache.format.segment import SHARD_NAME, ShardRecord
from factory.cache.index.recipe_index import RecipeIndex
from factory.cache.index.sorted_run import Origin
from factory.cache.maintenance.lease import alone
from factory.cache.maintenance.live_rows import counted, newest_origins
from factory.cache.store import TensorStore
from factory.records import UNKNOWN_SIZE, ObjectInfo

# A row that is found was looked up in an index read at most this long ago, and a shard that
# is being published has its index by then.
MIN_AGE_S = 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Garbage:
    """A shard, or a piece of the index, that nothing needs.

    Attributes:
        segment: Name of the piece of the index that goes; None if the shard is in none.
        shard: Name of the shard that goes; None if the piece only dropped keys.
        size: Bytes of the shard's file.
        since: When it became of no use, microseconds since 1970.
        reason: Why it is of no use.
    """

    segment: str | None
    shard: str | None
    size: int
    since: int
    reason: str


def garbage(store: TensorStore) -> list[Garbage]:
    """Return what nothing needs: shards in no index, and those without a row that counts.

    Rows of old recipes stay: an old run may want them. Memory: the keys of one piece of the
    index.

    Args:
        store: The store; it is refreshed.

    Raises:
        StorageError: The storage cannot be listed or read.
    """
    store.refresh()
    index = store.snapshot().index
    live = {origin.segment for origin, rows in counted(index) if rows}
    listed = store.shard_files.listed()
    found = []
    for segment, origins in _by_segment(store).items():
        # The pieces of an index list one shard each, and drops list none.
        shard = origins[0].shard
        if shard is not None and segment not in live and _is_there(shard, listed):
            found.append(_superseded(store, index, segment, shard))
    if unread := store.snapshot().unread:
        # It may list the shards that seem to be in no index.
        logger.warning(
            "shards in no index are left alone: %s could not be read",
            store.index_files.where(min(unread)),
        )
        return found
    return [*_orphans(store, listed), *found]


def collect(store: TensorStore, min_age_s: float = MIN_AGE_S) -> list[Garbage]:
    """Remove what has been garbage for a while; return what was removed.

    A shard's piece of the index goes first, so that a kill in between leaves a shard in no
    index, which the next call removes.

    Args:
        store: The store; it is refreshed.
        min_age_s: Seconds. Should be longer than runs take to look at the index again, and
            than a shard takes to be written; 0 if nothing else uses the cache.

    Raises:
        LeaseTakenError: Another process compacts this store, or removes its garbage.
        StorageError: The storage cannot be listed, read or written to.
    """
    with alone(store.storage, f"{store.folder}/upkeep", "removal of garbage") as lease:
        old = [one for one in garbage(store) if is_old(one, min_age_s)]
        for one in old:
            if one.segment is not None:
                store.index_files.delete(one.segment)
            if one.shard is not None:
                store.shard_files.delete(one.shard)
            lease.renew()
    store.refresh()
    return old


def is_old(one: Garbage, min_age_s: float) -> bool:
    """Tell whether something has been of no use for so many seconds."""
    # A clock that ran ahead gives times to come; who asks for no age means these, too.
    return min_age_s == 0 or one.since <= time.time_ns() // 1000 - round(min_age_s * 1e6)


def _by_segment(store: TensorStore) -> dict[str, list[Origin]]:
    segments: dict[str, list[Origin]] = {}
    for origin in store.snapshot().origins:
        segments.setdefault(origin.segment, []).append(origin)
    return segments


def _is_there(shard: ShardRecord, listed: Mapping[str, ObjectInfo]) -> bool:
    """Tell whether a shard is there as published: one that is lost may come back."""
    info = listed.get(shard.name)
    return info is not None and info.size in (shard.size, UNKNOWN_SIZE)


def _orphans(store: TensorStore, listed: Mapping[str, ObjectInfo]) -> Iterator[Garbage]:
    records = store.snapshot().records
    for name, info in listed.items():
        if name not in records and SHARD_NAME.fullmatch(name):
            yield Garbage(None, name, info.size, int(name[:16], 16), "is in no index")


def _superseded(
    store: TensorStore, index: RecipeIndex, segment: str, shard: ShardRecord
) -> Garbage:
    """Return a shard every row of which has a newer one, or was dropped."""
    newer = newest_origins(index, store.segment(segment).keys)
    since = max((_stamp(origin.segment) for origin in newer), default=0)
    reason = "holds no row that counts: all were dropped, or lie in a later shard"
    return Garbage(segment, shard.name, shard.size, since, reason)


def _stamp(segment: str) -> int:
    return int(segment[:16], 16)
