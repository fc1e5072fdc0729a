"""From weights to a sequence of backends."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from factory.sampling import selection as module
from factory.sampling.selection import CHUNK, FINEST_TOTAL, Balanced, Random, whole_shares

awkward = st.one_of(
    st.sampled_from([1.0, 2.0, 0.1, 0.3, 1 / 3, 1e-3, 1e-6, 1e6, 0.7, 0.123456789]),
    st.floats(1e-9, 1e9),
)
weight_lists = st.lists(awkward, min_size=2, max_size=8)


def choose(rule: Balanced | Random, weights: list[float], length: int, key: int = 0) -> np.ndarray:
    nothing = np.zeros(len(weights), dtype=np.int64)
    return rule.choices(np.array(weights), nothing, 0, length, key)


def deviations(chosen: np.ndarray, weights: list[float]) -> np.ndarray:
    """Count less share of every backend after every step, [n, length]."""
    shares = np.array(weights) / np.sum(weights)
    counts = np.cumsum(chosen[None, :] == np.arange(len(weights))[:, None], axis=1)
    return counts - shares[:, None] * np.arange(1, len(chosen) + 1)


def by_definition(weights: list[float], length: int) -> list[int]:
    """Tijdeman's rule in exact fractions, step by step."""
    whole = whole_shares(weights)
    shares = [Fraction(part, sum(whole)) for part in whole]
    margin = Fraction(1, 2 * len(shares) - 2)
    owed, chosen = [Fraction(0)] * len(shares), []
    for _ in range(length):
        owed = [debt + share for debt, share in zip(owed, shares, strict=True)]
        due = [
            ((1 - margin - debt) / share, index)
            for index, (debt, share) in enumerate(zip(owed, shares, strict=True))
            if debt >= margin
        ]
        chosen.append(min(due)[1])
        owed[chosen[-1]] -= 1
    return chosen


@settings(max_examples=80, deadline=None)
@given(weight_lists)
@example([1.0] * 8)
@example([1.0, 0.7, 1e-3, 1e-4, 1e-5])
@example([1.0, 1.0, 1.0, 1e-4, 0.3])
@example([1e9, 1e-9])
def test_balanced_stays_within_one_batch_at_every_step(weights: list[float]) -> None:
    chosen = choose(Balanced(), weights, 3000)
    bound = 1 - 1 / (2 * len(weights) - 2)
    # Shares are rounded to 2**-40, which is 3e-9 batch after 3000 steps.
    assert np.abs(deviations(chosen, weights)).max() <= bound + 1e-8


@pytest.mark.parametrize(
    "weights",
    [
        [0.531, 0.227, 0.131, 0.0831, 0.0279], [1, 0.7, 1e-3, 1e-4, 1e-5],
        [100.3, 50.7, 20.1, 10.9, 5.3, 2.2, 1.7, 0.5], [1.0, 1.0, 1.0000001], [3**0.5, 2**0.5],
    ],
)  # fmt: skip
def test_balanced_stays_within_one_batch_far_out(weights: list[float]) -> None:
    chosen = choose(Balanced(), weights, 300_000)
    assert np.abs(deviations(chosen, weights)).max() < 1


@settings(max_examples=60, deadline=None)
@given(weight_lists)
def test_balanced_is_tijdemans_rule(weights: list[float]) -> None:
    assert choose(Balanced(), weights, 200).tolist() == by_definition(weights, 200)


@pytest.mark.parametrize(
    "weights", [[0.531, 0.227, 0.131, 0.0831, 0.0279], [1, 0.7, 1e-3, 1e-4, 1e-5], [3**0.5, 2**0.5]]
)
def test_playing_side_by_side_equals_playing_step_by_step(
    weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 40 * CHUNK + 17
    side_by_side = choose(Balanced(), weights, length)
    monkeypatch.setattr(module, "FEW_CHUNKS", 10**9)
    assert np.array_equal(choose(Balanced(), weights, length), side_by_side)
    # And when replays side by side are given up early.
    monkeypatch.setattr(module, "FEW_CHUNKS", 2)
    monkeypatch.setattr(module, "REPLAYS", 1)
    assert np.array_equal(choose(Balanced(), weights, length), side_by_side)


@settings(max_examples=40, deadline=None)
@given(
    weight_lists,
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([Balanced(), Random()]),
)
def test_parts_join_to_the_whole(
    weights: list[float], first: int, second: int, rule: Balanced | Random
) -> None:
    whole = choose(rule, weights, first + second, key=5)
    counts = np.bincount(whole[:first], minlength=len(weights))
    rest = rule.choices(np.array(weights), counts, first, second, 5)
    assert np.array_equal(rest, whole[first:])


def test_equal_weights_take_turns_in_order() -> None:
    assert choose(Balanced(), [1.0, 1.0, 1.0], 6).tolist() == [0, 1, 2, 0, 1, 2]
    assert choose(Balanced(), [1.0], 3).tolist() == [0, 0, 0]


def test_shares_are_exact_as_written() -> None:
    assert whole_shares([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole_shares([3, 6, 9]) == [1, 2, 3]
    rounded = whole_shares([1 / 3, 1e-300])
    assert rounded == [FINEST_TOTAL, 1]


def test_random_draws_follow_the_weights_and_the_key() -> None:
    weights = [0.5, 0.3, 0.2]
    chosen = choose(Random(), weights, 50_000, key=11)
    expected = np.array(weights) * 50_000
    statistic = ((np.bincount(chosen) - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, 2) > 1e-3
    assert np.array_equal(chosen, choose(Random(), weights, 50_000, key=11))
    assert not np.array_equal(chosen, choose(Random(), weights, 50_000, key=12))


def test_random_draws_are_independent_of_the_one_before() -> None:
    chosen = choose(Random(), [1.0, 1.0, 1.0], 90_000, key=1)
    pairs = np.bincount(chosen[:-1] * 3 + chosen[1:], minlength=9)
    expected = (len(chosen) - 1) / 9
    assert chi2.sf(((pairs - expected) ** 2 / expected).sum(), 8) > 1e-3


def test_only_random_needs_a_key() -> None:
    assert Random().seeded
    assert not Balanced().seeded
