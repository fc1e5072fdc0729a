"""The geometry of one picture, written plainly: what the vectorised code must equal."""

import math
from fractions import Fraction

from factory.media.cover import SQUASH
from factory.media.geometry import Geometry
from factory.media.targets import SQUARE_EDGES, SQUARE_TOLERANCE

Size = tuple[int, int]


def align(value: float, multiple: int) -> int:
    return max(round(value / multiple) * multiple, multiple)


def label(size: Size, decimals: int) -> float:
    return round(size[0] / size[1], 2 if decimals < 0 else decimals)


def area_edge(geometry: Geometry) -> int:
    if geometry.resolution_type == "pixel_area":
        return align(geometry.resolution, geometry.alignment)
    return align(int(math.sqrt(geometry.resolution * 1e6)), geometry.alignment)


def square_edge(geometry: Geometry) -> int:
    if geometry.resolution_type == "pixel":
        return align(geometry.resolution, geometry.alignment)
    area = geometry.resolution
    if geometry.resolution_type == "pixel_area":
        area = area**2 / 1e6
    for entry, edge in SQUARE_EDGES:
        if abs(entry - area) <= SQUARE_TOLERANCE:
            return align(edge, geometry.alignment)
    return area_edge(geometry)


def first_target(geometry: Geometry, size: Size, aspect: float) -> Size:
    if geometry.resolution_type == "pixel":
        short = geometry.resolution
        portrait = size[0] < size[1]
        wide = short if portrait else int(short * aspect)
        tall = int(short / aspect) if portrait else short
    else:
        edge = area_edge(geometry)
        wide, tall = edge * math.sqrt(aspect), edge / math.sqrt(aspect)
    return align(wide, geometry.alignment), align(tall, geometry.alignment)


def intermediary(geometry: Geometry, size: Size, target: Size) -> Size:
    (w, h), (tw, th) = size, target
    if geometry.resolution_type == "pixel":
        scale = max(Fraction(tw, w), Fraction(th, h), Fraction(int(geometry.resolution), min(w, h)))
    elif tw >= th:
        scale = grown(Fraction(th, h), w, tw)
    else:
        scale = grown(Fraction(tw, w), h, th)
    return int(w * scale), int(h * scale)


def grown(scale: Fraction, long: int, least: int) -> Fraction:
    """Add whole pixels to the long edge until it covers the target."""
    length = long * scale
    if length >= least:
        return scale
    return (least + length % 1) / long


def decide(geometry: Geometry, size: Size) -> tuple[Size, Size, float] | None:
    """Return target, intermediary and label; None where there is no target."""
    own = label(size, geometry.aspect_rounding)
    wanted = own
    if geometry.crop_aspect == "square":
        wanted = 1.0
    elif geometry.crop_aspect == "closest":
        wanted = min(geometry.crop_aspect_buckets, key=lambda ratio: abs(ratio - own))
    if wanted == 0:
        return None
    target = first_target(geometry, size, wanted)
    between = intermediary(geometry, size, target)
    name = label(target, geometry.aspect_rounding)
    if name == 1.0:
        edge = square_edge(geometry)
        target = (edge, edge)
        if min(between) < edge:
            short, long = sorted(size)
            near = long <= SQUASH * short and between[0] < edge
            other = edge if near else edge * long // short
            between = (other, edge) if size[0] >= size[1] else (edge, other)
    return (target, between, name) if name > 0 else None
