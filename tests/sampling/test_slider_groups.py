"""Groups of sliders that take turns."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.plan import Plan
from factory.sampling.selection import Balanced, Random
from factory.sampling.slider_groups import slider_groups
from tests.sampling.cases import backend, facts, walk
from tests.support.examples import examples


def sliders(**more) -> list:
    return [
        backend("p", (40,), slider_strength=1.0, probability=3),
        backend("q", (40,), slider_strength=0.5, **more),
        backend("n", (40,), slider_strength=-2.0),
        backend("z", (40,)),
    ]


def test_groups_take_turns_and_weights_count_inside_them() -> None:
    plan = Plan(sliders(), batch_size=1, seed=1, epoch_steps=48)
    steps = walk(plan, 0)
    order = "".join(step.backend for step in steps)
    assert set(order[0::3]) == {"p", "q"}
    assert set(order[1::3]) == {"n"}
    assert set(order[2::3]) == {"z"}
    assert Counter(order[0::3]) == {"p": 12, "q": 4}
    assert {step.backend: step.slider_strength for step in steps} == {
        "p": 1.0, "q": 0.5, "n": -2.0, "z": None,
    }  # fmt: skip
    assert [round(each.requested, 6) for each in plan.accounting(0)] == [
        0.25, 0.083333, 0.333333, 0.333333,
    ]  # fmt: skip


def test_a_group_that_has_left_gives_its_turn_to_the_others() -> None:
    sources = [backend("p", (2,), slider_strength=1.0), backend("n", (6,), slider_strength=-1.0)]
    order = "".join(step.backend for step in walk(Plan(sources, batch_size=1, seed=1), 0))
    assert order == "pnpnnnnn"


def test_all_neutral_means_no_turns() -> None:
    assert slider_groups([0.0, None, 0]) is None
    assert slider_groups([0.0, 2, -1, None]).tolist() == [2, 0, 1, 2]
    plain = [backend("a", (20,)), backend("b", (20,), probability=3)]
    neutral = [backend("a", (20,), slider_strength=0.0), backend("b", (20,), probability=3)]
    orders = [
        [step.backend for step in walk(Plan(each, batch_size=1, seed=1), 0)]
        for each in (plain, neutral)
    ]
    assert orders[0] == orders[1]


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, 0.0, 1.0, -0.5, 2.0]), st.integers(1, 30),
                  st.sampled_from([1.0, 0.4, 3.0]), st.none() | st.integers(5, 40)),
        min_size=1, max_size=5,
    ),
    st.sampled_from([{}, {"epoch": "cycle"}, {"epoch_steps": 41}]),
    st.sampled_from([Balanced(), Random()]),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_turns_are_kept_and_pure(entries, rule, selection, shuffler) -> None:
    sources = [
        backend(
            f"b{number}", (size,), slider_strength=strength, probability=probability,
            window=ActiveWindow(fade_to_step=fade) if number and fade else ActiveWindow(),
        )
        for number, (strength, size, probability, fade) in enumerate(entries)
    ]  # fmt: skip
    plan, other = (
        Plan(sources, batch_size=1, seed=1, selection=selection, **rule) for _ in range(2)
    )
    groups = slider_groups([source.slider_strength for source in sources])
    steps = walk(plan, 0)
    asked = list(range(len(steps)))
    shuffler.shuffle(asked)
    assert all(facts(other.at(0, step)) == facts(steps[step]) for step in asked)
    if groups is None:
        return
    index = {source.name: number for number, source in enumerate(sources)}
    for first, last, accounts in plan.shares(0):
        active = next(s for s in plan.stretches(0) if s.first == first).active
        present = np.unique(groups[active])
        for step in steps[first:last]:
            assert groups[index[step.backend]] == present[step.step % len(present)]
        assert sum(account.requested for account in accounts) == pytest.approx(1)
        if isinstance(selection, Balanced):
            for account in accounts:
                # Within one batch inside its group, and one more for the group's turn.
                assert abs(account.batches - account.requested * (last - first)) < 2


def test_random_groups_draw_apart() -> None:
    sources = [
        backend(name, (1000,), slider_strength=strength)
        for name, strength in (("p", 1.0), ("q", 1.0), ("m", -1.0), ("n", -1.0))
    ]
    plan = Plan(sources, batch_size=1, seed=1, selection=Random(), epoch_steps=800)
    order = [step.backend for step in walk(plan, 0)]
    pairs = Counter(zip(order[0::2], order[1::2], strict=True))
    assert len(pairs) == 4
    assert min(pairs.values()) > 70  # 100 each by chance; 5 standard deviations are 43


@pytest.mark.parametrize("value", ["1.0", float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(PlanError, match="slider_strength must be a number or null"):
        backend("a", slider_strength=value)
