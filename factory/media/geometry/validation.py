"""Validation of geometry settings: options, numbers, units, and what excludes what."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from factory.media.geometry.aspect_ratio import bucket_problems, digits_of, is_positive
from factory.media.geometry.target_size import INT32_MAX, TargetRule

if TYPE_CHECKING:
    from factory.media.geometry.geometry import Geometry

ResolutionType = Literal["pixel", "area", "pixel_area"]
CropAspect = Literal["preserve", "square", "closest", "random"]
CropStyle = Literal["center", "random", "corner", "face"]

# With more decimals than these, sides of 2**31 px would overflow 64-bit products.
MAXIMUM_ROUNDING = 6
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
    simple = [*_option_problems(settings), *_number_problems(settings)]
    yield from simple
    if simple:
        return  # what follows compares numbers
    yield from _unit_problems(settings)
    yield from _downsample_problems(settings)
    yield from _size_problems(settings)
    low, high = settings.minimum_aspect_ratio, settings.maximum_aspect_ratio
    if low is not None and high is not None and low > high:
        yield f"minimum_aspect_ratio={low:g} must not be above maximum_aspect_ratio={high:g}"


def _option_problems(settings: "Geometry") -> Iterator[str]:
    options = (
        ("resolution_type", ResolutionType),
        ("crop_aspect", CropAspect),
        ("crop_style", CropStyle),
    )
    for name, kind in options:
        given, allowed = getattr(settings, name), get_args(kind)
        if given not in allowed:
            yield f"{name} must be one of {', '.join(allowed)}; got {given!r}"


def _number_problems(settings: "Geometry") -> Iterator[str]:
    if not is_positive(settings.resolution):
        yield f"resolution must be a number above 0, got {settings.resolution!r}"
    if not (isinstance(settings.alignment, int) and settings.alignment >= 1):
        yield f"alignment must be a whole number of px, at least 1; got {settings.alignment!r}"
    digits = settings.aspect_rounding
    if not (isinstance(digits, int) and -1 <= digits <= MAXIMUM_ROUNDING):
        allowed = f"a whole number from -1 to {MAXIMUM_ROUNDING}"
        yield f"aspect_rounding must be {allowed}, got {digits!r}"
    for name in _OPTIONAL:
        value = getattr(settings, name)
        if value is not None and not is_positive(value):
            yield f"{name} must be a number above 0 or None, got {value!r}"
    yield from _choice_problems(settings)


def _choice_problems(settings: "Geometry") -> Iterator[str]:
    aspect, entries = settings.crop_aspect, settings.crop_aspect_buckets
    if aspect in ("closest", "random") and not entries:
        yield (
            f"crop_aspect_buckets must not be empty with crop_aspect={aspect}; "
            "set it to ratios such as (0.75, 1.0, 1.33)"
        )
    yield from bucket_problems(entries)
    threshold = settings.max_upscale_threshold
    if threshold is None:
        return
    if not (threshold == 0 or is_positive(threshold)):
        yield f"max_upscale_threshold must be a number from 0 or None, got {threshold!r}"
    if aspect != "random":
        yield (
            f"max_upscale_threshold={threshold} counts with crop_aspect=random only, got "
            f"crop_aspect={aspect}; leave it out"
        )


def _unit_problems(settings: "Geometry") -> Iterator[str]:
    kind, size = settings.resolution_type, settings.resolution
    if kind == "pixel_area" and size != int(size):
        yield f"resolution must be a whole edge in px with resolution_type=pixel_area, got {size:g}"
    least = settings.minimum_image_size
    if kind == "area" and least is not None and least > MAXIMUM_MINIMUM_AREA:
        yield (
            f"minimum_image_size={least:g} means megapixels with resolution_type=area and must "
            f"be at most {MAXIMUM_MINIMUM_AREA:g}; for an edge in px set "
            "resolution_type=pixel_area"
        )
    for name in _SIZES[1:]:
        least = min(LEAST_LIMIT_EDGE, size)  # pictures are trained on at 256 px, too
        yield from _limit_problems(name, getattr(settings, name), str(kind), least)


def _limit_problems(name: str, value: float | None, kind: str, least: float) -> Iterator[str]:
    """Yield a problem where a limit's unit was surely mistaken."""
    if value is None:
        return
    if kind == "area" and value >= AREA_BOUND:
        yield (
            f"{name}={value:g} means megapixels with resolution_type=area and must be below "
            f"{AREA_BOUND:g}; for an edge in px set resolution_type=pixel_area"
        )
    if kind != "area" and value < least:
        yield (
            f"{name}={value:g} means px with resolution_type={kind} and must be at least "
            f"{least:g}; for megapixels set resolution_type=area"
        )


def _downsample_problems(settings: "Geometry") -> Iterator[str]:
    most, wanted = settings.maximum_image_size, settings.target_downsample_size
    if (most is None) != (wanted is None):
        given, absent = "maximum_image_size", "target_downsample_size"
        if most is None:
            given, absent = absent, given
        yield (
            f"{given}={most or wanted:g} needs {absent} beside it: pictures above "
            "maximum_image_size are shrunk to target_downsample_size before the cut"
        )
    if most is not None and wanted is not None and wanted > most:
        yield (
            f"target_downsample_size={wanted:g} must not be above maximum_image_size={most:g}: "
            "larger pictures are shrunk to it, never enlarged"
        )


def _size_problems(settings: "Geometry") -> Iterator[str]:
    step, canvas = settings.alignment, settings.maximum_canvas
    if canvas is not None and canvas >= CANVAS_BOUND:
        yield f"maximum_canvas={canvas:g} means megapixels and must be below {CANVAS_BOUND:g}"
    if canvas is not None and round(canvas * 1e6) < step * step:
        yield (
            f"maximum_canvas={canvas:g} MP is below one square of alignment={step}; "
            f"set it to {step * step / 1e6:g} or more"
        )
    yield from _forced_problems(settings)
    size, kind = settings.resolution, str(settings.resolution_type)
    if TargetRule(size, kind, step, settings.aspect_rounding).square_edge > INT32_MAX:
        yield f"resolution={size:g} gives targets beyond {INT32_MAX} px; check resolution_type"


def _forced_problems(settings: "Geometry") -> Iterator[str]:
    try:
        forced = dict(settings.aspect_sizes)
    except (TypeError, ValueError):
        yield f"aspect_sizes must map labels to (width, height), got {settings.aspect_sizes!r}"
        return
    for label, size in forced.items():
        yield from _label_problems(label, digits_of(settings.aspect_rounding))
        edges = tuple(size) if isinstance(size, list | tuple) else ()
        whole = len(edges) == _EDGES and all(type(edge) is int for edge in edges)
        if not whole or any(edge < 1 or edge % settings.alignment for edge in edges):
            yield (
                f"aspect_sizes[{label}] must be [width, height] in multiples of alignment="
                f"{settings.alignment}, got {size!r}"
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
