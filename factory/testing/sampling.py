"""The contracts of the mixture's strategies: pure functions that the plan may ask in any order."""

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from factory.sampling.fingerprint import describe_strategy
from factory.sampling.selection import Selection
from factory.sampling.slider_groups import FadingSelection, RepeatingSelection
from factory.sampling.strategies import MixtureEntry, Weighting

MIXTURES = [[1.0], [1.0, 1.0], [0.5, 2.0, 1.0], [1.0, 1e-3, 0.25, 0.7]]
# Steps asked for: more than a strategy is likely to work out at once.
LENGTH = 3000


def choose(
    selection: Selection, weights: Sequence[float], step: int, length: int, *, key: int = 7,
    counts: Sequence[int] | None = None,
) -> NDArray[np.integer]:  # fmt: skip
    """Return choices for steps in a row, given what each backend gave before."""
    given = np.zeros(len(weights)) if counts is None else np.asarray(counts)
    return selection.choices(np.array(weights), given.astype(np.int64), step, length, key)


@pytest.mark.parametrize("weights", MIXTURES, ids=len)
class SelectionContract:
    """What every selection does. Give a fixture `selection`."""

    def test_each_choice_is_a_backend(self, selection: Selection, weights: list[float]) -> None:
        chosen = choose(selection, weights, 0, LENGTH)
        assert chosen.shape == (LENGTH,)
        assert np.issubdtype(chosen.dtype, np.integer)
        assert 0 <= chosen.min() <= chosen.max() < len(weights)

    def test_choices_are_a_pure_function(self, selection: Selection, weights: list[float]) -> None:
        first = choose(selection, weights, 0, LENGTH)
        choose(selection, [3.0, 1.0], 5, 10, key=9)  # what was asked between does not matter
        copy = pickle.loads(pickle.dumps(selection))
        for again in (selection, copy):
            assert np.array_equal(choose(again, weights, 0, LENGTH), first)

    @pytest.mark.parametrize("part", [1, 10, 1024, 2999])
    def test_a_range_in_parts_is_the_range(
        self, selection: Selection, weights: list[float], part: int
    ) -> None:
        whole = choose(selection, weights, 0, LENGTH)
        counts = np.bincount(whole[:part], minlength=len(weights))
        rest = choose(selection, weights, part, LENGTH - part, counts=counts.tolist())
        assert np.array_equal(rest, whole[part:])

    def test_only_a_seeded_one_depends_on_the_key(
        self, selection: Selection, weights: list[float]
    ) -> None:
        one, other = (choose(selection, weights, 0, LENGTH, key=key) for key in (1, 2))
        seeded = selection.seeded and len(weights) > 1
        assert np.array_equal(one, other) != seeded

    def test_shares_follow_the_weights(self, selection: Selection, weights: list[float]) -> None:
        chosen = choose(selection, weights, 0, LENGTH)
        shares = np.array(weights) / np.sum(weights)
        counts = np.bincount(chosen, minlength=len(weights))
        # Six standard deviations of independent draws, the loosest a selection may be.
        deviation = 6 * np.sqrt(LENGTH * shares * (1 - shares)) + 1
        assert (np.abs(counts - LENGTH * shares) <= deviation).all()

    def test_stretches_of_changing_weights_are_chosen_whole(
        self, selection: Selection, weights: list[float]
    ) -> None:
        if not isinstance(selection, FadingSelection):
            pytest.skip("is asked step by step")
        slope = np.linspace(1, 3, 100)[:, None] ** np.arange(len(weights))
        chosen = selection.fading(np.array(weights) * slope, 0, 7)
        assert chosen.shape == (100,)
        assert 0 <= chosen.min() <= chosen.max() < len(weights)

    def test_a_round_trip_gives_what_it_says(
        self, selection: Selection, weights: list[float]
    ) -> None:
        if not isinstance(selection, RepeatingSelection):
            pytest.skip("is played")
        counts = selection.round_trip(np.array(weights))
        length = int(counts.sum())
        chosen = choose(selection, weights, 0, length)
        assert np.bincount(chosen, minlength=len(weights)).tolist() == counts.tolist()
        again = choose(selection, weights, length, length, counts=counts.tolist())
        assert np.array_equal(again, chosen)

    def test_its_settings_are_described(self, selection: Selection, weights: list[float]) -> None:
        del weights
        assert set(vars(selection)) <= set(describe_strategy(selection))


class WeightingContract:
    """What every weighting does. Give a fixture `weighting`."""

    ENTRIES = (MixtureEntry("a", 0.5, 100), MixtureEntry("b", 2.0, 300), MixtureEntry("c", 0, 60))

    def test_a_weight_for_each_entry(self, weighting: Weighting) -> None:
        weights = weighting.weights(self.ENTRIES)
        assert weights.shape == (3,)
        assert weights.dtype == np.float64
        assert (weights >= 0).all()
        assert np.isfinite(weights).all()

    def test_whether_a_weight_is_zero_depends_on_its_own_entry(self, weighting: Weighting) -> None:
        together = weighting.weights(self.ENTRIES) > 0
        for number in range(3):
            for others in (self.ENTRIES, self.ENTRIES[::-1]):
                entries = [self.ENTRIES[number], *others]
                assert (weighting.weights(entries)[0] > 0) == together[number]

    def test_weights_are_a_pure_function(self, weighting: Weighting) -> None:
        copy = pickle.loads(pickle.dumps(weighting))
        first = weighting.weights(self.ENTRIES)
        for again in (weighting, copy):
            assert np.array_equal(again.weights(self.ENTRIES), first)

    def test_its_settings_are_described(self, weighting: Weighting) -> None:
        assert set(vars(weighting)) <= set(describe_strategy(weighting))
