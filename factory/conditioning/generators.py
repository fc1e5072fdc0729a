"""The conditioning generators: edges, JPEG artefacts, lower resolution, and random masks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from factory.conditioning.generator import Generator, Pixels
from factory.limits import AtLeast, Names, OneOf, check_limits
from factory.media.resample import opencv, resize


@dataclass(frozen=True)
class Canny(Generator):
    """White lines of one pixel on black.

    Attributes:
        low: An edge goes on while its gradient is above this.
        high: An edge begins where its gradient is above this.
        blur: Deviation of the blur before edges are looked for, px; 0: none.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.canny.Canny"

    channels: ClassVar[int] = 1

    low: Annotated[float, AtLeast(0)] = 100.0
    high: float = 200.0
    blur: Annotated[float, AtLeast(0)] = 0.0

    def __post_init__(self) -> None:
        """Check the thresholds.

        Raises:
            ValueError: They are not in order, or the blur is negative.
        """
        check_limits(self, "generate")

    def setting_problems(self) -> Iterator[str]:
        """Yield why no edge would begin."""
        yield from AtLeast(self.low).problems("high", self.high)

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


_BEST = 100


@dataclass(frozen=True)
class JpegArtifacts(Generator):
    """The picture after JPEG at a low quality, which is drawn for each sample.

    Attributes:
        low: Least quality, from 1; each sample's is drawn.
        high: Greatest quality, to 100.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.jpeg.JpegArtifacts"

    low: Annotated[int, AtLeast(1)] = 10
    high: int = 40

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: It is empty, or leaves 1 to 100.
        """
        check_limits(self, "generate")

    def setting_problems(self) -> Iterator[str]:
        """Yield why there is no quality to draw."""
        yield from AtLeast(self.low).problems("high", self.high)
        if self.high > _BEST:
            yield f"high must be at most {_BEST}, got {self.high}"

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


# OpenCV's flag by name; "antialias" is the factory's own resampling, close to Lanczos.
_FLAGS = {
    "nearest": "INTER_NEAREST",
    "linear": "INTER_LINEAR",
    "cubic": "INTER_CUBIC",
    "area": "INTER_AREA",
    "lanczos": "INTER_LANCZOS4",
}


@dataclass(frozen=True)
class Superresolution(Generator):
    """The picture shrunk and enlarged again: what a model that adds detail begins with.

    Attributes:
        factor: Times both edges are shrunk; 1: not at all.
        shrink: antialias | area | cubic | linear | lanczos | nearest.
        enlarge: cubic | linear | lanczos | nearest.
        blur: Deviation of the blur before it is shrunk, px; 0: none.
        noise: Deviation of the noise added while it is small, of 255; 0: none.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.superresolution.Superresolution"

    factor: Annotated[float, AtLeast(1)] = 4.0
    shrink: Annotated[str, OneOf("antialias", "area", "cubic", "linear", "lanczos", "nearest")] = (
        "antialias"
    )
    enlarge: Annotated[str, OneOf("cubic", "linear", "lanczos", "nearest")] = "cubic"
    blur: Annotated[float, AtLeast(0)] = 0.0
    noise: Annotated[float, AtLeast(0)] = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: One is out of its range, or a way of resampling is unknown.
        """
        check_limits(self, "generate")

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
        least: Least share of the picture that is covered; each sample's is drawn.
        most: Greatest share of it.
        shapes: What masks are made of: rectangle, ellipse, stroke.
    """

    persisted_as: ClassVar[str] = "factory.conditioning.masks.RandomMasks"

    channels: ClassVar[int] = 1

    least: float = 0.1
    most: float = 0.5
    shapes: Annotated[Sequence[str], Names(1), OneOf("rectangle", "ellipse", "stroke")] = SHAPES

    def __post_init__(self) -> None:
        """Check the settings, and take any sequence of shapes.

        Raises:
            ValueError: The shares are not in order between 0 and 1, or a shape is unknown.
        """
        object.__setattr__(self, "shapes", tuple(self.shapes))
        check_limits(self, "generate")

    def setting_problems(self) -> Iterator[str]:
        """Yield why there is no share to draw."""
        if not 0 < self.least <= self.most < 1:
            yield (
                f"least={self.least:g} and most={self.most:g} must be shares between 0 and 1, "
                "least first"
            )

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
