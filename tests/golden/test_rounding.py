"""Rounding to multiples, and of aspect labels."""

from typing import Any

import numpy as np

from factory.media.geometry.aspect_ratio import aspect_label, round_to_multiple

GOLDEN = "rounding.json"


def test_rounding(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    if case["fn"] == "round_to_multiple":
        values = np.array([float(inputs["value"])])
        assert round_to_multiple(values, inputs["multiple"]).tolist() == [case["expected"]]
        return
    assert case["fn"] == "aspect_ratio"
    given = inputs["aspect_bucket_rounding"]
    width, height = np.array([inputs["width"]]), np.array([inputs["height"]])
    label = aspect_label(width, height, 2 if given is None else given)
    assert str(float(label[0])) == str(float(case["expected"]))
