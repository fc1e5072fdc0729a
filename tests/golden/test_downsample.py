"""Which size a large picture is shrunk to before the cut.

The golden run shrinks, and enlarges, whatever differs from the resolution. What is built is
the documented rule: only what is above `maximum_image_size`, and never an enlargement.
"""

from dataclasses import replace
from typing import Any

from tests.golden.sizes import assert_sound, settings, shape

GOLDEN = "downsample_before_crop.json"


def test_downsample(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    width, height = inputs["width"], inputs["height"]
    geometry = settings(inputs)
    plain = replace(geometry, maximum_image_size=None, target_downsample_size=None)
    got, without = shape(geometry, width, height), shape(plain, width, height)
    assert got.target == without.target == expected["target_size"]
    assert without.intermediary == expected["intermediary_size"]
    assert_sound(got, width, height, inputs["alignment"])
    before = expected["pre_crop_size"]
    if not expected["documented_threshold_exceeded"]:
        assert got == without
    elif before[0] > width or before[1] > height:
        # Enlarged there; here the picture's own size, or what covers the target.
        larger = max([width, height], without.intermediary)
        assert got.intermediary == larger
    elif min(before[0] - got.target[0], before[1] - got.target[1]) > 0:
        assert got.intermediary == before
    else:
        # The least size that covers the target, which the golden run finds in two ways.
        assert got.intermediary == without.intermediary
        assert abs(before[0] - got.intermediary[0]) + abs(before[1] - got.intermediary[1]) <= 1
