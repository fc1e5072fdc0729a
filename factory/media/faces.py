"""Detection of the largest face in a picture."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import MissingExtraError
from factory.media.resample import opencv

# Searched at this long edge, px: a face worth centring on is seen at it, and at twice the edge
# the search takes four times as long and finds faces in gravel.
SEARCH_EDGE = 256
# The cascade's own window; nothing smaller is found.
_LEAST_FACE = 24
# Each window is a fifth larger than the last, moved by one of its pixels.
_GROWTH, _STEP = 1.2, 1.0
_COLOURS = 3


class _Own(threading.local):
    """The cascade of one thread: nothing says that one may be shared."""

    cascade: Any = None


_own = _Own()


def face_finder() -> Any:
    """Return scikit-image's cascade of frontal faces, loaded once a thread (3 ms).

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    if _own.cascade is None:
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade
        except ImportError as error:
            raise MissingExtraError("scikit-image", "faces", "cutting around faces") from error
        _own.cascade = Cascade(lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]
    return _own.cascade


def find_face(pixels: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Return the middle of the largest frontal face, or None where none is seen.

    Args:
        pixels: Upright RGB picture, uint8 [H, W, 3].

    Returns:
        x and y as fractions of width and height: the focus of a cut.

    Raises:
        ValueError: The picture is not such an array.
        MissingExtraError: scikit-image is not installed.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != _COLOURS or pixels.shape[2] != _COLOURS:
        raise ValueError(f"pixels must be uint8 [H, W, 3], got {pixels.dtype} {pixels.shape}")
    grey = _searched(pixels)
    if min(grey.shape) < _LEAST_FACE:
        return None
    faces = face_finder().detect_multi_scale(
        img=grey,
        scale_factor=_GROWTH,
        step_ratio=_STEP,
        min_size=(_LEAST_FACE, _LEAST_FACE),
        max_size=grey.shape,
    )
    if not faces:
        return None
    # Of faces of equal size the first in reading order, whatever order they were found in.
    face = min(faces, key=lambda one: (-one["width"] * one["height"], one["r"], one["c"]))
    x, y = face["c"] + face["width"] / 2, face["r"] + face["height"] / 2
    return x / grey.shape[1], y / grey.shape[0]


def _searched(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture in grey, shrunk to the edge that is searched."""
    cv2 = opencv()
    height, width = pixels.shape[:2]
    shrink = SEARCH_EDGE / max(height, width)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY))
