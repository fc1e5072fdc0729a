"""Resizing and cropping of pixels to the size of a bucket."""

import math

import numpy as np
from numpy.typing import NDArray

from factory.media.resample import Pixels, lanczos, resize

# Above this many pixels (200 MB as RGB) only the part around the cut is resized: one column of
# pixels cut to a square has an intermediary hundreds of times larger than the target.
_LARGEST_WHOLE = 2**26
# Source pixels kept around the cut then; resampling looks four pixels to each side.
_MARGIN = 4
_COLOURS = 3


def fit(
    image: Pixels,
    intermediary: tuple[int, int],
    crop: tuple[int, int],
    target: tuple[int, int],
    *,
    exact: bool = False,
    nearest: bool = False,
) -> Pixels:
    """Return a picture resized to its intermediary size and cut to its target size.

    Args:
        image: RGB, uint8 [H, W, 3]; it may be larger or smaller than the intermediary.
        intermediary: Width and height to resize to, px.
        crop: Top and left of the cut in the resized picture, px.
        target: Width and height of the cut, px.
        exact: Resample by Lanczos, at several times the cost.
        nearest: Take the nearest pixel, so that no two are ever mixed: for labels.

    Returns:
        RGB, uint8 [target height, target width, 3], C-contiguous, never a view of `image`.

    Raises:
        ValueError: The image is not such an array, or the cut leaves the intermediary.
    """
    _check(image, intermediary, crop, target)
    if nearest:
        return _nearest(image, intermediary, crop, target)
    if exact:
        return _exact(image, intermediary, crop, target)
    (wide, tall), (top, left) = intermediary, crop
    if wide * tall > _LARGEST_WHOLE:
        image, (wide, tall), (top, left) = _around(image, intermediary, crop, target)
    resized = resize(image, wide, tall)
    cut = resized[top : top + target[1], left : left + target[0]]
    return cut.copy() if resized is image else np.ascontiguousarray(cut)


def _nearest(
    image: Pixels,
    intermediary: tuple[int, int],
    crop: tuple[int, int],
    target: tuple[int, int],
) -> Pixels:
    """Take for each pixel the one whose square its middle falls into."""

    def places(first: int, count: int, scaled: int, edge: int) -> NDArray[np.intp]:
        middles = first + np.arange(count) + 0.5
        return np.minimum((middles * edge / scaled).astype(np.intp), edge - 1)

    rows = places(crop[0], target[1], intermediary[1], image.shape[0])
    columns = places(crop[1], target[0], intermediary[0], image.shape[1])
    return np.ascontiguousarray(image[rows[:, None], columns])


def _exact(
    image: Pixels,
    intermediary: tuple[int, int],
    crop: tuple[int, int],
    target: tuple[int, int],
) -> Pixels:
    """Resample only what the cut shows: the place of each pixel is that in the whole."""
    across, down = image.shape[1] / intermediary[0], image.shape[0] / intermediary[1]
    (top, left), (wide, tall) = crop, target
    box = (left * across, top * down, (left + wide) * across, (top + tall) * down)
    # Rounding must not lead out of the image, which Pillow refuses.
    box = (box[0], box[1], min(box[2], image.shape[1]), min(box[3], image.shape[0]))
    return lanczos(image, target, box)


def _around(
    image: Pixels,
    intermediary: tuple[int, int],
    crop: tuple[int, int],
    target: tuple[int, int],
) -> tuple[Pixels, tuple[int, int], tuple[int, int]]:
    """Return the part of the image around the cut, its intermediary size, and the cut in it.

    Resampling then starts at most one pixel of the intermediary beside its place.
    """
    height, width = image.shape[:2]
    rows = _span(crop[0], target[1], intermediary[1], height)
    columns = _span(crop[1], target[0], intermediary[0], width)
    part = image[rows[0] : rows[1], columns[0] : columns[1]]
    return part, (columns[2], rows[2]), (rows[3], columns[3])


def _span(start: int, length: int, scaled: int, edge: int) -> tuple[int, int, int, int]:
    """Return first and last source pixel, resized length, and where the cut begins in it."""
    scale = scaled / edge
    first = max(0, math.floor(start / scale) - _MARGIN)
    last = min(edge, math.ceil((start + length) / scale) + _MARGIN)
    resized = max(length, round((last - first) * scale))
    begin = min(max(0, start - round(first * scale)), resized - length)
    return first, last, resized, begin


def _check(
    image: Pixels, intermediary: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]
) -> None:
    if image.dtype != np.uint8 or image.ndim != _COLOURS or image.shape[2] != _COLOURS:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    if not image.size:
        raise ValueError(f"image must not be empty, got {image.shape}")
    (wide, tall), (top, left) = intermediary, crop
    inside = 0 <= left <= wide - target[0] and 0 <= top <= tall - target[1]
    if not inside or min(target) <= 0:
        raise ValueError(
            f"the cut of {target[0]} x {target[1]} px at top {top}, left {left} must lie in the "
            f"intermediary of {wide} x {tall} px"
        )
