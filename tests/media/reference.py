"""The geometry of one picture, written plainly: what the vectorised code must equal."""

import math
from dataclasses import replace
from fractions import Fraction

from factory.media.geometry.geometry import Geometry
from factory.media.geometry.target_size import SQUARE_EDGES, SQUARE_TOLERANCE, SQUASH

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
    edge = free_square_edge(geometry)
    return min(limited(geometry, (edge, edge)))


def free_square_edge(geometry: Geometry) -> int:
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


def limited(geometry: Geometry, target: Size) -> Size:
    """Shrink a target to the canvas: in proportion, then by its longer edge."""
    wide, tall = target
    most = round((geometry.maximum_canvas or 0) * 1e6)
    if not most or wide * tall <= most:
        return target
    shrink = math.sqrt(most / (wide * tall))
    wide = align(int(wide * shrink), geometry.alignment)
    tall = align(int(tall * shrink), geometry.alignment)
    landscape = wide >= tall
    while wide * tall > most and max(wide, tall) > geometry.alignment:
        if landscape:
            wide -= geometry.alignment
        else:
            tall -= geometry.alignment
    return wide, tall


def intermediary(geometry: Geometry, size: Size, target: Size, short: int) -> Size:
    """Scale a picture to cover a target, and with "pixel" its short edge too."""
    (w, h), (tw, th) = size, target
    if geometry.resolution_type == "pixel":
        scale = max(Fraction(tw, w), Fraction(th, h), Fraction(short, min(w, h)))
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


def downsampled(geometry: Geometry, size: Size, least: Size) -> Size:
    """Return what a large picture is shrunk to before the cut: never more than it is."""
    most, wanted = geometry.maximum_image_size, geometry.target_downsample_size
    if most is None or wanted is None:
        return least
    if geometry.resolution_type == "pixel":
        large = max(size) > most
    else:
        unit = 1e6 if geometry.resolution_type == "area" else most
        large = size[0] * size[1] > most * unit
    own = label(size, geometry.aspect_rounding)
    if not large or own == 0:
        return least
    at = replace(geometry, resolution=wanted, maximum_canvas=None, aspect_sizes=())
    shrunk = intermediary(at, size, first_target(at, size, own), int(wanted))
    if shrunk[0] > size[0] or shrunk[1] > size[1]:
        shrunk = size
    return shrunk if shrunk[0] >= least[0] and shrunk[1] >= least[1] else least


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
    free = first_target(geometry, size, wanted)
    target = limited(geometry, free)
    forced = dict(geometry.aspect_sizes)
    name = label(target, geometry.aspect_rounding)
    if name in forced:
        target = forced[name]
    # A size that is forced or limited is below the resolution on purpose.
    short = int(geometry.resolution) if target == free and name not in forced else 1
    between = intermediary(geometry, size, target, short)
    if name == 1.0 and name not in forced:
        edge = square_edge(geometry)
        target = (edge, edge)
        if min(between) < edge:
            shortest, longest = sorted(size)
            near = longest <= SQUASH * shortest and between[0] < edge
            other = edge if near else edge * longest // shortest
            between = (other, edge) if size[0] >= size[1] else (edge, other)
    name = label(target, geometry.aspect_rounding)
    return (target, downsampled(geometry, size, between), name) if name > 0 else None
