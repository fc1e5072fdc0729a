"""Selections: the backend each step draws from, while weights are constant and while they fade."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.sampling.permutation import random_words

# Shares are whole multiples of 1 / total. Weights that need a larger total than this are
# rounded to it: wrong by less than 0.001 batch after a billion steps, and every sum of debts
# stays exact in float64 (53 bits) for up to 1000 backends.
FINEST_TOTAL = 2**40
# Steps played through in one go: a chunk costs a millisecond alone, a microsecond among many.
CHUNK = 1024
# Fewer chunks than this are played one by one, which is then faster than side by side.
FEW_CHUNKS = 16
# Replays of wrongly guessed chunks side by side; measured mixtures need 1 to 3, and what is
# still wrong then is replayed one by one.
REPLAYS = 8


class Selection(Protocol):
    """How weights become a sequence of backends; any frozen dataclass like this will do.

    Attributes:
        seeded: Whether the sequence depends on the key, so that epochs differ. Where it does
            not, one sequence is kept for all epochs.
    """

    @property
    def seeded(self) -> bool:
        """Whether the sequence depends on the key."""
        ...

    def choices(
        self, weights: NDArray[np.float64], counts: NDArray[np.int64], step: int, length: int,
        key: int,
    ) -> NDArray[np.integer]:  # fmt: skip
        """Choose for `length` steps in a row; a pure function of its arguments.

        A long range may be asked for in parts: choosing for 10 steps, counting them in, and
        choosing for 5 more must give what choosing for 15 gives.

        Args:
            weights: float64 [n], all above 0, one for each backend that takes part.
            counts: int64 [n], batches each has given since these weights began to hold.
            step: Step the first choice is for, from 0: of the epoch, or of the run where
                epochs are of fixed length. With sliders, the turn of their group.
            length: Number of choices, 1 or more.
            key: 64-bit key, another for every seed and epoch.

        Returns:
            Integers [length], each inside [0, n).
        """
        ...


@dataclass(frozen=True)
class Random:
    """An independent draw for each step; shares are met on average only."""

    persisted_as: ClassVar[str] = "factory.sampling.selection.Random"

    @property
    def seeded(self) -> bool:
        """True: every epoch draws anew."""
        return True

    def choices(
        self, weights: NDArray[np.float64], counts: NDArray[np.int64], step: int, length: int,
        key: int,
    ) -> NDArray[np.integer]:  # fmt: skip
        """Draw by weight, from (key, step) alone; see `Selection.choices`."""
        del counts
        edges = np.cumsum(weights)[:-1] / math.fsum(weights)
        chosen: NDArray[np.int64] = np.searchsorted(edges, _draws(step, length, key), side="right")
        return chosen

    def fading(self, weights: NDArray[np.float64], step: int, key: int) -> NDArray[np.integer]:
        """Draw by the weights of each step; see `slider_groups.FadingSelection`."""
        sums = np.cumsum(weights, axis=1)
        draws = _draws(step, len(weights), key)[:, None]
        passed: NDArray[np.int64] = np.count_nonzero(draws >= sums[:, :-1] / sums[:, -1:], axis=1)
        return passed


@dataclass(frozen=True)
class Balanced:
    """Keep every backend within one batch of its share at every step.

    Tijdeman's rule for the chairman assignment problem: of the backends owed at least
    1 / (2n - 2) batch, the one whose debt is soonest to exceed the allowed 1 - 1 / (2n - 2);
    the earlier in order if two are equal. No rule can promise less deviation.
    """

    persisted_as: ClassVar[str] = "factory.sampling.selection.Balanced"

    @property
    def seeded(self) -> bool:
        """False: the sequence follows from the weights."""
        return False

    def choices(
        self, weights: NDArray[np.float64], counts: NDArray[np.int64], step: int, length: int,
        key: int,
    ) -> NDArray[np.integer]:  # fmt: skip
        """Choose the most urgent backend at each step; see `Selection.choices`."""
        del step, key
        if len(weights) == 1:
            return np.zeros(length, dtype=np.uint8)
        shares = whole_shares(weights.tolist())
        total = sum(shares)
        done = int(counts.sum())
        owed = [
            share * done - total * int(count)
            for share, count in zip(shares, counts.tolist(), strict=True)
        ]
        # After `total` steps every backend has exactly its share and the sequence repeats.
        round_trip = _Debts(shares).play(done, owed, min(length, total))
        return np.resize(round_trip, length)

    def round_trip(self, weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the shares as whole numbers: given so much, nobody is owed anything."""
        return np.array(whole_shares(weights.tolist()), dtype=np.int64)

    def fading(self, weights: NDArray[np.float64], step: int, key: int) -> NDArray[np.integer]:
        """Choose the most urgent batch at each step, however shares change.

        Counts stay within one batch of the sum of the shares since the stretch began.
        """
        del step, key
        return play_fading(weights)


def _draws(step: int, length: int, key: int) -> NDArray[np.float64]:
    """Return float64 [length] in [0, 1), each from (key, its step) alone."""
    # 53 random bits make a float64 that is uniform to its last bit.
    words = random_words(step, length, key) >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Return whole numbers in the ratio of the weights, each at least 1.

    Exact as the weights are written in decimal (0.1 and 0.2 give 1 and 2) where their sum
    stays below `FINEST_TOTAL`, otherwise rounded to that total.
    """
    written = [Fraction(repr(float(weight))) for weight in weights]
    denominator = math.lcm(*(part.denominator for part in written))
    whole = [int(part * denominator) for part in written]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= FINEST_TOTAL:
        return [number // divisor for number in whole]
    total = math.fsum(weights)
    return [max(1, round(weight / total * FINEST_TOTAL)) for weight in weights]


class _Debts:
    """Plays Tijdeman's rule on what each backend is owed, in units of 1 / total batch.

    What is owed is a whole number held in float64, so sums and comparisons are exact and the
    result is the same on every machine. Far ranges are played in chunks side by side, each
    from a guess of what is owed at its start; chunks whose guess proves wrong are replayed
    from the end of the one before, until all ends meet. The result is exactly that of
    playing step by step.
    """

    def __init__(self, shares: list[int]) -> None:
        """Take the shares of two or more backends, as whole numbers."""
        self.shares = shares
        self.total = sum(shares)
        self.least = self.total / (2 * len(shares) - 2)
        self.most = self.total - self.least
        self.dtype = np.min_scalar_type(len(shares) - 1)

    def play(self, done: int, owed: list[int], length: int) -> NDArray[np.integer]:
        """Return the choices of `length` steps that follow `done` steps, with `owed` [n] then."""
        chunks = -(-length // CHUNK)
        starts = self._guess([done + CHUNK * number for number in range(chunks)])
        starts[:, 0] = owed
        ends = np.empty_like(starts)
        chosen = np.empty((CHUNK, chunks), dtype=self.dtype)
        stale = np.ones(chunks, dtype=bool)
        for _ in range(REPLAYS):
            if np.count_nonzero(stale) <= FEW_CHUNKS:
                break
            chosen[:, stale], ends[:, stale] = self._side_by_side(starts[:, stale])
            stale[1:] = (starts[:, 1:] != ends[:, :-1]).any(axis=0)
            stale[0] = False
            starts[:, 1:] = ends[:, :-1]
        for number in range(chunks):
            if number and (starts[:, number] != ends[:, number - 1]).any():
                starts[:, number] = ends[:, number - 1]
                stale[number] = True
            if stale[number]:
                chosen[:, number], ends[:, number] = self._one_by_one(starts[:, number])
        return chosen.T.reshape(-1)[:length]

    def _guess(self, steps: list[int]) -> NDArray[np.float64]:
        """Guess what is owed after some steps, float64 [n, len(steps)].

        A backend is owed what its share leaves over whole batches, less one batch for those served
        ahead: as many as make the sum zero, taken to be those that would be due first.
        """
        left = np.array(
            [[share * step % self.total for step in steps] for share in self.shares], np.float64
        )
        ahead = np.rint(left.sum(axis=0) / self.total)
        due = (self.total - left) / np.array(self.shares, np.float64)[:, None]
        due[left == 0] = np.inf
        place = np.argsort(np.argsort(due, axis=0, kind="stable"), axis=0)
        left -= self.total * (place < ahead)
        return left

    def _side_by_side(
        self, owed: NDArray[np.float64]
    ) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Play many chunks at once: choices [CHUNK, m] and what is owed at their ends [n, m]."""
        owed = owed.copy()
        shares = np.array(self.shares, np.float64)[:, None]
        columns = np.arange(owed.shape[1])
        chosen = np.empty((CHUNK, owed.shape[1]), dtype=self.dtype)
        slack = np.empty_like(owed)
        for step in range(CHUNK):
            owed += shares
            np.subtract(self.most, owed, out=slack)
            slack /= shares
            slack[owed < self.least] = np.inf
            chosen[step] = slack.argmin(axis=0)
            owed[chosen[step], columns] -= self.total
        return chosen, owed

    def _one_by_one(
        self, start: NDArray[np.float64]
    ) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Play one chunk: choices [CHUNK] and what is owed at its end [n]."""
        owed: list[float] = start.tolist()
        shares = [float(share) for share in self.shares]
        order = range(len(shares))
        least, most = self.least, self.most
        chosen = []
        for _ in range(CHUNK):
            best, soonest = -1, math.inf
            for index in order:
                debt = owed[index] = owed[index] + shares[index]
                if debt >= least and (slack := (most - debt) / shares[index]) < soonest:
                    best, soonest = index, slack
            owed[best] -= self.total
            chosen.append(best)
        return np.array(chosen, self.dtype), np.array(owed)


# A fading stretch is played at once, and is cut here: 60 ms and a few MiB.
FADE_BLOCK = 2**16
# A share is a whole number of parts of (2n - 2) * 2**32, so that both of Tijdeman's bounds are
# whole, and sums over a block stay exact in 63 bits for up to 10,000 backends.
FINENESS = 2**32


def fade_factors(
    starts: NDArray[np.int64], ends: NDArray[np.int64], first: int, count: int
) -> NDArray[np.float64]:
    """Return what is left of each weight at some steps in a row, 0 to 1.

    Args:
        starts: Last step at which each backend has its whole weight, int64 [k]; may be below 0.
        ends: First step at which nothing is left of it, int64 [k], above `starts`.
        first: The first step.
        count: Number of steps.

    Returns:
        float64 [count, k].
    """
    steps = np.arange(first, first + count, dtype=np.int64)[:, None]
    left: NDArray[np.float64] = np.clip((ends - steps) / (ends - starts), 0.0, 1.0)
    return left


def play_fading(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose a backend for each step so that counts stay within one batch of summed shares.

    Tijdeman's rule for shares that change: the n-th batch of a backend is released by the
    step at which it is owed n - 1 + 1 / (2n - 2) batches, and due before it is owed more than
    n - 1 / (2n - 2); of the released ones, the one due first is chosen. A release always lies
    behind the due step of the batch before, so all of them are known beforehand.

    Args:
        weights: float64 [T, n], 0 or more, not all 0 at any step; T up to `FADE_BLOCK`.

    Returns:
        int64 [T], each inside [0, n).
    """
    steps, backends = weights.shape
    if backends == 1:
        return np.zeros(steps, dtype=np.int64)
    parts = 2 * backends - 2
    owed = np.cumsum(_whole(weights, parts * FINENESS), axis=0)
    jobs: list[tuple[int, int, int]] = []
    for backend in range(backends):
        sums = owed[:, backend]
        batch = np.arange(int(sums[-1]) // (parts * FINENESS) + 1) * (parts * FINENESS)
        released = np.searchsorted(sums, batch + FINENESS, side="left")
        due = np.searchsorted(sums, batch + (parts - 1) * FINENESS, side="right")
        jobs += [(at, by, backend) for at, by in zip(released.tolist(), due.tolist(), strict=True)]
    jobs.sort()
    return np.array(_earliest_due(jobs, steps), dtype=np.int64)


def _earliest_due(jobs: list[tuple[int, int, int]], steps: int) -> list[int]:
    """Take, at each step, the released job due first: jobs are (released, due, backend)."""
    chosen: list[int] = []
    ready: list[tuple[int, int]] = []
    place = 0
    for step in range(steps):
        while place < len(jobs) and jobs[place][0] <= step:
            heapq.heappush(ready, (jobs[place][1], jobs[place][2]))
            place += 1
        chosen.append(heapq.heappop(ready)[1])
    return chosen


def _whole(weights: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return shares as whole parts that sum to `total` at every step: int64 [T, n].

    Wrong by less than n parts; the largest takes what rounding leaves. Sums are made in the
    order of the backends, so that they are the same on every machine.
    """
    sums = np.zeros(len(weights))
    for column in weights.T:
        sums = sums + column
    whole = np.floor(weights / sums[:, None] * float(total)).astype(np.int64)
    largest = whole.argmax(axis=1)
    whole[np.arange(len(whole)), largest] += total - whole.sum(axis=1)
    return whole
