"""Checks of the sizes of a source of samples: units, limits and forced targets."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from factory.config.schema.options import above

# No training canvas is larger, and no useful edge is shorter: a value beyond these means that
# the unit was mistaken.
MAX_MEGAPIXELS = 32
MIN_EDGE = 16
# Megapixels that no minimum, limit or canvas reaches, and px that no limit is below, unless
# the resolution is: pictures are trained on at 256 px, too.
MINIMUM_BOUND = 5
LIMIT_BOUND = 20
CANVAS_BOUND = 1000
LEAST_LIMIT_EDGE = 512
# Decimals of bucket labels.
LABEL_DECIMALS = 2


class SizeOptions(Protocol):
    """The options that are looked at; `resolution_type` is "pixel", "pixel_area" or "area"."""

    resolution: float
    resolution_type: Any
    alignment: int
    minimum_image_size: float | None
    maximum_image_size: float | None
    target_downsample_size: float | None
    maximum_canvas: float | None
    aspect_sizes: Any


def size_problems(config: SizeOptions) -> Iterator[str]:
    """Yield what is wrong with the sizes of a backend."""
    names = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
    for name in (*names, "maximum_canvas"):
        yield from above(name, getattr(config, name), 0)
    kind = str(config.resolution_type)
    if kind == "pixel_area" and config.resolution != int(config.resolution):
        yield f"resolution must be a whole edge in px with pixel_area, got {config.resolution:g}"
    yield from _suspicious_resolution(config.resolution, kind)
    for name, bound in zip(names, (MINIMUM_BOUND, LIMIT_BOUND, LIMIT_BOUND), strict=True):
        least = min(LEAST_LIMIT_EDGE, config.resolution)
        yield from _suspicious_limit(name, getattr(config, name), kind, bound, least)
    yield from _downsample_problems(config.maximum_image_size, config.target_downsample_size)
    yield from _canvas_problems(config.maximum_canvas, config.alignment)
    if config.aspect_sizes:
        yield from _forced_problems(config.aspect_sizes, config.alignment)


def _suspicious_resolution(resolution: float, kind: str) -> Iterator[str]:
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


def _suspicious_limit(
    name: str, value: float | None, kind: str, bound: int, least: float
) -> Iterator[str]:
    if value is None or value <= 0:
        return
    minimum = name == "minimum_image_size"
    if kind == "area" and (value > bound if minimum else value >= bound):
        allowed = f"at most {bound}" if minimum else f"below {bound}"
        yield (
            f"{name}={value:g} with resolution_type=area means megapixels and must be {allowed}; "
            "for an edge in px set resolution_type=pixel_area"
        )
    if kind != "area" and not minimum and value < least:
        yield (
            f"{name}={value:g} with resolution_type={kind} means px and must be at least "
            f"{least:g}; for megapixels set resolution_type=area"
        )


def _downsample_problems(most: float | None, wanted: float | None) -> Iterator[str]:
    if (most is None) != (wanted is None):
        given, absent = "maximum_image_size", "target_downsample_size"
        if most is None:
            given, absent = absent, given
        value = wanted if most is None else most
        yield (
            f"{given}={value:g} needs {absent} beside it: samples above maximum_image_size are "
            f"shrunk to target_downsample_size before the cut; set both, or {given}=null"
        )
    if most is not None and wanted is not None and wanted > most:
        yield (
            f"target_downsample_size={wanted:g} must not be above maximum_image_size={most:g}: "
            "larger samples are shrunk to it, never enlarged"
        )


def _canvas_problems(canvas: float | None, alignment: int) -> Iterator[str]:
    if canvas is None or canvas <= 0:
        return
    if canvas >= CANVAS_BOUND:
        yield f"maximum_canvas={canvas:g} means megapixels and must be below {CANVAS_BOUND}"
    least = alignment * alignment / 1e6
    if round(canvas * 1e6) < alignment * alignment:
        yield (
            f"maximum_canvas={canvas:g} MP is below one square of alignment={alignment}; "
            f"set maximum_canvas={least:g} or more"
        )


def _forced_problems(forced: Any, alignment: int) -> Iterator[str]:
    if not isinstance(forced, Mapping):
        yield f"aspect_sizes must map labels to [width, height], got {forced!r}"
        return
    for label, size in forced.items():
        if not _is_label(label):
            yield (
                f"aspect_sizes has the label {label!r}; labels are width/height ratios above 0 "
                f"of at most {LABEL_DECIMALS} decimals, such as 0.75"
            )
        edges = size if isinstance(size, list | tuple) else ()
        whole = all(type(edge) is int and edge > 0 for edge in edges)
        aligned = whole and alignment > 0 and not any(edge % alignment for edge in edges)
        if len(edges) != len(("width", "height")) or not aligned:
            yield (
                f"aspect_sizes must be [width, height] in multiples of alignment={alignment}, "
                f"got {size!r} for {label!r}"
            )


def _is_label(label: object) -> bool:
    try:
        value = float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return value > 0 and round(value, LABEL_DECIMALS) == value
