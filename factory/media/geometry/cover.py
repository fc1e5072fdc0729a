"""To which size is a picture scaled so that it keeps its proportions and covers its target?"""

import numpy as np
from numpy.typing import NDArray

from factory.media.geometry.aspect_ratio import Ints
from factory.media.geometry.target_size import Sizes

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
