"""Which backend serves each step while weights fall?"""

import heapq

import numpy as np
from numpy.typing import NDArray

# A fading stretch is played at once, and is cut here: 60 ms and a few MiB.
FADE_BLOCK = 2**16
# A share is a whole number of parts of (2n - 2) * 2**32, so that both of Tijdeman's bounds are
# whole, and sums over a block stay exact in 63 bits for up to 10,000 backends.
FINENESS = 2**32


def factors(
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


def on_time(weights: NDArray[np.float64]) -> NDArray[np.int64]:
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
