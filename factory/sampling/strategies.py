"""Sampling strategies: how much of the mixture each backend asks for.

What turns their weights into a choice, step by step, is a `Selection`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MixtureEntry:
    """What a weighting may know of a backend.

    Attributes:
        name: The backend's name.
        probability: Its configured probability, 0 or more; any scale.
        length: Batches it gives in one epoch, all its passes counted.
    """

    name: str
    probability: float
    length: int


class Weighting(Protocol):
    """How probabilities become weights; any frozen dataclass with this method will do.

    Whether a weight is zero may depend on its own entry only, so that the length of an epoch
    is known without playing it through.
    """

    def weights(self, entries: Sequence[MixtureEntry]) -> NDArray[np.float64]:
        """Return a weight of any scale, 0 or more, for each entry: float64 [len(entries)].

        All backends of the plan are given, also those that do not take part just now; what
        is drawn follows the weights of those that do.
        """
        ...


@dataclass(frozen=True)
class UniformWeighting:
    """The probability alone: backends of equal probability give equally many batches."""

    persisted_as: ClassVar[str] = "factory.sampling.weights.UniformWeighting"

    def weights(self, entries: Sequence[MixtureEntry]) -> NDArray[np.float64]:
        """Return the probabilities, float64 [len(entries)]."""
        return np.array([entry.probability for entry in entries], dtype=np.float64)


@dataclass(frozen=True)
class AutoWeighting:
    """Probability times length: backends of equal probability run out together."""

    persisted_as: ClassVar[str] = "factory.sampling.weights.AutoWeighting"

    def weights(self, entries: Sequence[MixtureEntry]) -> NDArray[np.float64]:
        """Return probability x length / total length, float64 [len(entries)]."""
        total = max(sum(entry.length for entry in entries), 1)
        weights = [entry.probability * entry.length / total for entry in entries]
        return np.array(weights, dtype=np.float64)
