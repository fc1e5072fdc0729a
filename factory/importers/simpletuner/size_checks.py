"""Checks of an entry's sizes and crops."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from factory.importers.simpletuner.entry import Entry
from factory.importers.simpletuner.problem import ImportProblem, shown
from factory.media.geometry.validation import MAX_MEGAPIXELS, MIN_EDGE

UNITS = ("pixel", "area", "pixel_area")
ASPECTS = ("square", "preserve", "closest", "random")
# Upstream's name of a place, and this project's.
STYLES = {
    "random": "random", "center": "center", "centre": "center", "corner": "corner",
    "face": "face",
}  # fmt: skip
# Upstream's limits of what a unit can mean: a limit in megapixels from here on is meant in px,
MAX_LIMIT_MP = 20
# a limit in px below this in megapixels (deepfloyd alone trains on smaller pictures),
MIN_LIMIT_PX = 512
# and a minimum above so many megapixels in px.
MAX_MINIMUM_MP = 5
# The three spellings of a ratio in `crop_aspect_buckets`.
RATIO_KEYS = ("aspect_bucket", "aspect", "aspect_ratio")
# Weights are decimal text: their sum is 1.0 to within their rounding.
WEIGHTS_TOLERANCE = 1e-6

Problems = Iterator[ImportProblem]


def size_problems(entry: Entry) -> Problems:
    """Yield what is wrong with resolution and size limits."""
    unit = entry.get("resolution_type")
    if unit not in UNITS:
        text = f"resolution_type {shown(unit)} is none of {', '.join(UNITS)}"
        yield ImportProblem("invalid_value", text)
        return
    sizes = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
    # Upstream's 0 and "" of a limit mean none.
    wrong = [
        key for key in sizes
        if not _is_size(entry.get(key)) and (key == "resolution" or not is_off(entry.get(key)))
    ]  # fmt: skip
    for key in wrong:
        kind = "invalid_type" if _not_number(entry.get(key)) else "invalid_value"
        yield ImportProblem(kind, f"{key} must be a number above 0, got {shown(entry.get(key))}")
    if not wrong:
        yield from _resolution(entry, unit)
        yield from _limits(entry, unit)
    for key in ("minimum_aspect_ratio", "maximum_aspect_ratio", "max_upscale_threshold"):
        value = entry.filled.get(key)
        if value is None or is_off(value):
            continue
        if _not_number(value):
            yield ImportProblem("invalid_type", f"{key} must be a number, got {shown(value)}")
        elif value < 0 or not math.isfinite(value):
            yield ImportProblem("invalid_value", f"{key} must not be negative, got {shown(value)}")
    yield from _ratios(entry)


def _ratios(entry: Entry) -> Problems:
    low, high = (entry.filled.get(f"{end}_aspect_ratio") or 0 for end in ("minimum", "maximum"))
    if _not_number(low) or _not_number(high):
        return
    if low > high > 0:
        text = f"minimum_aspect_ratio {low} is above maximum_aspect_ratio {high}"
        yield ImportProblem("invalid_value", text)


def is_off(value: Any) -> bool:
    """Tell whether a limit is none: absent, 0 or blank."""
    return value is None or value == "" or (value == 0 and not isinstance(value, bool))


def _not_number(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float)


def _is_size(value: Any) -> bool:
    """Tell whether a value is a size, or absent."""
    return value is None or (not _not_number(value) and 0 < value < math.inf)


def _resolution(entry: Entry, unit: str) -> Problems:
    value = entry.get("resolution")
    if unit == "pixel_area" and (value != int(value) or value < MIN_EDGE):
        text = f"resolution with pixel_area must be a whole edge such as 1024, got {shown(value)}"
        yield ImportProblem("invalid_value", text)
    elif unit == "pixel" and value < MIN_EDGE:
        text = f"resolution {shown(value)} with pixel means px; megapixels are resolution_type area"
        yield ImportProblem("suspicious_value", text)
    elif unit == "area" and value > MAX_MEGAPIXELS:
        text = f"resolution {shown(value)} with area means megapixels; an edge in px is pixel_area"
        yield ImportProblem("suspicious_value", text)


def _limits(entry: Entry, unit: str) -> Problems:
    largest, target, smallest = (
        None if is_off(value) else value
        for value in map(
            entry.get, ("maximum_image_size", "target_downsample_size", "minimum_image_size")
        )
    )
    if largest is not None and target is None:
        yield ImportProblem("missing_key", "maximum_image_size needs target_downsample_size too")
    if unit == "area" and smallest is not None and smallest > MAX_MINIMUM_MP:
        text = (
            f"minimum_image_size {shown(smallest)} with area means megapixels, and must be below 5"
        )
        yield ImportProblem("suspicious_value", text)
    if largest is None:
        return
    for key, value in (("maximum_image_size", largest), ("target_downsample_size", target)):
        if value is None:
            continue
        megapixels = value**2 / 1e6 if unit == "pixel_area" else value
        if unit != "pixel" and megapixels >= MAX_LIMIT_MP:
            text = f"{key} {shown(value)} with {unit} is {megapixels:g} megapixels, 20 or more"
            yield ImportProblem("suspicious_value", text)
        told = (str(entry.arguments[name]) for name in ("model_type", "model_family"))
        is_small = any("deepfloyd" in name for name in told)
        if unit == "pixel" and value < MIN_LIMIT_PX and not is_small:
            text = f"{key} {shown(value)} with pixel is below {MIN_LIMIT_PX} px"
            yield ImportProblem("suspicious_value", text)


def crop_problems(entry: Entry) -> Problems:
    """Yield what is wrong with the cut, also where `crop` is false."""
    crop = entry.filled.get("crop")
    words = ("true", "false")
    if crop is not None and crop not in (0, 1) and str(crop).strip().lower() not in words:
        yield ImportProblem("invalid_type", f"crop must be true or false, got {shown(crop)}")
    aspect = entry.filled.get("crop_aspect")
    if aspect is not None and aspect not in ASPECTS:
        text = f"crop_aspect {shown(aspect)} is none of {', '.join(ASPECTS)}"
        yield ImportProblem("invalid_value", text)
    style = entry.filled.get("crop_style")
    if style is not None and (not isinstance(style, str) or style not in STYLES):
        text = f"crop_style {shown(style)} is none of {', '.join(STYLES)}"
        yield ImportProblem("invalid_value", text)
    buckets = entry.filled.get("crop_aspect_buckets")
    if aspect in ("closest", "random") and (buckets is None or buckets == []):
        text = f"crop_aspect {aspect} needs crop_aspect_buckets, a list of ratios"
        yield ImportProblem("missing_key", text)
    elif buckets is not None:
        yield from _buckets(buckets)


def _buckets(buckets: Any) -> Problems:
    what = "crop_aspect_buckets must be a list of ratios, or of {aspect, weight} objects"
    if not isinstance(buckets, list):
        yield ImportProblem("invalid_type", what)
        return
    ratios = [ratio_of(bucket) for bucket in buckets]
    if any(_not_number(ratio) for ratio in ratios):
        yield ImportProblem("invalid_type", what)
    elif any(not 0 < ratio < math.inf for ratio in ratios):
        yield ImportProblem("invalid_value", "crop_aspect_buckets must be positive")
    objects = [bucket for bucket in buckets if isinstance(bucket, Mapping)]
    if not objects:
        return
    weights: list[Any] = [bucket.get("weight") for bucket in objects]
    if len(objects) < len(buckets) or any(_not_number(weight) for weight in weights):
        yield ImportProblem("invalid_type", "crop_aspect_buckets need a weight each, or none any")
    elif min(weights) < 0 or abs(sum(weights) - 1) > WEIGHTS_TOLERANCE:
        text = f"weights of crop_aspect_buckets must add up to 1, got {sum(weights):g}"
        yield ImportProblem("invalid_value", text)


def ratio_of(bucket: Any) -> Any:
    """Return the ratio of an entry of `crop_aspect_buckets`; None where there is none."""
    if not isinstance(bucket, Mapping):
        return bucket
    return next((bucket[key] for key in RATIO_KEYS if key in bucket), None)
