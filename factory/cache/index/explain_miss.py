"""Explanation of a cache miss: in what a wanted row differs from stored ones."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from factory.cache.format.recipe import canonical, recipe_keys
from factory.cache.format.segment import note, notes_of
from factory.cache.store import TensorStore

# What a part is called that one side has and the other lacks.
_NOTHING = "nothing"


@dataclass(frozen=True)
class StoredRow:
    """A row that was stored once.

    Attributes:
        key: Its key, 16 bytes.
        common: What it has in common with the rows of its shard.
        parts: Its own part of the recipe; None if its writer did not note it.
    """

    key: bytes
    common: Mapping[str, Any]
    parts: Mapping[str, Any] | None


def stored_rows(store: TensorStore, label: str) -> list[StoredRow]:
    """Return every row that was stored under a label, the newest last.

    Dropped rows and rows of old recipes are among them: they tell what a key that is
    missing now differs in. All segments are read, as long as that takes.

    Raises:
        DamagedError: A segment is not what was published.
        StorageError: A segment cannot be read.
    """
    return [row for name in sorted(store.snapshot().segments) for row in _in(store, name, label)]


def explain_miss(
    store: TensorStore, label: str, common: Mapping[str, object], row: Mapping[str, object]
) -> list[str]:
    """Say why a row is, or is not, in the store: what differs from what is stored.

    Args:
        store: Where it should be.
        label: Its storage key or caption, as its writer was given it.
        common: The common recipe that rows have today.
        row: The row's own part of the recipe, today.

    Returns:
        Sentences: one if the row is there or its label unknown, else one for each part
        that differs from the stored row that differs least.

    Raises:
        CacheError: A part is not JSON, or the index has another format.
        StorageError: The index cannot be read.
    """
    keys = recipe_keys(common, [row])
    name = keys.tobytes().hex()
    if store.contains(keys)[0]:
        return [f"{label!r} is stored as made today (key {name})"]
    rows = stored_rows(store, label)
    if any(one.key == keys.tobytes() for one in rows):
        return [f"{label!r} was stored as made today and its row was dropped or lost (key {name})"]
    if not rows:
        return [f"no row of {label!r} was ever stored; the precompute stage encodes it"]
    differing = [_differences(one, common, row) for one in reversed(rows)]
    return min(differing, key=len)


def _differences(
    one: StoredRow, common: Mapping[str, object], row: Mapping[str, object]
) -> list[str]:
    found = list(_compared("", one.common, json.loads(canonical(common))))
    if one.parts is not None:
        found.extend(_compared("", one.parts, json.loads(canonical(row))))
    elif not found:
        found.append("a part of its own differs, and its writer did not note those")
    return found


def _compared(path: str, old: Any, new: Any) -> Iterator[str]:
    """Yield a sentence for each part in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            below = f"{path}.{name}" if path else name
            yield from _compared(below, old.get(name, _NOTHING), new.get(name, _NOTHING))
    elif old != new:
        yield f"{path} differs: was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    return _NOTHING if value is _NOTHING else json.dumps(value, ensure_ascii=False)


def _in(store: TensorStore, name: str, label: str) -> Iterator[StoredRow]:
    segment = store.segment(name)
    if not segment.notes_size:
        return
    # Looked for as text: taking apart the few that match is a hundred times as quick.
    start = note(label, None).removesuffix("null]")
    for entry, text in enumerate(notes_of(segment, name)):
        shard = segment.places[int(segment.place[entry])].shard
        if text.startswith(start) and shard is not None:
            parts = json.loads(text)[1]
            yield StoredRow(segment.keys[entry].tobytes(), json.loads(shard.recipe), parts)
