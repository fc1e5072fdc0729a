"""Draws of an epoch: the caption a sample has, whether it is dropped, and its conditioning.

All are functions of (seed, epoch, key) alone, so that a file more or less changes no other
sample's. Each has a stream of numbers of its own: whether a caption is dropped says nothing of
which one would have been chosen.
"""

from collections.abc import Sequence
from functools import lru_cache

import xxhash

_MASK = 2**64 - 1
# The golden ratio as a 64-bit fraction, and the multipliers of Stafford's mix 13 (splitmix64).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

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
    """Return the hash's own seed: the numbers one after another through splitmix64's steps."""
    state = 0
    for number in (stream, seed, epoch):
        state = _mix((state ^ (number & _MASK)) + _GOLDEN & _MASK)
    return state


def _mix(state: int) -> int:
    state = (state ^ state >> 30) * _MIX_1 & _MASK
    state = (state ^ state >> 27) * _MIX_2 & _MASK
    return state ^ state >> 31
