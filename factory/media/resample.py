"""Resampling of pictures: fast and close to Lanczos, or Lanczos itself.

OpenCV's bicubic is quick, but looks at 4 x 4 pixels however much it shrinks, and so aliases. A
blur of five taps beforehand makes up for that: it is chosen so that both together pass what
Lanczos at that scale passes. On photographs that is above 40 dB of Lanczos for every scale,
where averaging areas is at 38 dB and takes longer.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

# Shrinking by less than this, bicubic alone is above 42 dB.
_LEAST_BLUR = 1.125
# Five taps cannot pass as little as Lanczos does at larger scales; areas are averaged down to
# so many times the size first.
_MOST_BLUR = 2.0
_OVER = 1.75
# Scales are rounded to this, so that few sets of taps are computed.
_STEPS = 64
# OpenCV's bicubic is the one with this coefficient.
_CUBIC = -0.75
_LOBES = 3


@cache
def opencv() -> ModuleType:
    """Return OpenCV, kept from starting threads of its own.

    Pictures are worked on many at a time already; OpenCV's pool would compete with those
    threads, and is left locked in a forked child. The setting holds for the whole process.
    """
    import cv2

    cv2.setNumThreads(1)
    return cv2


def resize(image: Pixels, wide: int, tall: int) -> Pixels:
    """Return a picture of another size, uint8 [tall, wide, 3]; itself where it has it."""
    height, width = image.shape[:2]
    if (wide, tall) == (width, height):
        return image
    cv2 = opencv()
    boxed = max(width / wide, height / tall) > _MOST_BLUR
    if boxed:
        width, height = min(width, round(_OVER * wide)), min(height, round(_OVER * tall))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    across, down = width / wide, height / tall
    if max(across, down) >= _LEAST_BLUR:
        image = cv2.sepFilter2D(image, -1, _blur(across, boxed), _blur(down, boxed))
    resized = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def lanczos(image: Pixels, size: tuple[int, int], box: tuple[float, float, float, float]) -> Pixels:
    """Return a part of a picture resized by Pillow's Lanczos.

    Args:
        image: RGB, uint8 [H, W, 3].
        size: Width and height of the result, px.
        box: Left, upper, right and lower edge of the part, px of the image.
    """
    from PIL import Image

    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, box)
    return np.array(resized, dtype=np.uint8)


def _blur(shrink: float, boxed: bool) -> NDArray[np.float32]:
    return _taps(max(round(shrink * _STEPS), _STEPS), boxed)


@cache
def _taps(steps: int, boxed: bool) -> NDArray[np.float32]:
    """Return the five taps that, with bicubic behind them, pass what Lanczos passes.

    Least squares over frequencies, weighed as photographs have them: by 1 / frequency².
    """
    shrink = steps / _STEPS
    frequencies = np.linspace(0.01, 0.5, 99)
    passed = _response(_cubic, 2, frequencies)
    if boxed:
        passed = passed * np.sinc(frequencies)
    wanted = _response(_lanczos, _LOBES, frequencies * shrink)
    # Taps sum to one, so the outer two of each side decide about the middle one.
    turns = 2 * np.pi * frequencies
    sides = np.stack([2 * np.cos(turns) - 2, 2 * np.cos(2 * turns) - 2], axis=1)
    weighed = (passed / frequencies)[:, None] * sides
    near, far = np.linalg.lstsq(weighed, (wanted - passed) / frequencies, rcond=None)[0]
    return np.array([far, near, 1 - 2 * near - 2 * far, near, far], dtype=np.float32)


def _response(kernel: Callable[[Floats], Floats], reach: int, frequencies: Floats) -> Floats:
    """Return how much of each frequency (cycles a pixel) a kernel passes."""
    places = np.linspace(-reach, reach, 401)
    values = kernel(places)
    passed: Floats = np.cos(2 * np.pi * np.outer(frequencies, places)) @ values / values.sum()
    return passed


def _cubic(places: Floats) -> Floats:
    x, a = np.abs(places), _CUBIC
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, outer)


def _lanczos(places: Floats) -> Floats:
    return np.sinc(places) * np.sinc(places / _LOBES)
