"""Targets at less common resolutions."""

from typing import Any

import pytest

from .sizes import assert_sound, settings, shape

GOLDEN = "bucket_extra.json"


def test_bucket_extra(case: dict[str, Any]) -> None:
    if case["kind"] == "maximum_canvas":
        pytest.skip("a model's own canvas limit: no model imposes one here")
    assert case["kind"] == "resolution"
    inputs, expected = case["inputs"], case["expected"]
    width, height = inputs["width"], inputs["height"]
    got = shape(settings(inputs), width, height)
    assert got.reason == "kept"
    assert got.label == expected["aspect_bucket"]
    defects = case.get("upstream_defect", [])
    if "unaligned_target" not in defects:
        assert got.target == expected["target_size"]
    if defects:
        assert_sound(got, width, height, inputs["alignment"])
        return
    assert got.intermediary == expected["intermediary_size"]
