"""What one epoch of one backend with repeats gives, and each rank's part of it.

The golden files cut every bucket into shards that ranks keep, so what one rank sees depends on how
many there are. Here ranks share every batch. What holds for both is tested: ranks see equally
much where padding is on, all of them together see everything, and the numbers of samples given
twice are those of filling up whole batches. Where the golden file refuses buckets that are too
small for all ranks, they are filled up and counted here.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan, PlanStep
from factory.sampling.rank_shares import share

GOLDEN = "repeats_and_split.json"
NOT_PLANNED = {
    "caption_sampler": "captions alone are no backend to train on yet",
    "max_num_samples": "decided by the catalog, and tested there (tests/catalog/test_decisions.py)",
}


def epoch_of(inputs: dict[str, Any]) -> tuple[Plan, list[PlanStep]]:
    sizes = list(inputs["buckets"].values())
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    order = np.arange(offsets[-1])
    source = PlanBackend("ds", order, offsets, tuple(inputs["buckets"]), repeats=inputs["repeats"])
    # The file's batch size is one rank's; the plan's batch is that of all ranks and of all
    # micro-batches together.
    micros = inputs.get("gradient_accumulation_steps", 1)
    plan = Plan([source], batch_size=inputs["batch_size"] * inputs["gpus"] * micros, seed=1)
    return plan, [plan.at(0, step) for step in range(plan.steps(0))]


def check_split(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    plan, steps = epoch_of(inputs)
    assert plan.batch_size == expected["effective_batch_size"]
    passes = inputs["repeats"] + 1
    micros, ranks = inputs["gradient_accumulation_steps"], inputs["gpus"]
    for bucket, size in inputs["buckets"].items():
        mine = [step for step in steps if step.bucket == bucket]
        parts = [
            [row for step in mine for micro in range(micros)
             for row in share(step.rows, rank, ranks, micro, micros).tolist()]
            for rank in range(ranks)
        ]  # fmt: skip
        batches = passes * -(-size // plan.batch_size)
        assert {len(part) for part in parts} == {batches * plan.batch_size // ranks}
        assert len(set().union(*parts)) == size
        extra = sum(step.duplicates for step in mine)
        assert extra == batches * plan.batch_size - passes * size
        if "error" in expected:
            # It asks for repeats where a bucket cannot give every rank a batch.
            assert (
                size * passes
                < plan.batch_size
                <= size * (passes + expected["minimum_repeats_required"][0])
            )
        else:
            assert expected["unique_over_ranks"][bucket] == size


def test_epoch(case: dict[str, Any]) -> None:
    if case["kind"] in NOT_PLANNED:
        pytest.skip(NOT_PLANNED[case["kind"]])
    inputs, expected = case["inputs"], case["expected"]
    if case["kind"] == "split":
        check_split(inputs, expected)
        return
    assert case["kind"] == "epoch"
    plan, steps = epoch_of(inputs)
    order = plan.backends[0].order
    seen = Counter(row for step in steps for row in step.rows.tolist())
    if inputs["gpus"] == 1:
        assert len(steps) == expected["epoch_batches"]
        assert seen.total() == expected["epoch_samples"]
        assert sorted({len(step.rows) for step in steps}) == expected["batch_sizes"]
        assert inputs["repeats"] + 1 == expected["times_each_sample_seen"]["unpadded"]
    assert len(seen) == len(order)
    assert min(seen.values()) >= inputs["repeats"] + 1
    account = plan.accounting(0)[0]
    assert account.rows - account.duplicates == len(order) * (inputs["repeats"] + 1)
