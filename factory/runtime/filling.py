"""How does every place of a batch get a sample, when some cannot be used?"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from factory.backends.source import Unusable

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class StandIn:
    """A planned sample that cannot be used, and the one in its place.

    Attributes:
        index: Its place among the rows asked for, from 0.
        row: Its row.
        why: What is wrong with it.
        substitute: Row of the sample that stands in.
    """

    index: int
    row: int
    why: Unusable
    substitute: int


class TooManyUnusableError(Exception):
    """Substitutes were unusable, too, until too many were met or none was left.

    Attributes:
        met: What is wrong with the samples met, by row.
    """

    def __init__(self, met: dict[int, Unusable]) -> None:
        """Keep what was met."""
        super().__init__(f"{len(met)} unusable samples in one batch")
        self.met = met


def fill(
    rows: NDArray[np.int64],
    draw: Callable[[int], Iterator[int]],
    read: Callable[[NDArray[np.int64]], Iterator[Sample | Unusable]],
    put: Callable[[int, Sample], None],
    known: MutableMapping[int, Unusable],
    allowed: int,
) -> list[StandIn]:
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
    met: dict[int, Unusable] = {}
    draws: dict[int, Iterator[int]] = {}
    waiting = list(range(len(rows)))
    while waiting:
        for index in waiting:
            while (why := known.get(int(used[index]))) is not None:
                met[int(used[index])] = why
                if index not in draws:
                    draws[index] = draw(index)
                candidate = next(draws[index], None)
                if candidate is None or len(met) > allowed:
                    raise TooManyUnusableError(met)
                used[index] = candidate
        failed = []
        for index, outcome in zip(waiting, read(used[waiting]), strict=True):
            if isinstance(outcome, Unusable):
                known[int(used[index])] = outcome
                failed.append(index)
            else:
                put(index, outcome)
        waiting = failed
    return [
        StandIn(index, int(rows[index]), known[int(rows[index])], int(used[index]))
        for index in sorted(draws)
    ]
