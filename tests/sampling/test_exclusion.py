"""What is excluded is never used, and nothing else moves."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.evaluation import EvalPlan
from factory.sampling.exclusion import Exclude, Excluded, without_excluded
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import share
from tests.sampling.cases import backend, backends, facts, walk
from tests.support.examples import examples


@st.composite
def cases(draw):
    """Backends, and for some of their rows a first step; a row of each bucket is spared."""
    listed = draw(backends())
    excluded = {}
    for each in listed:
        spared = {int(each.order[at]) for at in each.offsets[:-1] if at < len(each.order)}
        rows = sorted(set(each.order.tolist()) - spared)
        if rows:
            chosen = draw(st.lists(st.sampled_from(rows), unique=True, max_size=12))
            steps = {row: draw(st.integers(0, 25)) for row in chosen}
            if steps:
                excluded[each.name] = Excluded(steps)
    return listed, excluded


@given(cases(), st.integers(1, 6), st.integers(0, 99), st.sampled_from(["fill", "short", "drop"]))
@settings(max_examples=examples(60))
def test_only_excluded_places_change_and_never_to_what_is_excluded(case, size, seed, short) -> None:
    listed, excluded = case
    try:
        before = Plan(listed, batch_size=size, seed=seed, short_batch=short)
    except PlanError:
        return  # nothing fills a batch
    after = Plan(listed, batch_size=size, seed=seed, short_batch=short, exclude=excluded)
    buckets = {
        each.name: {
            name: set(each.order[each.offsets[n] : each.offsets[n + 1]].tolist())
            for n, name in enumerate(each.buckets)
        }
        for each in listed
    }
    for epoch in (0, 1):
        assert after.steps(epoch) == before.steps(epoch)
        for old, new in zip(walk(before, epoch), walk(after, epoch), strict=True):
            since = excluded[old.backend].steps if old.backend in excluded else {}
            barred = {row for row, first in since.items() if first <= old.global_step}
            struck = np.isin(old.rows, list(barred))
            assert new.barred == barred
            assert (new.rows[~struck] == old.rows[~struck]).all()
            assert barred.isdisjoint(new.rows.tolist())
            assert set(new.rows.tolist()) <= buckets[old.backend][old.bucket]
            assert [swap.place for swap in new.excluded] == np.flatnonzero(struck).tolist()
            assert [swap.row for swap in new.excluded] == old.rows[struck].tolist()
            assert [swap.substitute for swap in new.excluded] == new.rows[struck].tolist()
            assert (old.bucket, old.duplicates, old.number) == (
                new.bucket, new.duplicates, new.number,
            )  # fmt: skip
            # Others of the bucket come first while there are some outside the batch.
            free = buckets[old.backend][old.bucket] - barred - set(old.rows.tolist())
            fresh = {swap.substitute for swap in new.excluded} - set(old.rows.tolist())
            assert len(fresh) == min(len(free), len(new.excluded))


def test_the_same_whoever_asks_in_whatever_order() -> None:
    excluded = {"a": Excluded(dict.fromkeys(range(0, 40, 3), 5))}
    plan = Plan([backend("a", (30, 20))], batch_size=8, seed=3, exclude=excluded)
    forth = [facts(step) for step in walk(plan, 1)]
    again = pickle.loads(pickle.dumps(plan))
    back = [facts(again.at(1, step)) for step in reversed(range(again.steps(1)))]
    assert back[::-1] == forth
    step = plan.at(1, 2)
    parts = [share(step.rows, rank, 2, micro, 2) for rank in range(2) for micro in range(2)]
    assert {len(part) for part in parts} == {2}
    assert np.concatenate(parts).tolist() == step.rows.tolist()


def test_an_exclusion_added_later_does_not_change_substitutes_made_before() -> None:
    one = {"a": Excluded({3: 0})}
    two = {"a": Excluded({3: 0, 9: 6, 11: 6})}
    first = Plan([backend("a", (25,))], batch_size=5, seed=1, exclude=one)
    second = Plan([backend("a", (25,))], batch_size=5, seed=1, exclude=two)
    for step in range(5):
        assert first.at(0, step).rows.tolist() == second.at(0, step).rows.tolist()
    assert first.fingerprint != second.fingerprint
    before, after = first.describe()["exclude"], second.describe()["exclude"]
    # What a resumed run compares: entries that begin after the steps it has completed.
    assert [entry for entry in after if entry["from_step"] <= 6] == before


def test_without_exclusions_a_plan_is_described_as_before() -> None:
    plain = Plan([backend()], batch_size=2, seed=1)
    assert "exclude" not in plain.describe()
    assert Plan([backend()], batch_size=2, seed=1, exclude={}).fingerprint == plain.fingerprint
    named = {"a": Excluded({2: 8}, {2: "a/two.png"})}
    assert Plan([backend()], batch_size=2, seed=1, exclude=named).describe()["exclude"] == [
        {"from_step": 9, "backend": "a", "ids": ["a/two.png"]}
    ]


def test_explain_tells_what_was_replaced() -> None:
    plan = Plan([backend("a", (6,))], batch_size=6, seed=1, exclude={"a": Excluded({4: 0})})
    told = plan.explain(0, 0)
    assert told["barred"] == [4]
    [swap] = told["excluded"]
    assert swap["row"] == 4
    assert told["rows"][swap["place"]] == swap["substitute"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": Excluded(dict.fromkeys(range(4), 0))}, "all 4 samples of bucket 64x64 are excluded"),
        ({"b": Excluded({0: 0})}, "exclude names the backend 'b'"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(given, words) -> None:
    with pytest.raises(PlanError, match=words):
        Plan([backend("a", (4, 3))], batch_size=2, seed=1, exclude=given)


def test_streams_are_refused() -> None:
    stream = backend("s", (8,), sequential=True)
    with pytest.raises(PlanError, match="unknown until they are read"):
        Plan([stream], batch_size=2, seed=1, exclude={"s": Excluded({0: 0})})


def test_validation_goes_without_them_whatever_the_step() -> None:
    left = without_excluded(backend("v", (5, 2)), Excluded({1: 999, 5: 0, 6: 0}))
    plan = EvalPlan(left, batch_size=3)
    assert [row for n in range(plan.steps()) for row in plan.at(n).rows.tolist()] == [0, 2, 3, 4]
    with pytest.raises(PlanError, match="all 2 samples are excluded"):
        without_excluded(backend("v", (2,)), Excluded({0: 0, 1: 0}))


@pytest.mark.parametrize("given", [{"ids": []}, {"ids": "a"}, {"ids": ["a"], "from_step": 0}])
def test_wrong_values_are_refused(given) -> None:
    with pytest.raises(PlanError, match=r"exclude\."):
        Exclude(**given)
