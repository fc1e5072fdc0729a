"""Slider groups: groups of backends that take turns, and the choice inside a group."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.permutation import derive_key
from factory.sampling.selection import Selection

# The order in which groups of sliders take turns.
POSITIVE, NEGATIVE, NEUTRAL = 0, 1, 2
# Steps played at once where they are only counted: 32 MiB of choices.
PLAYED = 2**22
# Round trips longer than this are never completed in a run; their products stay in 63 bits.
LONGEST_TRIP = 2**40


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
            step: The step the first choice is for, from 0; see `Selection.choices`.
            key: 64-bit key, another for every seed and epoch.

        Returns:
            Integers [T], each inside [0, n).
        """
        ...


@runtime_checkable
class RepeatingSelection(Protocol):
    """A selection whose choices come again, so that far counts are known without playing.

    One without this method is played.
    """

    def round_trip(self, weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return what each backend gives until choices begin again as at first: [n].

        Args:
            weights: float64 [n], all above 0.
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
            step: The step the first choice is for, from 0; see `Selection.choices`.
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
                picks[turns] = members[self._checked(chosen, len(mine), len(members))]
        return picks

    def given(
        self, active: NDArray[np.int64], weights: NDArray[np.float64], counts: NDArray[np.int64],
        step: int, length: int,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Count what each backend has given after some more steps of the same weights.

        Args:
            active: Backends that take part, int64 [n].
            weights: Their weights, float64 [n], above 0.
            counts: Batches each has given since these weights began to hold, int64 [n].
            step: The first of these steps, as for `steady`.
            length: How many they are; far ones are not played where choices come again.

        Returns:
            Those counts with these steps added, int64 [n].
        """
        counts, end = counts.copy(), step + length
        trip, steps = self._round_trip(active, weights)
        counts += length // steps * trip if steps else 0
        step = end - length % steps if steps else step
        while step < end:
            part = min(PLAYED, end - step)
            picks = self.steady(active, weights, counts, step, part)
            counts += np.bincount(picks, minlength=len(active))
            step += part
        return counts

    def _round_trip(
        self, active: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], int]:
        """Return (what each backend gives until all begins again, steps until then; 0: unknown)."""
        trips = np.zeros(len(active), dtype=np.int64)
        if not isinstance(self.selection, RepeatingSelection):
            return trips, 0
        groups = np.zeros_like(active) if self.groups is None else self.groups[active]
        present = np.unique(groups).tolist()
        for group in present:
            members = groups == group
            trips[members] = self.selection.round_trip(weights[members])
        lengths = [int(trips[groups == group].sum()) for group in present]
        turns = math.lcm(*lengths)
        if turns > LONGEST_TRIP:
            return trips, 0
        for group, length in zip(present, lengths, strict=True):
            trips[groups == group] *= turns // length
        return trips, turns * len(present)

    def fading(
        self, active: NDArray[np.int64], weights: NDArray[np.float64], step: int
    ) -> NDArray[np.int64]:
        """Choose for all steps of a stretch in which weights fall.

        Args:
            active: Backends that take part, int64 [n].
            weights: Their weights at each step, float64 [T, n], above 0.
            step: The step the first choice is for, from 0; see `Selection.choices`.

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
            return self._checked(self.selection.fading(weights, step, key), *weights.shape)
        counts = np.zeros(weights.shape[1], dtype=np.int64)
        chosen = np.empty(len(weights), dtype=np.int64)
        for place, now in enumerate(weights):
            one = self.selection.choices(now, counts, step + place, 1, key)
            (chosen[place],) = self._checked(one, 1, len(now))
            counts[chosen[place]] += 1
        return chosen

    def _checked(
        self, chosen: NDArray[np.integer], steps: int, backends: int
    ) -> NDArray[np.integer]:  # fmt: skip
        """Return choices as they are, unless a selection of somebody else gives nonsense."""
        found = np.asarray(chosen)
        whole = found.shape == (steps,) and found.dtype.kind in "iu"
        if whole and found.min() >= 0 and found.max() < backends:
            return found
        raise PlanError(
            f"{self.selection!r} must choose one of {backends} backends for each of {steps} steps: "
            f"integers [{steps}] from 0 to {backends - 1}; got {found.dtype} "
            f"{list(found.shape)}: {found.ravel()[:8].tolist()}"
        )
