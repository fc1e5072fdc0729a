"""Whole plans, for any backends."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import share
from factory.sampling.selection import Balanced, Random
from factory.sampling.strategies import AutoWeighting, UniformWeighting
from tests.sampling.cases import backend, backends, facts, walk
from tests.support.examples import examples

strategies = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 6),
        "seed": st.integers(0, 2**70),
        "weighting": st.sampled_from([UniformWeighting(), AutoWeighting()]),
        "selection": st.sampled_from([Balanced(), Random()]),
    }
)


def epochs_of(plan: Plan, count: int) -> list[int]:
    """The first epochs that have somebody to serve them."""
    found = []
    for epoch in range(count):
        try:
            plan.steps(epoch)
        except PlanError:
            break
        found.append(epoch)
    return found


@settings(max_examples=examples(80), deadline=None)
@given(backends(), strategies)
def test_every_row_comes_once_a_pass_up_to_counted_duplicates(
    sources: list[PlanBackend], settings_: dict
) -> None:
    plan = Plan(sources, **settings_)
    steps = walk(plan, 0)
    for source in sources:
        mine = [step for step in steps if step.backend == source.name]
        seen = Counter(row for step in mine for row in step.rows.tolist())
        assert set(seen) == set(source.order.tolist())
        assert min(seen.values()) >= source.repeats + 1
        extra = sum(step.duplicates for step in mine)
        assert seen.total() == len(source.order) * (source.repeats + 1) + extra
        assert [step.pass_index for step in mine] == sorted(step.pass_index for step in mine)


@settings(max_examples=examples(80), deadline=None)
@given(backends(with_windows=True), strategies, st.randoms(use_true_random=False))
def test_any_order_of_asking_gives_the_same(sources, settings_, shuffler) -> None:
    plan = Plan(sources, **settings_)
    epochs = epochs_of(plan, 4)
    forth = {(epoch, step.step): facts(step) for epoch in epochs for step in walk(plan, epoch)}
    asked = list(forth)
    shuffler.shuffle(asked)
    other = Plan(sources, **settings_)
    assert all(facts(other.at(*place)) == forth[place] for place in asked)


@settings(max_examples=examples(60), deadline=None)
@given(backends(with_windows=True), strategies)
def test_epochs_lie_end_to_end(sources, settings_) -> None:
    plan = Plan(sources, **settings_)
    total = 0
    for epoch in epochs_of(plan, 6):
        assert plan.at(epoch, 0).global_step == total
        for step in (0, plan.steps(epoch) - 1):
            assert plan.position(total + step) == (epoch, step)
        total += plan.steps(epoch)


@settings(max_examples=examples(80), deadline=None)
@given(backends(with_windows=True), strategies)
def test_windows_are_kept_and_nobody_leaves_early(sources, settings_) -> None:
    plan = Plan(sources, **settings_)
    for epoch in epochs_of(plan, 4):
        steps = walk(plan, epoch)
        for step in steps:
            source = next(each for each in sources if each.name == step.backend)
            assert source.window.active(epoch + 1, step.global_step)
        given_batches = Counter(step.backend for step in steps)
        after = steps[-1].global_step + 1
        for source in sources:
            size = source.batch_size or settings_["batch_size"]
            quota = (source.repeats + 1) * int(np.ceil(source.sizes / size).sum())
            assert given_batches[source.name] <= quota
            # Whoever could still serve the step after the last one would have made it longer.
            if source.window.active(epoch + 1, after):
                assert given_batches[source.name] == quota


@settings(max_examples=examples(60), deadline=None)
@given(
    backends(with_windows=True),
    st.integers(1, 4),
    st.sampled_from([UniformWeighting(), AutoWeighting()]),
)
def test_balanced_shares_hold_within_one_batch_in_every_stretch(
    sources, batch_size, weighting
) -> None:
    plan = Plan(sources, batch_size=batch_size, seed=1, weighting=weighting)
    for epoch in epochs_of(plan, 3):
        order = [step.backend for step in walk(plan, epoch)]
        stretches = plan.stretches(epoch)
        ends = [stretch.first for stretch in stretches[1:]] + [len(order)]
        for stretch, end in zip(stretches, ends, strict=True):
            for index, source in enumerate(sources):
                mine = np.cumsum([name == source.name for name in order[stretch.first : end]])
                asked = stretch.shares[index] * np.arange(1, len(mine) + 1)
                assert np.abs(mine - asked).max() < 1


@settings(max_examples=examples(40), deadline=None)
@given(backends(with_windows=True), strategies)
def test_accounts_are_what_counting_gives(sources, settings_) -> None:
    plan = Plan(sources, **settings_)
    for epoch in epochs_of(plan, 3):
        steps = walk(plan, epoch)
        accounts = plan.accounting(epoch)
        for source, account in zip(sources, accounts, strict=True):
            mine = [step for step in steps if step.backend == source.name]
            assert account.batches == len(mine)
            assert account.rows == sum(len(step.rows) for step in mine)
            assert account.duplicates == sum(step.duplicates for step in mine)
            assert account.achieved == len(mine) / len(steps)
        assert abs(sum(account.requested for account in accounts) - 1) < 1e-9


@settings(max_examples=examples(40), deadline=None)
@given(backends(), st.integers(0, 1000))
def test_ranks_and_accumulation_share_one_order(sources, seed) -> None:
    sources = [source for source in sources if source.batch_size is None] or sources[:0]
    if not sources:
        return
    plan = Plan(sources, batch_size=12, seed=seed)
    for step in walk(plan, 0):
        for ranks, micros in ((1, 1), (2, 3), (3, 2), (4, 1), (6, 2)):
            parts = [
                share(step.rows, rank, ranks, micro, micros)
                for rank in range(ranks)
                for micro in range(micros)
            ]
            assert np.concatenate(parts).tolist() == step.rows.tolist()


@settings(max_examples=examples(40), deadline=None)
@given(backends(), st.integers(0, 1000))
def test_epochs_and_seeds_give_different_orders(sources, seed) -> None:
    if max(len(source.order) for source in sources) < 12:
        return  # so few rows agree by chance
    orders = [
        [step.rows.tolist() for step in walk(Plan(sources, batch_size=2, seed=at), epoch)]
        for at, epoch in ((seed, 0), (seed, 1), (seed + 1, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_no_backend_follows_another_by_habit() -> None:
    """The n-th batches of two equal backends are unrelated, though their sizes are equal."""
    plan = Plan([backend("a", (500,)), backend("b", (500,))], batch_size=1, seed=1)
    rows = {name: [s.rows[0] for s in walk(plan, 0) if s.backend == name] for name in "ab"}
    assert sum(one == two for one, two in zip(rows["a"], rows["b"], strict=True)) < 8
