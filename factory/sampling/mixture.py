"""Mixture settings: how backends are mixed, before their contents are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from factory.errors import PlanError
from factory.sampling.epoch_end import EpochEnd, EpochRule
from factory.sampling.exclusion import Excluded
from factory.sampling.passes import PlanBackend, ShortBatch
from factory.sampling.plan import Plan
from factory.sampling.selection import Balanced, Selection
from factory.sampling.strategies import UniformWeighting, Weighting

_EXAMPLES = {
    "weighting": "factory.sampling.weights.UniformWeighting",
    "selection": "factory.sampling.selection.Balanced",
}


@dataclass(frozen=True)
class Mixture:
    """The mixture settings of a run; what the config group `sampling` builds.

    Attributes:
        weighting: How probabilities become weights.
        selection: How weights become a sequence of backends.
        short_batch: Last batch of a bucket: fill from the bucket | short | drop.
        epoch: It ends when all_exhausted: all backends have given all they hold | first_exhausted:
            one has | cycle: all have, those that are done beginning again meanwhile. See
            `factory.sampling.epoch_end.EpochEnd`.
        epoch_steps: Length of every epoch, optimizer steps; passes go on over its end; None: the
            rule's.
    """

    weighting: Weighting = field(default_factory=UniformWeighting)
    selection: Selection = field(default_factory=Balanced)
    short_batch: ShortBatch = "fill"
    epoch: EpochRule = "all_exhausted"
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        """Check when epochs end, and that strategies are some.

        Raises:
            PlanError: The rule or the length cannot be, or a strategy lacks what is asked of it.
        """
        for name, needed in (("weighting", ("weights",)), ("selection", ("seeded", "choices"))):
            strategy = getattr(self, name)
            lacking = [each for each in needed if not hasattr(strategy, each)]
            if lacking or isinstance(strategy, type):
                raise PlanError(
                    f"sampling.{name} must be an object with {' and '.join(needed)}, got "
                    f"{strategy!r}; set sampling.{name}._target_ to a class that has them, such as "
                    f"{_EXAMPLES[name]}"
                )
        EpochEnd(self.epoch, self.epoch_steps)

    def plan(
        self,
        backends: Sequence[PlanBackend],
        *,
        batch_size: int,
        seed: int,
        exclude: Mapping[str, Excluded] | None = None,
    ) -> Plan:
        """Plan the order of samples; see `Plan` for arguments and errors."""
        return Plan(
            backends,
            batch_size=batch_size,
            seed=seed,
            weighting=self.weighting,
            selection=self.selection,
            short_batch=self.short_batch,
            epoch=self.epoch,
            epoch_steps=self.epoch_steps,
            exclude=exclude,
        )
