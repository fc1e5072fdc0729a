"""Evaluation plans: a backend gone through once, in order, for validation."""

import numpy as np

from factory.errors import PlanError
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import PlanStep


class EvalPlan:
    """Every row exactly once, bucket by bucket in order; the same in every epoch.

    The last batch of a bucket is short; `factory.sampling.rank_shares.pad` makes it divisible
    among ranks, with a mask that keeps the padding out of the metric.
    """

    def __init__(
        self, backend: PlanBackend, batch_size: int, barred: frozenset[int] = frozenset()
    ) -> None:
        """Lay out the batches.

        Args:
            backend: The backend; its probability, repeats and window are not used.
            batch_size: Most samples of a batch over all ranks, unless the backend sets its own.
            barred: Rows that `backend` lacks since they are excluded; they stand in for none.

        Raises:
            PlanError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise PlanError(f"batch_size must be 1 or more, got {batch_size}")
        self.backend = backend
        self.batch_size = backend.batch_size or batch_size
        self._barred = barred
        self._ends = np.cumsum(-(-backend.sizes // self.batch_size))

    def steps(self) -> int:
        """Return the number of batches."""
        return int(self._ends[-1])

    def at(self, step: int) -> PlanStep:
        """Return a batch; its epoch and pass read 0.

        Args:
            step: The batch, from 0.

        Raises:
            PlanError: There is no such batch.
        """
        if not 0 <= step < self.steps():
            raise PlanError(
                f"validation of {self.backend.name!r} has the steps 0 to {self.steps() - 1}, "
                f"got {step}"
            )
        bucket = int(np.searchsorted(self._ends, step, side="right"))
        before = int(self._ends[bucket - 1]) if bucket else 0
        first = int(self.backend.offsets[bucket]) + (step - before) * self.batch_size
        last = min(first + self.batch_size, int(self.backend.offsets[bucket + 1]))
        return PlanStep(
            epoch=0,
            step=step,
            global_step=step,
            backend=self.backend.name,
            bucket=self.backend.buckets[bucket],
            rows=np.array(self.backend.order[first:last], dtype=np.int64),
            duplicates=0,
            pass_index=0,
            barred=self._barred,
        )
