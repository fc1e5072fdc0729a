"""Weights that fall to nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.fade import factors, on_time
from factory.sampling.plan import Plan
from factory.sampling.schedule import Window
from factory.sampling.selection import Balanced, Random
from tests.sampling.cases import backend, facts, walk
from tests.sampling.test_plan import LastFirst
from tests.sampling.test_plan_properties import epochs_of


def weight(source, epoch: int, step: int) -> float:
    """A backend's weight at a global step, by the window's own words."""
    window = source.window
    active = window.active(epoch + 1, step)
    return source.probability * window.factor(step) if active else 0.0


fades = st.builds(
    lambda start, fall, length: Window(
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
            window=draw(fades) if number else Window(),
        )
        for number in range(draw(st.integers(2, 4)))
    ]  # fmt: skip


def test_a_window_tells_what_is_left_of_a_weight() -> None:
    window = Window(fade_from_step=11, fade_to_step=20)
    assert [window.factor(step) for step in (0, 10, 11, 19, 20, 99)] == [1, 1, 0.9, 0.1, 0, 0]
    assert [window.active(1, step) for step in (19, 20)] == [True, False]
    assert str(window) == "fade_from_step=11, fade_to_step=20"
    assert Window(fade_from_step=11, fade_to_step=20, end_step=15).steps_end(99) == 15
    assert Window().fade is None


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"fade_from_step": 5}, "needs window.fade_to_step"),
        ({"fade_from_step": 5, "fade_to_step": 4}, r"fade_to_step \(4\) must be >= .*\(5\)"),
        ({"start_step": 5, "fade_to_step": 4}, r"fade_to_step \(4\) must be >= .*start_step"),
        ({"fade_to_step": 0}, "must be 1 or more, got 0; to set no end, leave it null"),
        ({"fade_from_step": -1, "fade_to_step": 4}, "must be 0 or more"),
    ],
)
def test_wrong_fades_are_refused_by_name(bounds: dict[str, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Window(**bounds)


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=40, deadline=None)
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
    sources = [backend("a", (20,)), backend("b", (20,), window=Window(fade_to_step=50))]
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
    sources = [backend("a", (5000,)), backend("b", (5000,), window=Window(fade_to_step=4000))]
    plan = Plan(sources, batch_size=1, seed=1, selection=Random())
    halves = [plan.accounting(0, first, first + 1000)[1] for first in (0, 1000, 2000, 3000)]
    for account in halves:
        assert abs(account.achieved - account.requested) < 0.06  # 4 standard deviations


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**32))
def test_any_changing_shares_are_met_within_one_batch(backends, steps, seed) -> None:
    random = np.random.default_rng(seed)
    weights = random.random((steps, backends)) ** 4 + 1e-9
    chosen = on_time(weights)
    shares = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=0)
    for index in range(backends):
        apart = np.abs(np.cumsum(chosen == index) - shares[:, index]).max()
        # No rule can promise less; the shares themselves are rounded in the tenth place.
        assert apart <= 1 - 1 / (2 * max(backends, 2) - 2) + 1e-6


def test_factors_fall_on_a_line() -> None:
    left = factors(np.array([2, -10]), np.array([6, 10]), 0, 8)
    assert left[:, 0].tolist() == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert left[0, 1] == 0.5


def test_plans_without_a_fade_keep_their_fingerprint() -> None:
    bounds = Plan([backend("a")], batch_size=2, seed=1).describe()["backends"]["a"]["window"]
    assert set(bounds) == {"start_epoch", "start_step", "end_epoch", "end_step"}
    window = Window(fade_to_step=9)
    bounds = Plan([backend("a", window=window)], batch_size=2, seed=1).describe()
    assert bounds["backends"]["a"]["window"]["fade_to_step"] == 9
