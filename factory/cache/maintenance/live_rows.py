"""Counts of the rows of each shard that are live: the newest of their keys.

The index itself may be mapped from the disk; merging its tables to look at them would hold
every key of the cache in memory.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys
from factory.cache.format.segment import ShardRecord
from factory.cache.index.recipe_index import RecipeIndex
from factory.cache.index.sorted_run import Origin, SortedRun, keys_of
from factory.cache.store import TensorStore

# Keys looked up at once: some 50 MB with what is found, and few enough calls to cost nothing.
CHUNK = 2**20


def counted(index: RecipeIndex) -> Iterator[tuple[Origin, int]]:
    """Yield where rows come from, each with how many of them count."""
    for number, table in enumerate(index.tables):
        if len(index.tables) == 1:  # nothing can have superseded its entries
            yield from ((origin, origin.rows) for origin in table.origins)
            return
        counts = np.zeros(len(table.origins), np.int64)
        for start in range(0, len(table), CHUNK):
            entries = np.arange(start, min(start + CHUNK, len(table)))
            own = index.newest(keys_of(table, entries)).table == number
            counts += np.bincount(table.origin[entries[own]], minlength=len(counts))
        yield from zip(table.origins, counts.tolist(), strict=True)


def live_rows(store: TensorStore) -> Counter[str]:
    """Return how many rows of each shard count, by its name."""
    live = Counter[str]()
    for origin, rows in counted(store.snapshot().index):
        if origin.shard is not None and rows:
            live[origin.shard.name] += rows
    return live


def newest_origins(index: RecipeIndex, keys: Keys) -> list[Origin]:
    """Return where the newest entries of some keys come from, each place once."""
    newest = index.newest(keys)
    found: list[Origin] = []
    for number, table in enumerate(index.tables):
        here = newest.entry[newest.table == number]
        found.extend(_origins(table, here))
    return found


def counting(
    index: RecipeIndex, record: ShardRecord, keys: Keys, rows: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Tell which rows of a shard count: no newer row took their place, and nobody dropped them.

    Args:
        index: What counts.
        record: The shard.
        keys: The rows' keys, V16 [n].
        rows: Their numbers in the shard, [n].

    Returns:
        bool [n].
    """
    number = next((n for n, shard in enumerate(index.shards) if shard.name == record.name), None)
    if number is None:
        return np.zeros(len(keys), np.bool_)
    found = index.find(keys)
    counts: NDArray[np.bool_] = (found.shard == number) & (found.row == rows)
    return counts


def _origins(table: SortedRun, entries: NDArray[np.int64]) -> Iterator[Origin]:
    return (table.origins[number] for number in np.unique(table.origin[entries]).tolist())
