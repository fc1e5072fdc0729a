"""What does a picture look like that was taken at a lower resolution?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from factory.conditioning.generator import Generator, Pixels
from factory.media.resample import opencv, resize

# OpenCV's flag by name; "antialias" is the factory's own resampling, close to Lanczos.
_FLAGS = {
    "nearest": "INTER_NEAREST",
    "linear": "INTER_LINEAR",
    "cubic": "INTER_CUBIC",
    "area": "INTER_AREA",
    "lanczos": "INTER_LANCZOS4",
}
SHRINK = ("antialias", *_FLAGS)
ENLARGE = ("cubic", "linear", "lanczos", "nearest")


@dataclass(frozen=True)
class Superresolution(Generator):
    """The picture shrunk and enlarged again: what a model that adds detail begins with.

    Attributes:
        factor: Times both edges are shrunk, at least 1, which leaves them.
        shrink: How it is shrunk: "antialias", "area", "cubic", "linear", "lanczos", "nearest".
        enlarge: How it is enlarged: "cubic", "linear", "lanczos" or "nearest".
        blur: Deviation of a Gaussian blur before it is shrunk, px; 0 is none.
        noise: Deviation of Gaussian noise added while it is small, of 255; 0 is none.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.superresolution.Superresolution"

    factor: float = 4.0
    shrink: str = "antialias"
    enlarge: str = "cubic"
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: One is out of its range, or a way of resampling is unknown.
        """
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor:g}")
        for name, allowed in (("shrink", SHRINK), ("enlarge", ENLARGE)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("blur", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name):g}")

    @property
    def random(self) -> bool:
        """Whether there is noise."""
        return self.noise > 0

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return the blurred picture, uint8 [H, W, 3]."""
        cv2 = opencv()
        height, width = pixels.shape[:2]
        small = np.ascontiguousarray(pixels)
        if self.blur:
            small = cv2.GaussianBlur(small, (0, 0), self.blur)
        wide, tall = max(1, round(width / self.factor)), max(1, round(height / self.factor))
        small = _resized(small, wide, tall, self.shrink)
        if self.noise:
            noisy = small + draw.normal(0.0, self.noise, small.shape)
            small = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return _resized(small, width, height, self.enlarge)


def _resized(pixels: Pixels, width: int, height: int, how: str) -> Pixels:
    if how == "antialias":
        return resize(pixels, width, height)
    cv2 = opencv()
    flag = getattr(cv2, _FLAGS[how])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=flag), dtype=np.uint8)
