"""Which part of a picture is to be painted anew: random masks for inpainting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from factory.conditioning.generator import Generator, Pixels
from factory.media.resample import opencv

SHAPES = ("rectangle", "ellipse", "stroke")
_WHITE = 255
# A mask this near to the share that was drawn is done.
_NEAR = 0.01
# Shapes overlap what is there already, so the share is come near to, not hit. Masks of 0.5 take 8
# shapes on average and 18 at most, those of 0.8 take 22.
_MOST_SHAPES = 64
# A shape covers so much of what is still missing, at least and at most.
_LEAST_PART, _MOST_PART = 0.35, 1.0
# Width to height of rectangles and ellipses, at most, either way.
_MOST_STRETCH = 2.5
# A stroke is so many times as long as thick, and so many straight pieces long.
_STROKE_LENGTH = 8.0
_STROKE_PIECES = 6


@dataclass(frozen=True)
class RandomMasks(Generator):
    """White where something is to be painted, black where the picture stays.

    Attributes:
        least: Least share of the picture that is covered, to within a hundredth.
        most: Greatest share of it, likewise.
        shapes: What masks are made of; the kinds are mixed in each mask.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.masks.RandomMasks"

    channels: ClassVar[int] = 1

    least: float = 0.1
    most: float = 0.5
    shapes: Sequence[str] = SHAPES

    def __post_init__(self) -> None:
        """Check the settings, and take any sequence of shapes.

        Raises:
            ValueError: The shares are not in order between 0 and 1, or a shape is unknown.
        """
        object.__setattr__(self, "shapes", tuple(self.shapes))
        if not 0 < self.least <= self.most < 1:
            raise ValueError(
                f"least and most must be shares between 0 and 1, least first; got {self.least:g} "
                f"and {self.most:g}"
            )
        unknown = [shape for shape in self.shapes if shape not in SHAPES]
        if unknown or not self.shapes:
            raise ValueError(f"shapes must be some of {', '.join(SHAPES)}, got {list(self.shapes)}")

    def __call__(self, pixels: Pixels, draw: np.random.Generator) -> Pixels:
        """Return a mask, uint8 [H, W, 1] of 0 and 255."""
        mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
        wanted = draw.uniform(min(self.least + _NEAR, self.most), self.most)
        for _ in range(_MOST_SHAPES):
            missing = wanted - np.count_nonzero(mask) / mask.size
            if missing < _NEAR:
                break
            area = missing * draw.uniform(_LEAST_PART, _MOST_PART) * mask.size
            shape = self.shapes[int(draw.integers(len(self.shapes)))]
            _PAINT[shape](mask, area, draw)
        return mask[:, :, None]


def _place(mask: Pixels, draw: np.random.Generator) -> tuple[float, float]:
    height, width = mask.shape
    return draw.uniform(0, width), draw.uniform(0, height)


def _edges(mask: Pixels, area: float, draw: np.random.Generator) -> tuple[float, float]:
    """Return width and height of a box of an area, no larger than the picture."""
    stretch = math.exp(draw.uniform(-1, 1) * math.log(_MOST_STRETCH))
    height, width = mask.shape
    wide = min(math.sqrt(area * stretch), width)
    tall = min(area / wide, height)
    return wide, tall


def _rectangle(mask: Pixels, area: float, draw: np.random.Generator) -> None:
    wide, tall = _edges(mask, area, draw)
    height, width = mask.shape
    left, top = draw.uniform(0, width - wide), draw.uniform(0, height - tall)
    mask[int(top) : int(top + tall), int(left) : int(left + wide)] = _WHITE


def _ellipse(mask: Pixels, area: float, draw: np.random.Generator) -> None:
    # An ellipse fills pi / 4 of the box around it.
    wide, tall = _edges(mask, area * 4 / math.pi, draw)
    x, y = _place(mask, draw)
    axes = (max(1, int(wide / 2)), max(1, int(tall / 2)))
    turn = draw.uniform(0, 180)
    opencv().ellipse(mask, (int(x), int(y)), axes, turn, 0, 360, _WHITE, -1)


def _stroke(mask: Pixels, area: float, draw: np.random.Generator) -> None:
    """Draw a line that winds as a brush does."""
    thick = math.sqrt(area / _STROKE_LENGTH)
    x, y = _place(mask, draw)
    turn = draw.uniform(0, 2 * math.pi)
    points = [(x, y)]
    for _ in range(_STROKE_PIECES):
        turn += draw.normal(0, 0.7)  # radians: bends, and seldom turns back
        x += math.cos(turn) * area / thick / _STROKE_PIECES
        y += math.sin(turn) * area / thick / _STROKE_PIECES
        points.append((x, y))
    line = np.rint(points).astype(np.int32)[None]
    opencv().polylines(mask, line, False, _WHITE, max(1, round(thick)))


_PAINT = {"rectangle": _rectangle, "ellipse": _ellipse, "stroke": _stroke}
