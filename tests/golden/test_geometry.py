"""Target, intermediary, cut and filter reason of single pictures."""

from typing import Any

from tests.golden.sizes import assert_sound, settings, shape

GOLDEN = "geometry.json"


def test_geometry(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    width, height = inputs["width"], inputs["height"]
    got = shape(settings(inputs), width, height)
    buckets = inputs["crop_aspect_buckets"] or ()
    if "error" in expected and any(type(bucket) is int for bucket in buckets):
        # Upstream lets whole numbers through its checks and then fails on every sample; the
        # file asks for accepting or refusing them, and here they are accepted.
        assert got.reason == "kept"
        assert_sound(got, width, height, inputs["alignment"])
        return
    assert got.reason == (expected["filter_reason"] or "kept")
    if "error" in expected:
        assert got.target == got.intermediary == [0, 0]
        return
    assert got.label == expected["aspect_bucket"]
    assert got.target == expected["target_size"]
    if "upstream_defect" in case:
        assert_sound(got, width, height, inputs["alignment"])
        return
    assert got.intermediary == expected["intermediary_size"]
    assert got.crop == expected["center_crop_coordinates_top_left"]
