"""Seeded permutations in constant memory, by a Feistel network."""

import math
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# Up to here a shuffle is a sorted table of random keys: exactly uniform, 32 KiB at most.
# Above, both halves of the network have at least 64 values, enough for its rounds to mix.
TABLE_LIMIT = 4096
# Each half is rewritten three times. At n = 4097, the worst case, chi-square tests over 12,000
# shuffles see no bias of positions or neighbours; with four rounds they see one.
ROUNDS = 6
# Odd multipliers of the splitmix64 generator, known to spread bits well.
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1
# The same as numpy scalars, made once because making one costs more than using it.
_GAMMA, _FIRST, _SECOND = np.uint64(GAMMA), np.uint64(FIRST), np.uint64(SECOND)
_HALF, _QUARTER = np.uint64(32), np.uint64(16)


def derive_key(*parts: int | str) -> int:
    """Hash parts such as (seed, epoch, backend, bucket, pass) to 64 bits.

    The same on every machine and in every process. Types and lengths are part of the hash:
    (1, 23), (12, 3) and ("1", 23) give three keys.
    """
    text = "".join(
        f"s{len(part)}:{part};" if isinstance(part, str) else f"i{part:d};" for part in parts
    )
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def random_words(first: int, count: int, key: int) -> NDArray[np.uint64]:
    """Return a stretch of the random sequence that a key names (splitmix64).

    Args:
        first: Position of the first word, 0 or more.
        count: Number of words.
        key: 64-bit key of the sequence.

    Returns:
        uint64 [count]; a word depends on its position only, not on where the stretch starts.
    """
    words = np.arange(first, first + count, dtype=np.uint64)
    words *= _GAMMA
    words += np.uint64(key & WORD)
    return mix_words(words)


def mix_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix words as splitmix64 mixes its counter (Stafford's mix 13), in place."""
    words ^= words >> np.uint64(30)
    words *= _FIRST
    words ^= words >> np.uint64(27)
    words *= _SECOND
    words ^= words >> np.uint64(31)
    return words


class Permutation:
    """A seeded bijection of [0, n) in constant memory.

    Small n use a table of sorted random keys, large n a `FeistelNetwork`. Equal (n, key) give equal
    bijections on every machine and with every numpy.
    """

    def __init__(self, n: int, key: int) -> None:
        """Name the size and the 64-bit key.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n must be 0 or more, got {n}")
        self.n = n
        self.key = key & WORD

    def __repr__(self) -> str:
        """Show size and key."""
        return f"Permutation(n={self.n}, key={self.key:#x})"

    def __len__(self) -> int:
        """Return n."""
        return self.n

    def __getitem__(self, index: int) -> int:
        """Return the image of one index.

        Raises:
            IndexError: `index` is outside [0, n).
        """
        if not 0 <= index < self.n:
            raise IndexError(f"index {index} is outside [0, {self.n})")
        if self.n <= TABLE_LIMIT:
            return int(self.table[index])
        return self.network.image(index)

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of many indices.

        Args:
            indices: int64 of any shape, each inside [0, n).

        Returns:
            int64 of the same shape.

        Raises:
            IndexError: An index is outside [0, n).
        """
        self._check(indices)
        if self.n <= TABLE_LIMIT:
            return self.table[indices]
        return self.network.images(indices)

    def inverse(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices whose images are given: `perm.inverse(perm(i)) == i`.

        Args:
            images: int64 of any shape, each inside [0, n).

        Returns:
            int64 of the same shape.

        Raises:
            IndexError: An image is outside [0, n).
        """
        self._check(images)
        if self.n <= TABLE_LIMIT:
            return np.argsort(self.table, kind="stable")[images]
        return self.network.indices(images)

    def _check(self, indices: NDArray[np.int64]) -> None:
        # Seen as unsigned, a negative index is a huge one: a single comparison does.
        if indices.size and indices.astype(np.int64).view(np.uint64).max() >= self.n:
            raise IndexError(f"an index is outside [0, {self.n})")

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """The images of all indices, for an n up to `TABLE_LIMIT`: int64 [n]."""
        words = random_words(0, self.n, self.key)
        return np.argsort(words, kind="stable").astype(np.int64)

    @cached_property
    def network(self) -> "FeistelNetwork":
        """The same bijection without a table, for a larger n."""
        return FeistelNetwork(self.n, self.key)


def images_by_row(
    permutations: Sequence[Permutation], indices: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return images under one permutation a row, computed together.

    Args:
        permutations: m of them.
        indices: int64 [m, B]; those of row r are inside [0, n) of the r-th permutation.

    Returns:
        int64 [m, B], what `permutations[r](indices[r])` gives in each row.
    """
    images = np.empty_like(indices)
    large = [row for row, each in enumerate(permutations) if each.n > TABLE_LIMIT]
    if large:
        networks = [permutations[row].network for row in large]
        images[large] = _images_by_row(networks, indices[large].astype(np.uint64))
    for row, each in enumerate(permutations):
        if each.n <= TABLE_LIMIT:
            images[row] = each.table[indices[row]]
    return images


def _images_by_row(
    networks: "Sequence[FeistelNetwork]", indices: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return images uint64 [m, B] under one network a row; overwrites the indices."""
    shapes = np.array([(each.n, each.lows, each.highs) for each in networks], dtype=np.uint64)
    words = np.array([each.words for each in networks])
    images = _forth_by_row(indices, shapes, words)
    while (outside := images >= shapes[:, :1]).any():
        rows = outside.any(axis=1)
        again = _forth_by_row(images[rows], shapes[rows], words[rows])
        images[rows] = np.where(outside[rows], again, images[rows])
    return images


def _forth_by_row(
    indices: NDArray[np.uint64], shapes: NDArray[np.uint64], words: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Do for rows [m, B] what `FeistelNetwork._forth` does; shapes [m, 3] are n, lows and highs."""
    lows, highs = shapes[:, 1:2], shapes[:, 2:3]
    high, low = np.divmod(indices, lows)
    for number in range(ROUNDS):
        if number % 2:
            low += _hash(high, words[:, number, None])
            low %= lows
        else:
            high += _hash(low, words[:, number, None])
            high %= highs
    high *= lows
    high += low
    return high


class FeistelNetwork:
    """A Feistel network on pairs (high, low) with high * low just above n.

    Every round adds a hash of one half to the other, which is undone by subtracting it, so
    each round is a bijection of the pairs. An image of n or more is sent through again until
    it falls below n (cycle walking, which keeps the bijection); that happens to at most one
    index in sqrt(n).
    """

    def __init__(self, n: int, key: int) -> None:
        """Choose halves for [0, n), n at least 1, and round keys from the 64-bit key."""
        self.n = n
        self.lows = math.isqrt(n - 1) + 1
        self.highs = -(-n // self.lows)
        self.words = random_words(0, ROUNDS, key)
        self._words = list(self.words)
        self._keys = [int(word) for word in self._words]
        self._lows, self._highs = np.uint64(self.lows), np.uint64(self.highs)

    def image(self, index: int) -> int:
        """Return the image of one index (the scalar twin of `images`, 20 times as fast)."""
        image = self._image(index)
        while image >= self.n:
            image = self._image(image)
        return image

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images of many indices, int64 of the same shape."""
        images = self._forth(indices.astype(np.uint64))
        while (outside := images >= self.n).any():
            images[outside] = self._forth(images[outside])
        return images.astype(np.int64)

    def indices(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of many images, int64 of the same shape."""
        indices = self._back(images.astype(np.uint64))
        while (outside := indices >= self.n).any():
            indices[outside] = self._back(indices[outside])
        return indices.astype(np.int64)

    def _image(self, index: int) -> int:
        high, low = divmod(index, self.lows)
        for number, key in enumerate(self._keys):
            word = (((high if number % 2 else low) + key) * FIRST) & WORD
            word = (((word ^ (word >> 32)) * SECOND) & WORD) >> 16
            if number % 2:
                low = (low + word) % self.lows
            else:
                high = (high + word) % self.highs
        return high * self.lows + low

    def _forth(self, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = np.divmod(indices, self._lows)
        for number, key in enumerate(self._words):
            if number % 2:
                low += _hash(high, key)
                low %= self._lows
            else:
                high += _hash(low, key)
                high %= self._highs
        high *= self._lows
        high += low
        return high

    def _back(self, images: NDArray[np.uint64]) -> NDArray[np.uint64]:
        high, low = np.divmod(images, self._lows)
        for number in reversed(range(ROUNDS)):
            key = self._words[number]
            if number % 2:
                low += self._lows - _hash(high, key) % self._lows
                low %= self._lows
            else:
                high += self._highs - _hash(low, key) % self._highs
                high %= self._highs
        return high * self._lows + low


def _hash(half: NDArray[np.uint64], key: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash one half of the pairs to 48 bits, enough to reduce to any half without bias."""
    word = half + key
    word *= _FIRST
    word ^= word >> _HALF
    word *= _SECOND
    word >>= _QUARTER
    return word
