"""Draws of an epoch: the caption a sample has, whether it is dropped, and its conditioning.

All are functions of (seed, epoch, key) alone, so that a file more or less changes no other
sample's. Each has a stream of numbers of its own: whether a caption is dropped says nothing of
which one would have been chosen.
"""

from collections.abc import Sequence
from functools import lru_cache

import xxhash

from factory.catalog.arrow_columns import hash_numbers

_CHOICE, _DROPOUT, _CONDITIONING = 1, 2, 3


def choose(captions: Sequence[str], *, seed: int, epoch: int, key: str) -> str:
    """Return the caption a sample has in an epoch.

    Each has equal chance to within n / 2**64.

    Raises:
        ValueError: There is no caption to choose from.
    """
    if not captions:
        raise ValueError(f"{key!r} has no caption to choose from; drop it as 'no caption'")
    if len(captions) == 1:
        return captions[0]
    return captions[_draw(_CHOICE, seed, epoch, key) * len(captions) >> 64]


def dropped(probability: float, *, seed: int, epoch: int, key: str) -> bool:
    """Tell whether a sample goes without its caption in an epoch.

    Args:
        probability: Share of samples that do, from 0 (none) to 1 (all).
        seed: Seed of the run.
        epoch: The epoch.
        key: Storage key of the sample.
    """
    if probability <= 0:
        return False
    # 53 bits are what a float64 holds exactly; the result is below 1.
    return (_draw(_DROPOUT, seed, epoch, key) >> 11) * 2.0**-53 < probability


def conditioning_draw(name: str, *, seed: int, epoch: int, key: str) -> int:
    """Return the 64-bit number of a sample in a set of conditioning; the highest set is used.

    Args:
        name: The set's name.
        seed: Seed of the run.
        epoch: The epoch.
        key: Storage key of the sample.
    """
    # No key holds a NUL, so no two pairs are one text.
    return _draw(_CONDITIONING, seed, epoch, f"{name}\0{key}")


def _draw(stream: int, seed: int, epoch: int, key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(), _start(stream, seed, epoch))


@lru_cache(maxsize=256)  # a run asks for few epochs at a time
def _start(stream: int, seed: int, epoch: int) -> int:
    """Return the hash's own seed."""
    return int(hash_numbers(stream, seed, epoch))
