"""Target sizes of ratios, by area or edge, and the intermediary sizes that cover them.

A target follows from a ratio, the settings and, with "pixel", from whether the picture is
upright. There are few ratios and many pictures, so targets are worked out for ratios.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.media.geometry.aspect_ratio import (
    Bools,
    Floats,
    Ints,
    aligned,
    aspect_label,
    round_to_multiple,
)

# Megapixels and the edge that trainers mean by them for squares: models are trained at powers
# of two times 512 and 768, not at the 500, 707 and 1000 px that the square root gives.
SQUARE_EDGES = ((0.25, 512), (0.5, 768), (1.0, 1024), (2.0, 1536), (4.0, 2048))
SQUARE_TOLERANCE = 0.05  # megapixels around an entry of the table
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Sizes:
    """Targets of k ratios.

    Attributes:
        target: Width and height trained at, px, int32 [k, 2]; zeros where there is none.
        cover: Width and height that the intermediary covers at least, px, int32 [k, 2]; ones
            where there is no target.
        label: Target width/height, rounded, float64 [k]; 0.0 where there is no target.
    """

    target: NDArray[np.int32]
    cover: NDArray[np.int32]
    label: Floats

    def take(self, keys: Ints) -> "Sizes":
        """Return those of some indices, each below k."""
        # Any other mode than "clip" copies once more, or checks once more.
        target = self.target.take(keys, axis=0, mode="clip")
        cover = self.cover.take(keys, axis=0, mode="clip")
        return Sizes(target, cover, self.label.take(keys, mode="clip"))


@dataclass(frozen=True)
class TargetRule:
    """How a target follows from a ratio; see `Geometry` for the settings."""

    resolution: float
    resolution_type: str
    alignment: int
    aspect_rounding: int
    maximum_canvas: float | None = None
    aspect_sizes: tuple[tuple[float, tuple[int, int]], ...] = ()

    def sizes(self, aspect: Floats, portrait: Bools) -> Sizes:
        """Return the targets of k ratios.

        Args:
            aspect: Ratios width/height, float64 [k]; 0.0 has no target.
            portrait: Whether the picture is higher than wide, bool [k].
        """
        valid = aspect > 0
        wide, tall = self._first(np.where(valid, aspect, 1.0), portrait)
        cover_w, cover_h = self._covered(wide, tall, portrait)
        if self.maximum_canvas is not None:
            wide, tall, over = self._limited(wide, tall)
            cover_w, cover_h = np.where(over, wide, cover_w), np.where(over, tall, cover_h)
        label = aspect_label(wide, tall, self.aspect_rounding)
        square, edge = label == 1.0, self.square_edge
        wide, tall = np.where(square, edge, wide), np.where(square, edge, tall)
        for forced, size in self.aspect_sizes:
            of_label = label == forced
            wide, tall = np.where(of_label, size[0], wide), np.where(of_label, size[1], tall)
            cover_w = np.where(of_label, size[0], cover_w)
            cover_h = np.where(of_label, size[1], cover_h)
        if self.aspect_sizes:
            label = aspect_label(wide, tall, self.aspect_rounding)
        valid &= (label > 0) & (np.maximum(cover_w, cover_h) <= INT32_MAX)
        return Sizes(
            np.where(valid, (wide, tall), 0).T.astype(np.int32),
            np.where(valid, (cover_w, cover_h), 1).T.astype(np.int32),
            np.where(valid, label, 0.0),
        )

    def _first(self, aspect: Floats, portrait: Bools) -> tuple[Ints, Ints]:
        """Return aligned widths and heights of about the wanted ratio."""
        if self.resolution_type == "pixel":
            short = self.resolution
            wide = np.where(portrait, short, np.trunc(short * aspect))
            tall = np.where(portrait, np.trunc(short / aspect), short)
        else:
            root = np.sqrt(aspect)
            wide, tall = self._area_edge * root, self._area_edge / root
        return round_to_multiple(wide, self.alignment), round_to_multiple(tall, self.alignment)

    def _covered(self, wide: Ints, tall: Ints, portrait: Bools) -> tuple[Ints, Ints]:
        """Return what the intermediary covers at least.

        With "pixel" the short edge is the resolution itself, even where alignment made it less.
        """
        if self.resolution_type != "pixel":
            return wide, tall
        short = int(self.resolution)
        return (
            np.where(portrait, np.maximum(wide, short), wide),
            np.where(portrait, tall, np.maximum(tall, short)),
        )

    def _limited(self, wide: Ints, tall: Ints) -> tuple[Ints, Ints, Bools]:
        """Return targets shrunk to the canvas, and which ones were above it."""
        step, most = self.alignment, round((self.maximum_canvas or 0) * 1e6)
        area = wide.astype(np.float64) * tall
        over, shrink = area > most, np.sqrt(most / area)
        less_w = round_to_multiple(np.trunc(wide * shrink), step)
        less_h = round_to_multiple(np.trunc(tall * shrink), step)
        # Rounding may end above the canvas again; then the longer edge gives way.
        still, landscape = less_w * less_h > most, less_w >= less_h
        room_w = np.maximum(most // (less_h * step), 1) * step
        room_h = np.maximum(most // (less_w * step), 1) * step
        less_w = np.where(still & landscape, room_w, less_w)
        less_h = np.where(still & ~landscape, room_h, less_h)
        return np.where(over, less_w, wide), np.where(over, less_h, tall), over

    @property
    def _area_edge(self) -> int:
        """Edge of the square of the wanted area, aligned, px."""
        if self.resolution_type == "pixel_area":
            return aligned(self.resolution, self.alignment)
        return aligned(int(math.sqrt(self.resolution * 1e6)), self.alignment)

    @property
    def square_edge(self) -> int:
        """Edge of square targets, aligned and within the canvas, px."""
        edge = self._square_edge
        if self.maximum_canvas is None:
            return edge
        wide, tall, _ = self._limited(np.array([edge]), np.array([edge]))
        return int(min(wide[0], tall[0]))

    @property
    def _square_edge(self) -> int:
        if self.resolution_type == "pixel":
            return aligned(self.resolution, self.alignment)
        megapixels = self.resolution
        if self.resolution_type == "pixel_area":
            megapixels = self.resolution**2 / 1e6
        for area, edge in SQUARE_EDGES:
            if abs(megapixels - area) <= SQUARE_TOLERANCE:
                return aligned(edge, self.alignment)
        return self._area_edge


# A picture this near to square is scaled to the square, not cut: at most 3 % out of proportion.
SQUASH = 1.03
# Below it, a quotient of at most 2**31 is off an integer by more than float64 rounds.
_EXACT_DIVISOR = 2**21


def cover(w: Ints, h: Ints, size: NDArray[np.int32], *, grows: bool) -> tuple[Ints, Ints]:
    """Return the least scaled size of each picture, widths and heights, that covers a size [n, 2].

    With `grows` the scaled picture starts at that size's short edge. Where its other edge falls
    short, that one grows by whole pixels, so it ends up to a pixel above, by the fraction it
    started with; the fraction counts for the long edge. All in whole numbers, thus exact.
    """
    tw, th = size[:, 0].astype(np.int64), size[:, 1].astype(np.int64)
    by_height, by_width = th * w, tw * h
    wide = by_height >= by_width
    product, edge = np.where(wide, by_height, by_width), np.where(wide, h, w)
    if grows:
        rows = np.flatnonzero(wide != (tw >= th))
        other = np.where(wide, by_width, by_height)[rows]
        across = np.where(wide, w, h)[rows]
        product[rows] += other - _quotient(other, across) * across
    long = _quotient(product, edge)
    return np.where(wide, long, tw), np.where(wide, th, long)


def cover_square(w: Ints, h: Ints, between: tuple[Ints, Ints], sizes: Sizes) -> None:
    """Enlarge, in place, intermediaries that do not cover their target, which is a square."""
    target = sizes.target
    rows = np.flatnonzero((between[0] < target[:, 0]) | (between[1] < target[:, 1]))
    if not rows.size:
        return
    w, h, edge = w[rows], h[rows], target[rows, 0].astype(np.int64)
    longest, shortest = np.maximum(w, h), np.minimum(w, h)
    squash = (longest <= SQUASH * shortest) & (between[0][rows] < edge)
    long_edge = np.where(squash, edge, edge * longest // shortest)
    between[0][rows] = np.where(w >= h, long_edge, edge)
    between[1][rows] = np.where(w >= h, edge, long_edge)


def _quotient(product: Ints, edge: Ints) -> Ints:
    """Return product // edge; float64 divides four at a time."""
    if not edge.size or edge.max() >= _EXACT_DIVISOR:
        return product // edge
    return np.asarray((product / edge).astype(np.int64))
