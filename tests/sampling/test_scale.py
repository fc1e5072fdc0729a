"""Plans over fifty million rows; what is checked is what is touched, never a clock."""

import tracemalloc

import numpy as np
import pytest

from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan
from factory.sampling.strategies import AutoWeighting, UniformWeighting

ROWS = 10_000_000
EDGES = np.linspace(0, 1, 11) ** 1.5  # ten buckets of unequal size
PROBABILITIES = (1.0, 0.7, 0.55, 0.31, 0.2)


@pytest.fixture(scope="module")
def sources() -> list[PlanBackend]:
    order = np.arange(ROWS)  # one array, seen by all five
    offsets = (EDGES * ROWS).astype(np.int64)
    buckets = tuple(f"{64 + 8 * number}x64" for number in range(10))
    return [
        PlanBackend(f"b{number}", order, offsets, buckets, probability=probability)
        for number, probability in enumerate(PROBABILITIES)
    ]


@pytest.mark.parametrize("weighting", [UniformWeighting(), AutoWeighting()])
def test_fifty_million_rows(sources: list[PlanBackend], weighting: UniformWeighting) -> None:
    tracemalloc.start()
    plan = Plan(sources, batch_size=16, seed=1, weighting=weighting)
    steps = plan.steps(0)
    per_backend = sum(-(-size // 16) for size in sources[0].sizes.tolist())
    assert steps == 5 * per_backend
    assert plan.at(7, steps - 1).global_step == 8 * steps - 1
    plan.prepare(0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A byte a step, its counts, and the blocks played side by side; the rows alone are 80 MB.
    assert kept < 8 * steps
    assert peak < 60 * 2**20
    accounts = plan.accounting(0)
    assert [account.batches for account in accounts] == [per_backend] * 5
    assert [account.rows - account.duplicates for account in accounts] == [ROWS] * 5
    for account in accounts:
        assert abs(account.requested - account.achieved) * steps <= len(plan.stretches(0))


def test_the_far_end_equals_the_same_steps_of_a_plan_walked_to_it(sources) -> None:
    plan, other = (Plan(sources, batch_size=16, seed=1) for _ in range(2))
    far = 2_000_000
    later = [plan.at(0, step) for step in range(far, far + 50)]
    for step in range(0, far, 9973):
        other.at(0, step)
    for step in later:
        again = other.at(0, step.step)
        assert (again.backend, again.bucket) == (step.backend, step.bucket)
        assert np.array_equal(again.rows, step.rows)


def test_a_bucket_of_millions_is_visited_once(sources) -> None:
    plan = Plan([sources[0]], batch_size=10_000, seed=1)
    seen = np.zeros(ROWS, dtype=np.uint8)
    for step in range(plan.steps(0)):
        seen[plan.at(0, step).rows] += 1  # distinct: every bucket is larger than a batch
    assert seen.min() == 1
    assert int(seen.sum()) == ROWS + plan.accounting(0)[0].duplicates
