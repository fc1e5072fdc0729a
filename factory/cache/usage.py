"""What does a cache hold, what of it is of use, and where does it take up room?"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.cache.shard import describe
from factory.cache.store import TensorStore


@dataclass
class Group:
    """Shards of one recipe and one layout, which is a bucket's.

    Attributes:
        recipe: What made the rows, as JSON.
        layout: What a row is made of, in words.
        shards: How many there are.
        rows: Rows in them.
        live: Rows that count: neither dropped, nor written again later.
        nbytes: Bytes of the shards' files.
    """

    recipe: str
    layout: str
    shards: int = 0
    rows: int = 0
    live: int = 0
    nbytes: int = 0

    @property
    def dead(self) -> int:
        """Rows that take up room for nothing."""
        return self.rows - self.live


@dataclass(frozen=True)
class Usage:
    """What a store holds.

    Attributes:
        groups: Its shards by recipe and layout.
        index_bytes: Bytes of its index.
        tiers: Bytes of the copies of all stores that share a tier, by its folder.
    """

    groups: list[Group]
    index_bytes: int
    tiers: Mapping[str, tuple[int, int | None]]


def usage(store: TensorStore) -> Usage:
    """Look at what is published, and at the copies on this machine.

    Raises:
        CacheError: The store was written in a newer format.
        StorageError: It cannot be listed or read.
    """
    store.refresh()
    live = live_rows(store)
    groups: dict[tuple[str, str], Group] = {}
    for record in store.snapshot().index.shards:
        pair = record.recipe, describe(record.layout)
        group = groups.setdefault(pair, Group(*pair))
        group.shards += 1
        group.rows += record.rows
        group.live += live[record.name]
        group.nbytes += record.size
    tiers = {str(tier.folder): (tier.used(), tier.limit) for tier in store.shard_files.tiers}
    index_bytes = sum(max(info.size, 0) for info in store.index_files.listed().values())
    return Usage(sorted(groups.values(), key=lambda group: -group.nbytes), index_bytes, tiers)


def live_rows(store: TensorStore) -> Counter[str]:
    """Return how many rows of each shard count, by its name."""
    snapshot = store.snapshot()
    index, live = snapshot.index, Counter[str]()
    for segment in snapshot.segments.values():
        found = index.find(segment.keys)
        for number, record in enumerate(segment.shards):
            mine = segment.shard == number
            numbers, counts = np.unique(found.shard[mine], return_counts=True)
            for one, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                if one >= 0 and index.shards[one].name == record.name:
                    live[record.name] += count
    return live


def recipe_name(recipe: str) -> str:
    """Return a recipe in a few words: its kind, and the encoder."""
    parts: dict[str, Any] = json.loads(recipe)
    encoder = parts.get("encoder", "")
    if isinstance(encoder, dict):
        names = [encoder.get(name) for name in ("model", "name", "kind", "encoder")]
        encoder = next((str(name) for name in names if name), "")
    return " ".join(text for text in (str(parts.get("kind", "")), str(encoder)) if text) or "?"
