"""One picture of a golden case through the geometry."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.media.geometry.geometry import REASONS, Geometry

# How far a resize may be out of proportion before the golden files call it distorted.
DISTORTION = 0.03


@dataclass(frozen=True)
class Shape:
    """What the geometry decided about one picture."""

    target: list[int]
    intermediary: list[int]
    crop: list[int]
    label: str
    reason: str


def settings(inputs: dict[str, Any]) -> Geometry:
    """Return the geometry of a golden case; crop=false is crop_aspect=preserve here."""
    buckets = inputs.get("crop_aspect_buckets") or ()
    rounding = inputs.get("aspect_bucket_rounding")
    return Geometry(
        resolution=inputs["resolution"],
        resolution_type=inputs["resolution_type"],
        alignment=inputs["alignment"],
        aspect_rounding=2 if rounding is None else rounding,
        crop_aspect=inputs["crop_aspect"] if inputs["crop"] else "preserve",
        crop_aspect_buckets=tuple(b["aspect"] if isinstance(b, dict) else b for b in buckets),
        max_upscale_threshold=inputs.get("max_upscale_threshold"),
        minimum_image_size=inputs.get("minimum_image_size"),
        maximum_image_size=inputs.get("maximum_image_size"),
        target_downsample_size=inputs.get("target_downsample_size"),
        minimum_aspect_ratio=inputs.get("minimum_aspect_ratio"),
        maximum_aspect_ratio=inputs.get("maximum_aspect_ratio"),
        maximum_canvas=megapixels(inputs.get("model_maximum_canvas_size")),
    )


def megapixels(pixels: int | None) -> float | None:
    """Return an area in the unit of `maximum_canvas`."""
    return None if pixels is None else pixels / 1e6


def shape(geometry: Geometry, width: int, height: int) -> Shape:
    """Decide about one picture."""
    shapes = geometry.decide(np.array([width]), np.array([height]))
    return Shape(
        shapes.target[0].tolist(),
        shapes.intermediary[0].tolist(),
        shapes.crop[0].tolist(),
        str(float(shapes.aspect[0])),
        REASONS[shapes.reason[0]],
    )


def assert_sound(got: Shape, width: int, height: int, alignment: int) -> None:
    """Check what holds for every picture, where the golden value itself is a defect."""
    (wide, tall), (target_wide, target_tall) = got.intermediary, got.target
    assert target_wide % alignment == 0
    assert target_tall % alignment == 0
    assert wide >= target_wide
    assert tall >= target_tall
    assert abs((wide / tall) / (width / height) - 1) <= DISTORTION
    assert got.crop == [(tall - target_tall) // 2, (wide - target_wide) // 2]
