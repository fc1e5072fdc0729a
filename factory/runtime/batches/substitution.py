"""Substitution: every place of a batch gets a sample, though some samples cannot be used."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from factory.backends.prepared import UnusableSample

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Substitute:
    """A planned sample that cannot be used, and the one in its place.

    Attributes:
        index: Its place among the rows asked for, from 0.
        row: Its row.
        why: What is wrong with it.
        used: Row of the sample that stands in.
    """

    index: int
    row: int
    why: UnusableSample
    used: int


class TooManyUnusableError(Exception):
    """Substitutes were unusable, too, until too many were met or none was left.

    Attributes:
        met: What is wrong with the samples met, by row.
    """

    def __init__(self, met: dict[int, UnusableSample]) -> None:
        """Keep what was met."""
        super().__init__(f"{len(met)} unusable samples in one batch")
        self.met = met


def fill(
    rows: NDArray[np.int64],
    draw: Callable[[int], Iterator[int]],
    read: Callable[[NDArray[np.int64]], Iterator[Sample | UnusableSample]],
    put: Callable[[int, Sample], None],
    known: MutableMapping[int, UnusableSample],
    allowed: int,
) -> list[Substitute]:
    """Read a sample for every row, or for a substitute where one cannot be used.

    Which rows are used depends on the arguments `rows` and `draw` and on which samples are
    unusable: not on the order in which reads end, nor on what was known before.

    Args:
        rows: Planned rows, int64 [B].
        draw: Returns the candidates that may stand in for a place, 0 to B - 1.
        read: Yields the samples of some rows, in their order.
        put: Takes the sample of a place as soon as it is there.
        known: Unusable samples by row, which are not read again; those found are added.
        allowed: Unusable samples after which it is given up.

    Raises:
        TooManyUnusableError: More are unusable, or no candidate is left.
    """
    used = rows.copy()
    move_on = _Moving(used, draw, known, allowed)
    waiting = list(range(len(rows)))
    while waiting:
        for index in waiting:
            move_on(index)
        failed = []
        for index, outcome in zip(waiting, read(used[waiting]), strict=True):
            if isinstance(outcome, UnusableSample):
                known[int(used[index])] = outcome
                failed.append(index)
            else:
                put(index, outcome)
        waiting = failed
    moved = np.flatnonzero(used != rows).tolist()
    return [Substitute(n, int(rows[n]), known[int(rows[n])], int(used[n])) for n in moved]


class _Moving:
    """Moves places on to their next candidate while they hold a row known to be unusable."""

    def __init__(
        self,
        used: NDArray[np.int64],
        draw: Callable[[int], Iterator[int]],
        known: Mapping[int, UnusableSample],
        allowed: int,
    ) -> None:
        """Take the rows in use, which are changed in place, and what `fill` was given."""
        self._used, self._draw, self._known, self._allowed = used, draw, known, allowed
        self._draws: dict[int, Iterator[int]] = {}
        self._met: dict[int, UnusableSample] = {}

    def __call__(self, index: int) -> None:
        """Move one place on, if need be."""
        while (why := self._known.get(row := int(self._used[index]))) is not None:
            self._met[row] = why
            if index not in self._draws:
                self._draws[index] = self._draw(index)
            candidate = next(self._draws[index], None)
            if candidate is None or len(self._met) > self._allowed:
                raise TooManyUnusableError(self._met)
            self._used[index] = candidate
