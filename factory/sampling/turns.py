"""Whose turn is it where groups of backends take turns, and whom does a group choose?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from factory.sampling.permutation import derive_key
from factory.sampling.selection import Selection

# The order in which groups of sliders take turns.
POSITIVE, NEGATIVE, NEUTRAL = 0, 1, 2


@runtime_checkable
class FadingSelection(Protocol):
    """A selection that chooses for many steps of changing weights at once.

    One without this method is asked step by step.
    """

    def fading(
        self, weights: NDArray[np.float64], step: int, key: int
    ) -> NDArray[np.integer]:  # fmt: skip
        """Choose for all steps of a stretch; a pure function of its arguments.

        Args:
            weights: float64 [T, n], above 0; those of each step.
            step: Step of the epoch the first choice is for, from 0.
            key: 64-bit key, another for every seed and epoch.

        Returns:
            Integers [T], each inside [0, n).
        """
        ...


def slider_groups(strengths: Sequence[float | None]) -> NDArray[np.int64] | None:
    """Return each backend's group by the sign of its strength; None where nothing rotates.

    Groups rotate as soon as one strength is not 0; a backend without a strength is neutral.
    """
    signs = np.sign([strength or 0.0 for strength in strengths])
    if not signs.any():
        return None
    groups: NDArray[np.int64] = np.select([signs > 0, signs < 0], [POSITIVE, NEGATIVE], NEUTRAL)
    return groups


@dataclass(frozen=True, eq=False)
class Turns:
    """Chooses backends: group after group, by weight inside a group.

    Which group serves a step follows from the step's number and from how many groups have a
    backend taking part. Without groups, all backends are chosen among by weight.

    Attributes:
        selection: How weights become a sequence.
        key: 64-bit key for the selection.
        groups: The group of each backend, int64 [k]; None where nothing rotates.
    """

    selection: Selection
    key: int
    groups: NDArray[np.int64] | None = None

    def steady(
        self, active: NDArray[np.int64], weights: NDArray[np.float64], counts: NDArray[np.int64],
        step: int, length: int,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Choose for steps in which weights stay the same.

        Args:
            active: Backends that take part, int64 [n].
            weights: Their weights, float64 [n], above 0.
            counts: Batches each has given since these weights began to hold, int64 [n].
            step: Step of the epoch the first choice is for, from 0.
            length: Number of choices.

        Returns:
            Places in `active`, int64 [length].
        """
        picks = np.empty(length, dtype=np.int64)
        for members, turns, turn, key in self._rota(active, step, length):
            mine = picks[turns]
            if len(mine):
                chosen = self.selection.choices(
                    weights[members], counts[members], turn, len(mine), key
                )
                picks[turns] = members[chosen]
        return picks

    def fading(
        self, active: NDArray[np.int64], weights: NDArray[np.float64], step: int
    ) -> NDArray[np.int64]:
        """Choose for all steps of a stretch in which weights fall.

        Args:
            active: Backends that take part, int64 [n].
            weights: Their weights at each step, float64 [T, n], above 0.
            step: Step of the epoch the first choice is for, from 0.

        Returns:
            Places in `active`, int64 [T].
        """
        picks = np.empty(len(weights), dtype=np.int64)
        for members, turns, turn, key in self._rota(active, step, len(weights)):
            mine = weights[turns][:, members]
            if len(mine):
                picks[turns] = members[self._falling(mine, turn, key)]
        return picks

    def shares(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of the steps that each backend asks for.

        Args:
            weights: float64 [T, k], 0 for those that do not take part.

        Returns:
            float64 [T, k]; each row sums to 1.
        """
        if self.groups is None:
            shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
            return shares
        found = np.zeros_like(weights)
        for group in np.unique(self.groups):
            members = self.groups == group
            total = weights[:, members].sum(axis=1, keepdims=True)
            found[:, members] = weights[:, members] / np.where(total > 0, total, 1.0)
        found /= found.sum(axis=1, keepdims=True)
        return found

    def _rota(
        self, active: NDArray[np.int64], step: int, length: int
    ) -> Iterator[tuple[NDArray[np.int64], slice, int, int]]:
        """Yield, for each group, (places of its members, its steps, its first turn, its key)."""
        if self.groups is None:
            yield np.arange(len(active)), slice(0, length), step, self.key
            return
        present = np.unique(self.groups[active])
        for place, group in enumerate(present):
            first = (place - step) % len(present)
            members = np.flatnonzero(self.groups[active] == group)
            key = derive_key(self.key, int(group))
            turn = (step + first) // len(present)
            yield members, slice(first, length, len(present)), turn, key

    def _falling(
        self, weights: NDArray[np.float64], step: int, key: int
    ) -> NDArray[np.integer]:  # fmt: skip
        if isinstance(self.selection, FadingSelection):
            return self.selection.fading(weights, step, key)
        counts = np.zeros(weights.shape[1], dtype=np.int64)
        chosen = np.empty(len(weights), dtype=np.int64)
        for place, now in enumerate(weights):
            (chosen[place],) = self.selection.choices(now, counts, step + place, 1, key)
            counts[chosen[place]] += 1
        return chosen
