"""One target for each bucket, whatever the order of the pictures."""

from typing import Any

import numpy as np

from tests.golden.sizes import settings, shape

GOLDEN = "bucket_map_order.json"


def test_bucket_map_order(case: dict[str, Any]) -> None:
    inputs = {"crop_aspect": None} | case["inputs"]
    geometry = settings(inputs)
    sizes = {name: inputs[name] for name in ("first", "second")}
    alone = {name: shape(geometry, *size).target for name, size in sizes.items()}
    assert alone == case["expected"]["alone"]
    for order in (["first", "second"], ["second", "first"], ["first", "second", "first"]):
        width, height = np.array([sizes[name] for name in order]).T
        # A bucket is the target itself, so it has one target; no order changes a target.
        assert geometry.decide(width, height).target.tolist() == [alone[name] for name in order]
