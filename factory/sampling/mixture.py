"""How backends are mixed: the settings of a plan that are not one backend's own."""

from dataclasses import dataclass, field

from factory.sampling.selection import Balanced, Selection
from factory.sampling.weights import UniformWeighting, Weighting

SHORT_BATCHES = ("fill", "short", "drop")


@dataclass(frozen=True)
class Mixture:
    """How backends are mixed.

    Attributes:
        weighting: How probabilities become weights.
        selection: How weights become a sequence of backends.
        short_batch: What becomes of a bucket's last batch when rows run out: "fill" it from
            the same bucket, leave it "short", or "drop" it.
    """

    weighting: Weighting = field(default_factory=UniformWeighting)
    selection: Selection = field(default_factory=Balanced)
    short_batch: str = "fill"

    def __post_init__(self) -> None:
        """Refuse an unknown choice."""
        if str(self.short_batch) not in SHORT_BATCHES:
            raise ValueError(
                f"sampling.short_batch is {self.short_batch!r}; "
                f"allowed are {', '.join(SHORT_BATCHES)}"
            )
