"""Substitutes: rows of the same bucket that replace one that cannot be used."""

from collections.abc import Collection, Iterator
from typing import Any

from numpy.typing import NDArray

from factory.sampling.permutation import Permutation, derive_key


def substitute_key(seed: int, epoch: int, backend: str, number: int, place: int) -> int:
    """Return the 64-bit key under which `candidates` are drawn for a place of a batch.

    Args:
        seed: Seed of the plan.
        epoch: The epoch, from 0.
        backend: Name of the backend.
        number: Which of the backend's batches in the epoch it is, from 0.
        place: Place in the global batch, from 0.
    """
    return derive_key(seed, epoch, backend, number, place, "substitute")


def candidates(order: NDArray[Any], key: int, avoid: Collection[int] = ()) -> Iterator[int]:
    """Yield every row of a bucket once, in the order in which they may stand in.

    A function of its arguments alone, so that every rank, every resumed run and whoever looks
    back later finds the same substitute. Rows are looked up as they are asked for.

    Args:
        order: Rows of the bucket, integers [n]; may be a memory map.
        key: See `substitute_key`.
        avoid: Rows that come last, such as those already in the batch.
    """
    shuffle = Permutation(len(order), key)
    put_off = []
    for index in range(len(order)):
        row = int(order[shuffle[index]])
        if row in avoid:
            put_off.append(row)
        else:
            yield row
    yield from put_off
