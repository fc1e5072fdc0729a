"""When epochs end: the rules, fixed lengths, and what of a backend they give."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling import epoch_schedule as course_module
from factory.sampling.active_window import ActiveWindow
from factory.sampling.mixture import Mixture
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.selection import Balanced, Random
from tests.sampling.cases import backend, backends, facts, walk
from tests.sampling.test_plan_properties import epochs_of
from tests.support.examples import examples

RULES = st.sampled_from(
    [{"epoch": "all_exhausted"}, {"epoch": "first_exhausted"}, {"epoch": "cycle"}]
) | st.integers(1, 60).map(lambda steps: {"epoch_steps": steps})


def names(plan: Plan, epoch: int = 0) -> str:
    return "".join(step.backend for step in walk(plan, epoch))


def small(**settings_) -> Plan:
    return Plan([backend("a", (4,)), backend("b", (12,))], batch_size=2, seed=1, **settings_)


def test_the_rules_by_example() -> None:
    assert names(small()) == "ababbbbb"
    assert names(small(epoch="first_exhausted")) == "aba"
    assert names(small(epoch="cycle")) == "abababababab"
    assert names(small(epoch_steps=5)) == "ababa"
    assert [small(epoch_steps=5).at(3, 2).global_step] == [17]


def test_first_exhausted_waits_for_no_window_and_counts_no_closed_one() -> None:
    sources = [
        backend("a", (12,)),
        backend("b", (4,), window=ActiveWindow(end_step=2)),
        backend("c", (4,), window=ActiveWindow(start_step=5)),
    ]
    plan = Plan(sources, batch_size=2, seed=1, epoch="first_exhausted")
    # b closes after 1 of its 2 batches; c opens at the fifth step and is exhausted first.
    order = names(plan)
    assert order[:4].count("b") == 1
    assert order.endswith("c")
    assert order.count("c") == 2


def test_cycle_waits_for_open_windows_only() -> None:
    sources = [
        backend("a", (4,)),
        backend("b", (40,), window=ActiveWindow(end_step=6)),
        backend("c", (4,), window=ActiveWindow(start_step=100)),
    ]
    plan = Plan(sources, batch_size=2, seed=1, epoch="cycle")
    assert names(plan) == "ababab"
    assert names(plan, 1) == "aa"


def test_a_fixed_epoch_ends_early_where_nobody_is_left() -> None:
    plan = Plan(
        [backend("a", window=ActiveWindow(end_step=7))], batch_size=2, seed=1, epoch_steps=5
    )
    assert [plan.steps(0), plan.steps(1)] == [5, 2]
    with pytest.raises(PlanError, match="no backend is active in epoch 3"):
        plan.steps(2)


@pytest.mark.parametrize("selection", [Balanced(), Random()])
def test_passes_go_on_over_the_ends_of_fixed_epochs(selection) -> None:
    fade = ActiveWindow(fade_from_step=20, fade_to_step=125)
    sources = [
        backend("a", (30,)), backend("b", (14,), first=100, probability=0.5),
        backend("c", (22,), first=200, window=fade),
    ]  # fmt: skip
    plan = Plan(sources, batch_size=2, seed=3, epoch_steps=7, selection=selection)
    seen: dict[tuple[str, int], Counter] = {}
    for epoch in range(20):
        for step in walk(plan, epoch):
            seen.setdefault((step.backend, step.pass_index), Counter()).update(step.rows.tolist())
    for source in sources:
        passes = [seen[key] for key in sorted(seen) if key[0] == source.name]
        assert len(passes) > 1
        for each in passes[:-1]:
            assert each == Counter(source.order.tolist())
    far = Plan(sources, batch_size=2, seed=3, epoch_steps=7, selection=selection)
    assert facts(far.at(19, 6)) == facts(plan.at(19, 6))


@settings(max_examples=examples(60), deadline=None)
@given(
    backends(with_windows=True), RULES, st.integers(1, 6), st.integers(0, 99),
    st.sampled_from([Balanced(), Random()]), st.sampled_from(["fill", "short"]),
)  # fmt: skip
def test_every_row_comes_once_in_every_whole_pass(
    sources: list[PlanBackend], rule, batch_size, seed, selection, short_batch
) -> None:
    plan = Plan(
        sources, batch_size=batch_size, seed=seed, selection=selection, short_batch=short_batch,
        **rule,
    )  # fmt: skip
    carried = plan.ending.carries
    passes: dict[tuple, Counter] = {}
    extra: Counter = Counter()
    counts: Counter = Counter()
    for epoch in epochs_of(plan, 4):
        for step in walk(plan, epoch):
            key = (0 if carried else epoch, step.backend, step.pass_index)
            passes.setdefault(key, Counter()).update(step.rows.tolist())
            extra[key] += step.duplicates
            counts[key] += 1
    for source in sources:
        size = source.batch_size or batch_size
        whole = int(np.ceil(source.sizes / size).sum())
        for key, rows in passes.items():
            if key[1] == source.name and counts[key] == whole:
                assert set(rows) == set(source.order.tolist())
                assert rows.total() == len(source.order) + extra[key]


@settings(max_examples=examples(60), deadline=None)
@given(
    backends(with_windows=True), RULES, st.integers(1, 6), st.sampled_from([Balanced(), Random()])
)
def test_epochs_end_when_their_rule_says(sources, rule, batch_size, selection) -> None:
    plan = Plan(sources, batch_size=batch_size, seed=5, selection=selection, **rule)
    quotas = {
        source.name: (source.repeats + 1)
        * int(np.ceil(source.sizes / (source.batch_size or batch_size)).sum())
        for source in sources
    }
    for epoch in epochs_of(plan, 4):
        steps = walk(plan, epoch)
        given_, after = Counter(step.backend for step in steps), steps[-1].global_step + 1
        before = given_ - Counter([steps[-1].backend])
        done = {name for name in quotas if given_[name] >= quotas[name]}
        done_before = {name for name in quotas if before[name] >= quotas[name]}
        open_ = {each.name for each in sources if each.window.active(epoch + 1, after)}
        if plan.ending.carries:
            assert len(steps) == plan.ending.steps or not open_
        elif plan.ending.rule == "first_exhausted":
            assert not done_before
            assert done or not open_
        elif plan.ending.rule == "cycle":
            last = {each.name for each in sources if each.window.active(epoch + 1, after - 1)}
            assert open_ <= done
            assert not last <= done_before
        else:
            assert open_ <= done
            assert all(given_[name] <= quotas[name] for name in quotas)


@settings(max_examples=examples(60), deadline=None)
@given(
    backends(with_windows=True), RULES, st.integers(1, 6), st.sampled_from([Balanced(), Random()]),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_order_of_asking_gives_the_same(sources, rule, batch_size, selection, shuffler) -> None:
    plan, other = (
        Plan(sources, batch_size=batch_size, seed=7, selection=selection, **rule) for _ in range(2)
    )
    epochs = epochs_of(plan, 4)
    forth = {(epoch, step.step): facts(step) for epoch in epochs for step in walk(plan, epoch)}
    asked = list(forth)
    shuffler.shuffle(asked)
    assert all(facts(other.at(*place)) == forth[place] for place in asked)
    total = 0
    for epoch in epochs:
        assert other.position(total) == (epoch, 0)
        total += other.steps(epoch)


@settings(max_examples=examples(60), deadline=None)
@given(backends(with_windows=True), RULES, st.integers(1, 4))
def test_balanced_shares_hold_within_one_batch_under_every_rule(sources, rule, batch_size) -> None:
    plan = Plan(sources, batch_size=batch_size, seed=1, **rule)
    for epoch in epochs_of(plan, 3):
        order = [step.backend for step in walk(plan, epoch)]
        parts = zip(plan.stretches(epoch), plan.shares(epoch), strict=True)
        for stretch, (first, last, accounts) in parts:
            for account, carried in zip(accounts, stretch.carried.tolist(), strict=True):
                mine = np.cumsum([name == account.backend for name in order[first:last]])
                steps = stretch.carried.sum() + np.arange(1, len(mine) + 1)
                assert np.abs(carried + mine - account.requested * steps).max() < 1
                assert account.batches == mine[-1]


def test_accounts_of_parts_add_up_to_the_whole() -> None:
    sources = [backend("a", (30, 7)), backend("b", (14,), probability=0.3)]
    for rule in ({}, {"epoch": "cycle"}, {"epoch_steps": 23}):
        plan = Plan(sources, batch_size=4, seed=1, **rule)
        for epoch in range(3):
            whole, end = plan.accounting(epoch), plan.steps(epoch)
            parts = [plan.accounting(epoch, 0, 5), plan.accounting(epoch, 5, end)]
            for each, one, two in zip(whole, *parts, strict=True):
                assert one.batches + two.batches == each.batches
                assert one.rows + two.rows == each.rows
                assert one.duplicates + two.duplicates == each.duplicates
            steps = [step for step in walk(plan, epoch)[5:] if step.backend == "a"]
            assert parts[1][0].rows == sum(len(step.rows) for step in steps)
            assert parts[1][0].duplicates == sum(step.duplicates for step in steps)


def test_the_schedule_hash_tells_mixtures_not_rows() -> None:
    def plan(first: int = 0, **settings_) -> Plan:
        sources = [backend("a", (20,), first=first), backend("b", (20,), **settings_)]
        return Plan(sources, batch_size=2, seed=1)

    assert plan().schedule_hash(0) == plan(first=50).schedule_hash(0)
    assert plan().schedule_hash(0) != plan(probability=0.5).schedule_hash(0)
    assert plan().fingerprint != plan(first=50).fingerprint


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"epoch": "longest"}, "one of all_exhausted, first_exhausted, cycle; got 'longest'"),
        ({"epoch_steps": 0}, "whole number from 1"),
        ({"epoch_steps": 2.5}, "whole number from 1"),
        ({"epoch": "first_exhausted", "epoch_steps": 5}, "contradict"),
    ],
)
def test_wrong_rules_are_refused_at_once(settings_: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Mixture(**settings_)
    with pytest.raises(PlanError, match=message):
        small(**settings_)


def test_a_cycle_that_would_never_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [backend("a"), backend("b", probability=1e-12)]
    with pytest.raises(PlanError, match=r"epoch=cycle: .* backend number 2 .* share of 1e-12"):
        Plan(sources, batch_size=2, seed=1, epoch="cycle").steps(0)
    # One that is merely long grows as it is played.
    monkeypatch.setattr(course_module, "MOST_RESERVED", 64)
    sources = [backend("a"), backend("b", (40_000,)), backend("c", (10_000,))]
    plan = Plan(sources, batch_size=2, seed=1, epoch="cycle")
    assert plan.steps(0) == 60_000 - 1
    assert [plan.at(0, step).backend for step in range(3000)] == ["a", "b", "c"] * 1000
    assert plan.given(0, 3998) == {"a": 1333, "b": 1333, "c": 1332}
    assert [plan.at(0, step).number for step in (3001, 9001, 59_998)] == [1000, 3000, 19_999]


def test_a_changed_rule_changes_the_fingerprint_and_the_default_does_not() -> None:
    prints = {small(**each).fingerprint for each in ({}, {"epoch": "cycle"}, {"epoch_steps": 9})}
    assert len(prints) == 3
    assert small().fingerprint == small(epoch="all_exhausted").fingerprint
    assert "epoch" not in small().describe()
