"""What does a picture look like that was compressed too much?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from factory.conditioning.generator import Generator, Pixels
from factory.media.resample import opencv

_BEST = 100


@dataclass(frozen=True)
class JpegArtifacts(Generator):
    """The picture after JPEG at a low quality, which is drawn for each sample.

    Attributes:
        low: Least quality, from 1.
        high: Greatest quality, to 100.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.jpeg.JpegArtifacts"

    low: int = 10
    high: int = 40

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: It is empty, or leaves 1 to 100.
        """
        if not 1 <= self.low <= self.high <= _BEST:
            raise ValueError(
                f"low and high must be qualities from 1 to {_BEST}, low first; got {self.low} "
                f"and {self.high}"
            )

    @property
    def random(self) -> bool:
        """Whether there is more than one quality."""
        return self.low < self.high

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return the picture with its artefacts, uint8 [H, W, 3]."""
        cv2 = opencv()
        quality = int(draw.integers(self.low, self.high, endpoint=True))
        flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), flags)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return np.ascontiguousarray(decoded[:, :, ::-1], dtype=np.uint8)
