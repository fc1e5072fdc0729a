"""Damage to bytes: the ways in which files go wrong, drawn from a random source."""

import random
from collections.abc import Callable

Mutation = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, rng: random.Random) -> None:
    data[place(data, rng)] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    at = place(data, rng)
    data[at : at + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, rng.randbytes(4)])


def delete(data: bytearray, rng: random.Random) -> None:
    at = place(data, rng)
    del data[at : at + rng.choice([1, 2, 4, 100])]


def insert(data: bytearray, rng: random.Random) -> None:
    at = place(data, rng)
    data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 100]))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[place(data, rng) :]


def splice(data: bytearray, rng: random.Random) -> None:
    """Put a part of the file at another place in it."""
    first, at = place(data, rng), place(data, rng)
    data[at:at] = data[first : first + rng.randint(1, 200)]


MUTATIONS: list[Mutation] = [flip, overwrite, delete, insert, truncate, splice]


def place(data: bytearray, rng: random.Random) -> int:
    """Return a place in the data: half of the time in its first bytes, where headers are."""
    reach = len(data) if rng.random() < 0.5 else min(len(data), 200)
    return rng.randrange(max(reach, 1)) if data else 0


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the data after one to four mutations."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if made:
            rng.choice(MUTATIONS)(made, rng)
    return bytes(made)
