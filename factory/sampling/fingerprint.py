"""Fingerprints of plans, and what differs between two of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.identity import class_identity

# Rows hashed at a time: 8 MiB, so a memory-mapped order is read but not held.
HASHED_ROWS = 2**20


def hash_rows(rows: NDArray[Any]) -> str:
    """Hash row ids in their order: 32 hex digits, the same on every machine."""
    digest = blake2b(digest_size=16)
    for first in range(0, len(rows), HASHED_ROWS):
        part = np.ascontiguousarray(rows[first : first + HASHED_ROWS], dtype="<i8")
        digest.update(part.data)
    return digest.hexdigest()


def hash_description(description: Mapping[str, Any]) -> str:
    """Hash a nested mapping of JSON values, whatever the order of its keys: 32 hex digits."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def describe_strategy(strategy: object) -> dict[str, Any]:
    """Describe a weighting or selection by its class and its settings.

    They are the fields of a dataclass, and of others the public attributes.
    """
    kind = type(strategy)
    if is_dataclass(strategy) and not isinstance(strategy, type):
        settings = asdict(strategy)
    else:
        attributes = getattr(strategy, "__dict__", {})
        settings = {name: each for name, each in attributes.items() if name[0] != "_"}
    return {"class": class_identity(kind), **settings}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what changed between two descriptions of plans.

    Args:
        old: What `Plan.describe` gave, such as from a checkpoint.
        new: What it gives now.

    Returns:
        A line for each differing value, such as "backends.web.repeats: 0 -> 2", sorted by key.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            lines.append(f"{key}: {before[key]!r} -> (removed)")
        elif key not in before:
            lines.append(f"{key}: (absent) -> {after[key]!r}")
        elif before[key] != after[key]:
            lines.append(f"{key}: {before[key]!r} -> {after[key]!r}")
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
