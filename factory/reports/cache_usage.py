"""Usage of a cache: what it holds by store, recipe and bucket, and what is of use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factory.cache.format.shard import describe
from factory.cache.maintenance.live_rows import live_rows
from factory.cache.store import TensorStore
from factory.encoder.kinds import is_toy
from factory.errors import ObjectNotFoundError
from factory.workspace import Workspace


@dataclass
class UsageGroup:
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
class CacheUsage:
    """What a store holds.

    Attributes:
        storage: Identity of the storage it lies in.
        folder: Its folder there.
        groups: Its shards by recipe and layout.
        index_bytes: Bytes of its index.
        tiers: Bytes of the copies of all stores that share a tier, by its folder.
    """

    storage: str
    folder: str
    groups: list[UsageGroup]
    index_bytes: int
    tiers: Mapping[str, tuple[int, int | None]]


def usage(store: TensorStore) -> CacheUsage:
    """Look at what is published, and at the copies on this machine.

    Raises:
        CacheError: The store was written in a newer format.
        StorageError: It cannot be listed or read.
    """
    store.refresh()
    live = live_rows(store)
    groups: dict[tuple[str, str], UsageGroup] = {}
    listed = store.shard_files.listed()
    # Those of which no row counts take up room, too, until garbage is collected.
    for record in store.snapshot().records.values():
        if record.name not in listed:
            continue
        pair = record.recipe, describe(record.layout)
        group = groups.setdefault(pair, UsageGroup(*pair))
        group.shards += 1
        group.rows += record.rows
        group.live += live[record.name]
        group.nbytes += record.size
    tiers = {str(tier.folder): (tier.used(), tier.limit) for tier in store.shard_files.tiers}
    index_bytes = sum(max(info.size, 0) for info in store.index_files.listed().values())
    ordered = sorted(groups.values(), key=lambda group: -group.nbytes)
    return CacheUsage(store.storage.identity, store.folder, ordered, index_bytes, tiers)


def held(place: Workspace) -> dict[str, int]:
    """Return the bytes of every store that a cache has, by name, whoever wrote it.

    Raises:
        StorageError: It cannot be listed.
    """
    folder = f"{place.prefix.strip('/')}/tensors"
    found: dict[str, int] = {}
    try:
        for info in place.storage.objects(folder):
            name = info.key[len(folder) + 1 :].partition("/")[0]
            if name.startswith("."):  # hidden, and so no store
                continue
            found[name] = found.get(name, 0) + max(info.size, 0)
    except ObjectNotFoundError:
        return {}
    return found


def is_empty(store: TensorStore) -> bool:
    """Tell whether nothing at all was ever written to a store.

    Raises:
        StorageError: It cannot be listed.
    """
    return not (store.index_files.listed() or store.shard_files.listed())


def recipe_name(recipe: str) -> str:
    """Return a recipe in a few words: its kind, and the encoder, with a mark of toys."""
    parts: dict[str, Any] = json.loads(recipe)
    # An encoder's fingerprint is its name and version, and its settings in brackets.
    encoder = str(parts.get("encoder", "")).partition("(")[0]
    toy = "(toy)" if is_toy(encoder) else ""
    return " ".join(text for text in (str(parts.get("kind", "")), encoder, toy) if text) or "?"
