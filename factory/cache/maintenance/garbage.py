"""Garbage collection: shards and pieces of the index that nothing needs."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys
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
# Dropped keys held at once, 16 bytes each; all pieces of the index are read once for so many.
_KEYS_AT_ONCE = 2**22

logger = logging.getLogger(__name__)

KeepRecipe = Callable[[Mapping[str, Any]], bool]


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


def garbage(store: TensorStore, keep: KeepRecipe | None = None) -> list[Garbage]:
    """Return what nothing needs.

    That is: shards in no index, shards whose rows all were dropped or lie in a later shard,
    and drops of keys that no older row is left of. Rows of old recipes stay: an old run may
    want them, unless `keep` says otherwise. Memory: the keys of one piece of the index, and a
    bounded number of others.

    Args:
        store: The store; it is refreshed.
        keep: Given the common recipe of a shard, tells whether its rows are kept.

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
        if (shard := origins[0].shard) is None:
            continue
        if segment not in live and _is_there(shard, listed):
            found.append(_superseded(store, index, segment, shard))
        elif keep is not None and not keep(json.loads(shard.recipe)):
            since, reason = _stamp(segment), "is of a recipe that is not kept"
            found.append(Garbage(segment, shard.name, shard.size, since, reason))
    if unread := store.snapshot().unread:
        # It may list the shards that seem to be in no index, or rows that a drop hides.
        logger.warning(
            "shards in no index, and drops, are left alone: %s could not be read",
            store.index_files.where(min(unread)),
        )
        return found
    # Last, for they go only after the rows that they hide.
    return [*_orphans(store, listed), *found, *_needless_drops(store, found)]


def collect(
    store: TensorStore, min_age_s: float = MIN_AGE_S, keep: KeepRecipe | None = None
) -> list[Garbage]:
    """Remove what has been garbage for a while; return what was removed.

    A shard's piece of the index goes first, so that a kill in between leaves a shard in no
    index, which the next call removes.

    Args:
        store: The store; it is refreshed.
        min_age_s: Seconds. Should be longer than runs take to look at the index again, and
            than a shard takes to be written; 0 if nothing else uses the cache.
        keep: See `garbage`.

    Raises:
        LeaseTakenError: Another process compacts this store, or removes its garbage.
        StorageError: The storage cannot be listed, read or written to.
    """
    with alone(store.storage, f"{store.folder}/upkeep", "removal of garbage") as lease:
        old = [one for one in garbage(store, keep) if is_old(one, min_age_s)]
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
    newer = newest_origins(index, _keys(store, segment))
    since = max((_stamp(origin.segment) for origin in newer), default=0)
    reason = "holds no row that counts: all were dropped, or lie in a later shard"
    return Garbage(segment, shard.name, shard.size, since, reason)


def _needless_drops(store: TensorStore, useless: list[Garbage]) -> Iterator[Garbage]:
    """Yield drops whose keys have no row left that they hide."""
    segments = _by_segment(store)
    drops = [name for name, origins in segments.items() if origins[0].shard is None]
    going = {one.segment: one.since for one in useless}
    # Without the drop its rows would count again, so they must not go later than it.
    since = {name: _stamp(name) for name in drops}
    # What stays comes first: one row of it, and a drop need not be looked for any more.
    rows = sorted((name for name in segments if name not in since), key=lambda one: one in going)
    for block in _blocks(store, drops):
        wanted = since.keys() & set(block.names)
        for one in rows if wanted else ():
            for name in block.meeting(_keys(store, one)):
                if one in going and name in since:
                    since[name] = max(since[name], going[one])
                elif one not in going:
                    since.pop(name, None)
                    wanted.discard(name)
            if not wanted:
                break
    for name, when in since.items():
        yield Garbage(name, None, 0, when, "drops keys that have no row left")


@dataclass(frozen=True, eq=False)
class _Block:
    """Some keys that were dropped.

    Attributes:
        names: The drops they are of.
        keys: V16 [n].
        owner: int64 [n], number in `names`.
    """

    names: list[str]
    keys: Keys
    owner: NDArray[np.int64]

    def meeting(self, others: Keys) -> list[str]:
        """Return the drops that have a key in common with a sorted list of keys."""
        if not len(others):
            return []
        at = np.minimum(others.searchsorted(self.keys), len(others) - 1)
        met = np.unique(self.owner[others[at] == self.keys])
        return [self.names[number] for number in met.tolist()]


def _blocks(store: TensorStore, drops: list[str]) -> Iterator[_Block]:
    """Yield all dropped keys, so many at once as may be held."""
    names: list[str] = []
    parts: list[Keys] = []
    for name in drops:
        keys = _keys(store, name)
        while len(keys):
            room = _KEYS_AT_ONCE - sum(map(len, parts))
            names.append(name)
            parts.append(keys[:room].copy())  # not a view, which would hold the whole segment
            keys = keys[room:]
            if len(parts[-1]) == room:
                yield _block(names, parts)
                names, parts = [], []
    if parts:
        yield _block(names, parts)


def _block(names: list[str], parts: list[Keys]) -> _Block:
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return _Block(names, np.concatenate(parts), owner)


def _stamp(segment: str) -> int:
    return int(segment[:16], 16)


def _keys(store: TensorStore, segment: str) -> Keys:
    return store.segment(segment).keys
