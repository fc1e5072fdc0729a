"""Targets at less common resolutions, and below a largest canvas."""

from dataclasses import replace
from typing import Any

from tests.golden.sizes import assert_sound, settings, shape

GOLDEN = "bucket_extra.json"


def test_bucket_extra(case: dict[str, Any]) -> None:
    if case["kind"] == "maximum_canvas":
        check_canvas(case["inputs"], case["expected"])
        return
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


def check_canvas(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    """The canvas holds for squares as well, where the golden run exceeds it.

    Its intermediary is that of the uncapped target, so that the cut would lose most of the
    picture; here it covers the target that is trained.
    """
    width, height, most = inputs["width"], inputs["height"], inputs["model_maximum_canvas_size"]
    geometry = settings(inputs)
    got = shape(geometry, width, height)
    assert got.reason == "kept"
    assert got.label == expected["aspect_bucket"]
    assert got.target[0] * got.target[1] <= most
    if expected["within_limit"]:
        assert got.target == expected["target_size"]
    else:
        assert got.target[0] == got.target[1] == int(most**0.5) // 16 * 16
    assert_sound(got, width, height, inputs["alignment"])
    if got == shape(replace(geometry, maximum_canvas=None), width, height):
        assert got.intermediary == expected["intermediary_size"]
