"""From weights to a sequence of backends."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from factory.errors import PlanError
from factory.sampling import selection as module
from factory.sampling.active_window import ActiveWindow
from factory.sampling.plan import Plan
from factory.sampling.selection import (
    CHUNK,
    FINEST_TOTAL,
    Balanced,
    Random,
    fade_factors,
    play_fading,
    whole_shares,
)
from tests.sampling.cases import backend, facts, walk
from tests.sampling.test_plan import LastFirst
from tests.sampling.test_plan_properties import epochs_of
from tests.support.examples import examples

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


@settings(max_examples=examples(80), deadline=None)
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


@settings(max_examples=examples(60), deadline=None)
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


@settings(max_examples=examples(40), deadline=None)
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


def weight(source, epoch: int, step: int) -> float:
    """A backend's weight at a global step, by the window's own words."""
    window = source.window
    active = window.active(epoch + 1, step)
    return source.probability * window.factor(step) if active else 0.0


fades = st.builds(
    lambda start, fall, length: ActiveWindow(
        start_step=start, fade_from_step=start + fall, fade_to_step=start + fall + length
    ),
    st.integers(0, 10), st.integers(0, 30), st.integers(1, 60),
)  # fmt: skip


@st.composite
def fading(draw) -> list:
    """Backends of which some fade; the first stays."""
    return [
        backend(
            f"b{number}", (draw(st.integers(1, 40)),), first=1000 * number,
            probability=draw(st.sampled_from([1.0, 0.3, 2.5])),
            window=draw(fades) if number else ActiveWindow(),
        )
        for number in range(draw(st.integers(2, 4)))
    ]  # fmt: skip


def test_a_window_tells_what_is_left_of_a_weight() -> None:
    window = ActiveWindow(fade_from_step=11, fade_to_step=20)
    assert [window.factor(step) for step in (0, 10, 11, 19, 20, 99)] == [1, 1, 0.9, 0.1, 0, 0]
    assert [window.active(1, step) for step in (19, 20)] == [True, False]
    assert str(window) == "fade_from_step=11, fade_to_step=20"
    assert ActiveWindow(fade_from_step=11, fade_to_step=20, end_step=15).steps_end(99) == 15
    assert ActiveWindow().fade is None


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"fade_from_step": 5}, "needs an end; set fade_to_step"),
        ({"fade_from_step": 5, "fade_to_step": 4}, "fade_to_step 4 comes before fade_from_step 5"),
        ({"start_step": 5, "fade_to_step": 4}, "fade_to_step 4 comes before start_step 5"),
        ({"fade_to_step": 0}, "fade_to_step must be at least 1, got 0"),
        ({"fade_from_step": -1, "fade_to_step": 4}, "must be at least 0"),
    ],
)
def test_wrong_fades_are_refused_by_name(bounds: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ActiveWindow(**bounds)


@settings(max_examples=examples(60), deadline=None)
@given(fading(), st.sampled_from([{}, {"epoch": "cycle"}, {"epoch_steps": 37}]))
def test_counts_stay_within_one_batch_of_the_summed_shares(sources, rule) -> None:
    plan = Plan(sources, batch_size=1, seed=1, **rule)
    for epoch in epochs_of(plan, 3):
        steps = walk(plan, epoch)
        for first, last, accounts in plan.shares(epoch):
            active = plan.stretches(epoch)
            now = next(each for each in active if each.first == first).active
            taking = [sources[index] for index in now]
            weights = np.array(
                [[weight(s, epoch, step.global_step) for s in taking] for step in steps[first:last]]
            )
            shares = weights / weights.sum(axis=1, keepdims=True)
            for place, source in enumerate(taking):
                given_ = np.cumsum([step.backend == source.name for step in steps[first:last]])
                assert np.abs(given_ - np.cumsum(shares[:, place])).max() < 1
                account = next(each for each in accounts if each.backend == source.name)
                assert account.requested == pytest.approx(shares[:, place].mean())


@settings(max_examples=examples(40), deadline=None)
@given(
    fading(), st.sampled_from([{}, {"epoch": "cycle"}, {"epoch": "first_exhausted"}]),
    st.sampled_from([Balanced(), Random(), LastFirst()]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_order_of_asking_gives_the_same(sources, rule, selection, shuffler) -> None:
    plan, other = (
        Plan(sources, batch_size=2, seed=1, selection=selection, **rule) for _ in range(2)
    )
    epochs = epochs_of(plan, 4)
    forth = {(epoch, step.step): facts(step) for epoch in epochs for step in walk(plan, epoch)}
    for (epoch, _), step in forth.items():
        source = next(each for each in sources if each.name == dict(step)["backend"])
        assert weight(source, epoch, dict(step)["global_step"]) > 0
    asked = list(forth)
    shuffler.shuffle(asked)
    assert all(facts(other.at(*place)) == forth[place] for place in asked)


def test_a_fade_spans_epochs_and_ends_where_it_should() -> None:
    sources = [backend("a", (20,)), backend("b", (20,), window=ActiveWindow(fade_to_step=50))]
    plan = Plan(sources, batch_size=1, seed=1, epoch_steps=10)
    given_ = [plan.given(epoch, 10)["b"] for epoch in range(7)]
    assert given_ == sorted(given_, reverse=True)
    # The integral of w / (1 + w) for w falling from 1 to 0 in 50 steps is 50 (1 - ln 2) = 15.3.
    assert abs(sum(given_) - 15.3) < 5
    assert given_[5:] == [0, 0]
    why = plan.explain(2, 4)
    assert why["weights"] == {"a": 1.0, "b": pytest.approx(26 / 50)}
    assert why["shares"]["b"] == pytest.approx(26 / 76)
    assert all(-1 < debt < 2 for debt in why["owed"].values())


def test_a_random_selection_follows_a_fade() -> None:
    sources = [backend("a", (5000,)), backend("b", (5000,), window=ActiveWindow(fade_to_step=4000))]
    plan = Plan(sources, batch_size=1, seed=1, selection=Random())
    halves = [plan.accounting(0, first, first + 1000)[1] for first in (0, 1000, 2000, 3000)]
    for account in halves:
        assert abs(account.achieved - account.requested) < 0.06  # 4 standard deviations


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**32))
def test_any_changing_shares_are_met_within_one_batch(backends, steps, seed) -> None:
    random = np.random.default_rng(seed)
    weights = random.random((steps, backends)) ** 4 + 1e-9
    chosen = play_fading(weights)
    shares = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=0)
    for index in range(backends):
        apart = np.abs(np.cumsum(chosen == index) - shares[:, index]).max()
        # No rule can promise less; the shares themselves are rounded in the tenth place.
        assert apart <= 1 - 1 / (2 * max(backends, 2) - 2) + 1e-6


def test_factors_fall_on_a_line() -> None:
    left = fade_factors(np.array([2, -10]), np.array([6, 10]), 0, 8)
    assert left[:, 0].tolist() == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert left[0, 1] == 0.5


def test_plans_without_a_fade_keep_their_fingerprint() -> None:
    bounds = Plan([backend("a")], batch_size=2, seed=1).describe()["backends"]["a"]["window"]
    assert set(bounds) == {"start_epoch", "start_step", "end_epoch", "end_step"}
    window = ActiveWindow(fade_to_step=9)
    bounds = Plan([backend("a", window=window)], batch_size=2, seed=1).describe()
    assert bounds["backends"]["a"]["window"]["fade_to_step"] == 9
