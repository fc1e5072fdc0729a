"""Which samples of a planned step does one batch hold?"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.runtime.batches.metadata import AT_FIRST, TOGETHER, Describe, Neighbours, Outline
from factory.sampling.plan import PlanStep
from factory.sampling.substitutes import substitute_key

Outlined: TypeAlias = Callable[[Describe], Outline]


@dataclass(frozen=True)
class Publish:
    """Asks whoever makes batches to publish what it has encoded meanwhile; gives no batch."""

    def __str__(self) -> str:
        """Say what it is, for messages."""
        return "what was encoded"


@dataclass(frozen=True, eq=False)
class Part:
    """This rank's part of a planned step, for one micro-batch; a small picklable value.

    Attributes:
        step: The planned step, with the whole global batch.
        places: Places in the global batch, int64 [B]; a place may come twice, as padding.
        valid: bool [B], False where a sample only pads ranks to equal size; None means all.
        near: Describes it together with other parts; None where it is described alone.
    """

    step: PlanStep
    places: NDArray[np.int64]
    valid: NDArray[np.bool_] | None = None
    near: Outlined | None = field(default=None, repr=False)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row ids of its samples, int64 [B]."""
        return self.step.rows[self.places]

    def outline(self, describe: Describe) -> Outline:
        """Return what is known of its samples.

        Args:
            describe: Describes rows of its backend in its epoch.
        """
        return describe(self.rows) if self.near is None else self.near(describe)

    def substitute_key(self, index: int) -> int:
        """Return the key under which substitutes are drawn for its sample `index`, from 0."""
        step, place = self.step, int(self.places[index])
        return substitute_key(step.seed, step.epoch, step.backend, step.number, place)

    def __str__(self) -> str:
        """Say where it stands, for messages."""
        return (
            f"epoch {self.step.epoch}, step {self.step.step}: backend {self.step.backend!r}, "
            f"bucket {self.step.bucket}"
        )


def together(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield parts in their order, those near each other to be described together.

    Of those that are taken at once, those of one backend and epoch belong together.
    """
    for some in _some_at_a_time(parts):
        rows: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
        for part in some:
            rows.setdefault(_owner(part), []).append(part.rows)
        near = {owner: enumerate(repeat(Neighbours(each))) for owner, each in rows.items()}
        for part in some:
            number, neighbours = next(near[_owner(part)])
            near_it = partial(neighbours.outline, number)
            yield Part(part.step, part.places, part.valid, near_it)


def _some_at_a_time(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yield parts in groups: no more than have so many samples, but one at least.

    Where no more can be planned, those before it still come first.
    """
    some: list[Part] = []
    samples, most, failure = 0, AT_FIRST, None
    try:
        for part in parts:
            if some and samples + len(part.places) > most:
                yield some
                some, samples, most = [], 0, min(2 * most, TOGETHER)
            some.append(part)
            samples += len(part.places)
    except Exception as error:  # noqa: BLE001 - raised in its turn
        failure = error
    if some:
        yield some
    if failure is not None:
        raise failure


def _owner(part: Part) -> tuple[str, int]:
    return part.step.backend, part.step.epoch
