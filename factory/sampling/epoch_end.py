"""Rules by which an epoch ends."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError

EpochRule = Literal["all_exhausted", "first_exhausted", "cycle"]

# An epoch takes a byte a step of what is played of it, so 1 GiB for the longest.
MOST_STEPS = 2**30


@dataclass(frozen=True)
class EpochEnd:
    """The rule by which an epoch ends.

    A backend is exhausted when it has given `repeats + 1` passes in the epoch. Only backends
    that can serve count: those whose weight is above 0 and whose window is open. A window that
    opens after an epoch has ended by its rule waits for the next one, and one that closes
    takes its backend out of the count. Whatever the rule, an epoch ends where nobody can serve.

    Attributes:
        rule: "all_exhausted": exhausted backends leave, and the epoch ends when all have left.
            "first_exhausted": it ends with the step that exhausts a backend; what the others
            have left is not carried over, as each epoch is shuffled anew.
            "cycle": an exhausted backend goes on with a pass that is shuffled anew, until
            every one has been exhausted.
        steps: Length of every epoch in optimizer steps, instead of a rule: backends go on
            with new passes as needed. Passes go on over the ends of epochs, so that every row
            comes once before any comes again, however short epochs are.
    """

    rule: EpochRule = "all_exhausted"
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            PlanError: An unknown rule, a length out of range, or a length beside a rule that
                contradicts it.
        """
        if self.rule not in get_args(EpochRule):
            allowed = ", ".join(get_args(EpochRule))
            raise PlanError(f"sampling.epoch must be one of {allowed}; got {self.rule!r}")
        if self.steps is None:
            return
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MOST_STEPS:
            raise PlanError(
                f"sampling.epoch_steps must be a whole number from 1 to {MOST_STEPS}, or null for "
                f"epochs that end by sampling.epoch; got {self.steps!r}"
            )
        if self.rule == "first_exhausted":
            raise PlanError(
                f"sampling.epoch_steps={self.steps} and sampling.epoch=first_exhausted contradict "
                "each other; set epoch_steps=null, or epoch=cycle"
            )

    @property
    def carries(self) -> bool:
        """Whether an epoch goes on in the passes that the one before it began."""
        return self.steps is not None

    def longest(self, quotas: NDArray[np.int64]) -> int:
        """Return the most steps an epoch can have, given what exhausts each backend."""
        if self.steps is not None:
            return self.steps
        return MOST_STEPS if self.rule == "cycle" else int(quotas.sum())

    def serving(
        self, able: NDArray[np.bool_], exhausted: NDArray[np.bool_], step: int
    ) -> NDArray[np.bool_]:
        """Return which backends serve a step; none where the epoch has ended.

        Args:
            able: Whose weight is above 0 and whose window is open, bool [k].
            exhausted: Who has given `repeats + 1` passes, bool [k].
            step: The step of the epoch, from 0.
        """
        if self.steps is not None:
            return able & (step < self.steps)
        if self.rule == "first_exhausted":
            return able & (not exhausted.any())
        if self.rule == "cycle":
            return able & bool((able & ~exhausted).any())
        return able & ~exhausted

    def left(self, quotas: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the batches of each backend until the rule must be asked again: int64 [k]."""
        if self.steps is not None:
            return np.full(len(quotas), MOST_STEPS)
        return np.where(counts < quotas, quotas - counts, MOST_STEPS)
