"""Where are the edges of a picture: thin lines by Canny's method."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from factory.conditioning.generator import Generator, Pixels
from factory.media.resample import opencv


@dataclass(frozen=True)
class Canny(Generator):
    """White lines of one pixel on black.

    Attributes:
        low: An edge goes on while its gradient is above this.
        high: An edge begins where its gradient is above this.
        blur: Deviation of the Gaussian that smooths the picture first, px; 0 leaves it.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.canny.Canny"

    channels: ClassVar[int] = 1

    low: float = 100.0
    high: float = 200.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        """Check the thresholds.

        Raises:
            ValueError: They are not in order, or the blur is negative.
        """
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low must be 0 to high={self.high:g}, got {self.low:g}")
        if self.blur < 0:
            raise ValueError(f"blur must be at least 0 px, got {self.blur:g}")

    @property
    def random(self) -> bool:
        """Nothing is drawn."""
        return False

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:  # noqa: ARG002
        """Return the edges, uint8 [H, W, 1] of 0 and 255."""
        cv2 = opencv()
        grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
        if self.blur:
            grey = cv2.GaussianBlur(grey, (0, 0), self.blur)
        edges = cv2.Canny(grey, self.low, self.high, L2gradient=True)
        return np.asarray(edges, dtype=np.uint8)[:, :, None]
