"""Which samples of a planned step does one batch hold?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.sampling.plan import PlanStep
from factory.sampling.substitutes import substitute_key


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
    """

    step: PlanStep
    places: NDArray[np.int64]
    valid: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row ids of its samples, int64 [B]."""
        return self.step.rows[self.places]

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
