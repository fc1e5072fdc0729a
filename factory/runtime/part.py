"""Which samples of a planned step does one batch hold?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.sampling.plan import PlanStep


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

    def __str__(self) -> str:
        """Say where it stands, for messages."""
        return (
            f"epoch {self.step.epoch}, step {self.step.step}: backend {self.step.backend!r}, "
            f"bucket {self.step.bucket}"
        )
