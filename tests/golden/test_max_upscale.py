"""Which ratios a random choice may take under max_upscale_threshold."""

from typing import Any

import numpy as np

from tests.golden.sizes import settings

GOLDEN = "max_upscale_threshold.json"


def test_max_upscale_threshold(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]["available_buckets"]
    geometry = settings({"crop": True, "crop_aspect": "random"} | inputs)
    width, height = np.array([inputs["width"]]), np.array([inputs["height"]])
    available = geometry.available(width, height)[0]
    ratios = np.array(geometry.crop_aspect_buckets)
    assert ratios[available].tolist() == expected
    # What is drawn is what is available, and a square where nothing is.
    rows = 200
    uniform = np.random.default_rng(1).random((rows, 3))
    drawn = geometry.targets(np.repeat(width, rows), np.repeat(height, rows), uniform)
    alone = {
        settings(
            {"crop": True, "crop_aspect": "closest"}
            | inputs
            | {"crop_aspect_buckets": [ratio], "max_upscale_threshold": None}
        )
        .targets(width, height)
        .aspect[0]
        for ratio in expected or [1.0]
    }
    assert set(drawn.aspect.tolist()) == alone
