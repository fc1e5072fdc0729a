"""What one epoch of one backend with repeats gives."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan

GOLDEN = "repeats_and_split.json"
NOT_PLANNED = {
    "split": "batches are cut from one global order here, not from a shard of each rank",
    "caption_sampler": "captions alone are no backend to train on yet",
    "max_num_samples": "which samples are kept is decided by the catalog",
}


def test_epoch(case: dict[str, Any]) -> None:
    if case["kind"] in NOT_PLANNED:
        pytest.skip(NOT_PLANNED[case["kind"]])
    assert case["kind"] == "epoch"
    inputs, expected = case["inputs"], case["expected"]
    sizes = list(inputs["buckets"].values())
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    order = np.arange(offsets[-1])
    source = PlanBackend("ds", order, offsets, tuple(inputs["buckets"]), repeats=inputs["repeats"])
    # The file's batch size is one rank's; the plan's batch is that of all ranks together.
    batch_size = inputs["batch_size"] * inputs["gpus"]
    plan = Plan([source], batch_size=batch_size, seed=1)
    steps = [plan.at(0, step) for step in range(plan.steps(0))]
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
