"""Going through a validation backend once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.evaluation import EvalPlan
from factory.sampling.rank_shares import pad, share
from tests.sampling.cases import backend, facts


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 0),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_every_row_once_in_order_on_any_number_of_ranks(sizes, batch_size, ranks) -> None:
    source = backend(sizes=tuple(sizes), first=50)
    plan = EvalPlan(source, batch_size)
    steps = [plan.at(step) for step in range(plan.steps())]
    assert np.concatenate([step.rows for step in steps]).tolist() == source.order.tolist()
    seen = []
    for step in steps:
        assert 1 <= len(step.rows) <= batch_size
        bucket = source.buckets.index(step.bucket)
        assert step.rows.min() >= source.order[source.offsets[bucket]]
        assert step.rows.max() < 50 + source.offsets[bucket + 1]
        rows, valid = pad(step.rows, ranks)
        for rank in range(ranks):
            keep = share(valid.astype(np.int64), rank, ranks) == 1
            seen += share(rows, rank, ranks)[keep].tolist()
    assert seen == source.order.tolist()


def test_any_order_of_asking_gives_the_same() -> None:
    plan = EvalPlan(backend(sizes=(5, 0, 7)), 2)
    forth = [facts(plan.at(step)) for step in range(plan.steps())]
    back = [facts(plan.at(step)) for step in reversed(range(plan.steps()))]
    assert back[::-1] == forth


def test_its_own_batch_size_wins() -> None:
    assert EvalPlan(backend(sizes=(9,), batch_size=3), 100).steps() == 3


def test_steps_outside_and_empty_batches_are_refused() -> None:
    plan = EvalPlan(backend("val", (5,)), 2)
    for step in (-1, 3):
        with pytest.raises(PlanError, match=rf"'val' has the steps 0 to 2, got {step}"):
            plan.at(step)
    with pytest.raises(PlanError, match="batch_size must be 1 or more"):
        EvalPlan(backend(), 0)
