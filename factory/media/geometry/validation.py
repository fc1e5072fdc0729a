"""Validation of sizes and crops: options, numbers, units, and what excludes what."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from factory.limits import OneOf
from factory.media.geometry.aspect_ratio import (
    DEFAULT_ROUNDING,
    bucket_problems,
    digits_of,
    is_positive,
)
from factory.media.geometry.target_size import INT32_MAX, TargetRule

if TYPE_CHECKING:
    from factory.media.geometry.geometry import Geometry

ResolutionType = Annotated[str, OneOf("pixel", "area", "pixel_area")]
CropAspect = Annotated[str, OneOf("preserve", "square", "closest", "random")]
CropStyle = Annotated[str, OneOf("center", "centre", "random", "corner", "face")]

# With more decimals than these, sides of 2**31 px would overflow 64-bit products.
MAXIMUM_ROUNDING = 6
# No training canvas is larger, and no useful edge is shorter: a resolution beyond these means
# that the unit was mistaken.
MAX_MEGAPIXELS = 32
MIN_EDGE = 16
# A minimum above this many megapixels is almost surely an edge in pixels.
MAXIMUM_MINIMUM_AREA = 5.0
# So is a limit of this many, or more; and an edge below this many pixels is megapixels.
AREA_BOUND = 20.0
LEAST_LIMIT_EDGE = 512
# A canvas of this many megapixels, or more, is one in pixels: 16 Ki squared are 268.
CANVAS_BOUND = 1000.0
# "WIDTHxHEIGHT" has two numbers.
_EDGES = 2

_SIZES = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
_OPTIONAL = (*_SIZES, "minimum_aspect_ratio", "maximum_aspect_ratio", "maximum_canvas")


def problems_of(settings: "Geometry") -> Iterator[str]:
    """Yield what is wrong with the settings, each naming what was given and what is allowed."""
    for name, kind in (
        ("resolution_type", ResolutionType),
        ("crop_aspect", CropAspect),
        ("crop_style", CropStyle),
    ):
        (limit,) = kind.__metadata__  # type: ignore[attr-defined]
        yield from limit.problems(name, getattr(settings, name))
    digits = settings.aspect_rounding
    if not (isinstance(digits, int) and -1 <= digits <= MAXIMUM_ROUNDING):
        allowed = f"a whole number from -1 to {MAXIMUM_ROUNDING}"
        yield f"aspect_rounding must be {allowed}, got {digits!r}"
        return
    yield from crop_problems(
        settings.crop_aspect,
        settings.crop_aspect_buckets,
        settings.max_upscale_threshold,
        prefix="crop_",
    )
    yield from size_problems(settings, digits)


def crop_problems(
    aspect: str, entries: Sequence[object], threshold: Any, *, prefix: str = ""
) -> Iterator[str]:
    """Yield what is wrong with the ratios that a crop chooses from.

    Args:
        aspect: The shape of the cut.
        entries: Ratios, or mappings of "aspect" and "weight".
        threshold: The largest enlargement.
        prefix: What the names of the first two settings begin with.
    """
    if aspect in ("closest", "random") and not entries:
        yield (
            f"{prefix}aspect_buckets must not be empty with {prefix}aspect={aspect}; "
            f"set {prefix}aspect_buckets=[0.75,1.0,1.33]"
        )
    yield from bucket_problems(entries, f"{prefix}aspect_buckets")
    if threshold is None:
        return
    if not (threshold == 0 or is_positive(threshold)):
        yield f"max_upscale_threshold must be a number from 0 or null, got {threshold!r}"
    if aspect != "random":
        yield (
            f"max_upscale_threshold={threshold:g} counts with {prefix}aspect=random only, got "
            f"{prefix}aspect={aspect}; set max_upscale_threshold=null"
        )


def number_problems(settings: Any) -> Iterator[str]:
    """Yield what is wrong with single numbers; those that are None are left out."""
    if settings.resolution is not None and not is_positive(settings.resolution):
        yield f"resolution must be a number above 0, got {settings.resolution!r}"
    step = settings.alignment
    if step is not None and not (isinstance(step, int) and step >= 1):
        yield f"alignment must be a whole number of px, at least 1; got {step!r}"
    for name in _OPTIONAL:
        value = getattr(settings, name, None)
        if value is not None and not is_positive(value):
            yield f"{name} must be a number above 0 or null, got {value!r}"
    low, high = _number(settings, "minimum_aspect_ratio"), _number(settings, "maximum_aspect_ratio")
    if low is not None and high is not None and low > high:
        yield f"minimum_aspect_ratio={low:g} must not be above maximum_aspect_ratio={high:g}"


def size_problems(settings: Any, rounding: int = DEFAULT_ROUNDING) -> Iterator[str]:
    """Yield what is wrong with sizes: numbers, units, limits, and forced targets.

    Args:
        settings: A `Geometry`, or what has its sizes by the same names.
        rounding: Decimals of aspect labels.
    """
    yield from number_problems(settings)
    size, step = settings.resolution, settings.alignment
    if not (is_positive(size) and isinstance(step, int) and step >= 1):
        return  # all else is compared with them
    yield from _unit_problems(settings)
    yield from _downsample_problems(
        _number(settings, "maximum_image_size"), _number(settings, "target_downsample_size")
    )
    yield from _canvas_problems(_number(settings, "maximum_canvas"), step)
    yield from _forced_problems(settings.aspect_sizes or {}, step, digits_of(rounding))
    kind = str(settings.resolution_type)
    if TargetRule(size, kind, step, rounding).square_edge > INT32_MAX:
        yield f"resolution={size:g} gives targets beyond {INT32_MAX} px; check resolution_type"


def resolution_problems(resolution: float, kind: str) -> Iterator[str]:
    """Yield why a resolution is surely meant in another unit."""
    if kind == "area" and resolution > MAX_MEGAPIXELS:
        yield (
            f"resolution={resolution:g} with resolution_type=area means megapixels; "
            "for an edge in px set resolution_type=pixel_area"
        )
    if kind != "area" and 0 < resolution < MIN_EDGE:
        yield (
            f"resolution={resolution:g} with resolution_type={kind} means px; "
            "for megapixels set resolution_type=area"
        )


def _number(settings: Any, name: str) -> float | None:
    """Return a number; None where it is none, which is said elsewhere."""
    value = getattr(settings, name, None)
    return value if is_positive(value) else None


def _unit_problems(settings: Any) -> Iterator[str]:
    kind, size = str(settings.resolution_type), settings.resolution
    if kind == "pixel_area" and size != int(size):
        yield f"resolution must be a whole edge in px with resolution_type=pixel_area, got {size:g}"
    for name in _SIZES:
        value = _number(settings, name)
        if value is None:
            continue
        minimum = name == "minimum_image_size"
        if kind == "area" and (value > MAXIMUM_MINIMUM_AREA if minimum else value >= AREA_BOUND):
            allowed = f"at most {MAXIMUM_MINIMUM_AREA:g}" if minimum else f"below {AREA_BOUND:g}"
            yield (
                f"{name}={value:g} means megapixels with resolution_type=area and must be {allowed}"
                "; for an edge in px set resolution_type=pixel_area"
            )
        least = min(LEAST_LIMIT_EDGE, size)  # pictures are trained on at 256 px, too
        if kind != "area" and not minimum and value < least:
            yield (
                f"{name}={value:g} means px with resolution_type={kind} and must be at least "
                f"{least:g}; for megapixels set resolution_type=area"
            )


def _downsample_problems(most: float | None, wanted: float | None) -> Iterator[str]:
    if (most is None) != (wanted is None):
        given, absent = "maximum_image_size", "target_downsample_size"
        if most is None:
            given, absent = absent, given
        yield (
            f"{given}={most or wanted:g} needs {absent} beside it: samples above "
            "maximum_image_size are shrunk to target_downsample_size before the cut; set both, or "
            f"{given}=null"
        )
    if most is not None and wanted is not None and wanted > most:
        yield (
            f"target_downsample_size={wanted:g} must not be above maximum_image_size={most:g}: "
            "larger samples are shrunk to it, never enlarged"
        )


def _canvas_problems(canvas: float | None, step: int) -> Iterator[str]:
    if canvas is None:
        return
    if canvas >= CANVAS_BOUND:
        yield f"maximum_canvas={canvas:g} means megapixels and must be below {CANVAS_BOUND:g}"
    if round(canvas * 1e6) < step * step:
        yield (
            f"maximum_canvas={canvas:g} MP is below one square of alignment={step}; "
            f"set maximum_canvas={step * step / 1e6:g} or more"
        )


def _forced_problems(given: Any, step: int, digits: int) -> Iterator[str]:
    try:
        forced = dict(given)
    except (TypeError, ValueError):
        yield f"aspect_sizes must map labels to [width, height], got {given!r}"
        return
    for label, size in forced.items():
        yield from _label_problems(label, digits)
        edges = tuple(size) if isinstance(size, list | tuple) else ()
        whole = len(edges) == _EDGES and all(type(edge) is int for edge in edges)
        if not whole or any(edge < 1 or edge % step for edge in edges):
            yield (
                f"aspect_sizes must be [width, height] in multiples of alignment={step}, got "
                f"{size!r} for {label!r}"
            )


def _label_problems(label: object, digits: int) -> Iterator[str]:
    """Yield a problem where no bucket can have a label, so that its size would never be used."""
    try:
        value = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = 0.0
    if not is_positive(value) or round(value, digits) != value:
        yield (
            f"aspect_sizes has the label {label!r}; labels are ratios width/height above 0 of "
            f"at most {digits} decimals, such as 0.75"
        )
