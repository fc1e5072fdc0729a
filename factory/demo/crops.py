"""Captioned pictures of many sizes and aspects, cropped from the demo's photographs."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory.demo.photographs import GREY, PHOTOGRAPHS, Box, Photograph

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Short sides, pixels, from too small for most resolutions to larger than the demo's own; drawn
# with some pixels more or less, because real pictures come in odd sizes.
SHORT_SIDES = (104, 128, 160, 192, 224, 256, 288, 320, 352, 392)
ODD_PIXELS = 8
# A crop is enlarged no more than this, so that the pictures stay sharp.
MAX_ENLARGEMENT = 1.5
# A part that grew by more than this in one direction would show things its caption does not say.
MAX_GROWTH, SLACK = 1.3, 0.08
# Width over height; None keeps that of the part.
ASPECTS = (None, 1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16)
# Mostly JPEG, as in the wild.
FORMATS = ("jpg", "jpg", "jpg", "jpg", "jpg", "jpg", "png", "webp")
# Shares of the pictures: mirrored, without colour, with several captions, that name colours.
MIRRORED, GREYED, SEVERAL, COLOURED = 0.15, 0.1, 0.2, 0.6


@dataclass(frozen=True, slots=True)
class CroppedPicture:
    """One picture of the demo data, not yet cut.

    Attributes:
        name: File name without a folder.
        photograph: What it is cut from.
        box: Which part, in the photograph's pixels.
        size: Width and height to scale the part to, pixels.
        mirrored: Flipped left to right.
        grey: Turned to shades of grey.
        captions: One or more wordings.
    """

    name: str
    photograph: Photograph
    box: Box
    size: tuple[int, int]
    mirrored: bool
    grey: bool
    captions: tuple[str, ...]

    @property
    def quality(self) -> float:
        """How sharp it can be: pixels of the photograph for one of its own, 1.0 at most."""
        return round(min(1.0, (self.box[2] - self.box[0]) / self.size[0]), 3)

    def encode(self, source: "Image") -> bytes:
        """Return the file's bytes, cut from the decoded photograph.

        Args:
            source: The photograph as `Photograph.read` returns it, RGB.
        """
        from PIL import Image

        image = source.resize(self.size, Image.Resampling.LANCZOS, box=self.box)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.grey or self.photograph.colours == GREY:
            image = image.convert("L")
        return encode(image, self.name.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class _Region:
    """What a picture shows: where it is, how to say so, and its colours, '' to name none."""

    box: Box
    wordings: tuple[str, ...]
    colours: str
    may_grow: bool = False


def encode(image: "Image", suffix: str) -> bytes:
    """Return an image as the bytes of a file with this suffix: jpg, png or webp."""
    buffer = io.BytesIO()
    if suffix == "png":
        image.save(buffer, "PNG")
    elif suffix == "webp":
        # Method 2 of 6: a third of the default's time, files a few percent larger.
        image.save(buffer, "WEBP", quality=88, method=2)
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def plan_pictures(seed: int) -> list[CroppedPicture]:
    """Return every picture of the demo in a drawn order; the seed decides all of it.

    Raises:
        MissingExtraError: A package that ships the photographs is not installed.
    """
    import numpy as np

    pictures: list[CroppedPicture] = []
    for number, photograph in enumerate(PHOTOGRAPHS):
        pictures.extend(_cut_up(photograph, np.random.default_rng([seed, number])))
    order = np.random.default_rng([seed, len(PHOTOGRAPHS)]).permutation(len(pictures))
    return [pictures[index] for index in order]


def _cut_up(photograph: Photograph, draw: "np.random.Generator") -> Iterator[CroppedPicture]:
    """Choose the crops of one photograph, going round its parts."""
    from PIL import Image

    with Image.open(photograph.path()) as image:
        limits = image.size
    parts = _parts(photograph, limits)
    taken: set[tuple[Box, tuple[int, int]]] = set()
    for number in range(photograph.share):
        part = parts[number % len(parts)]
        box = _grow(part.box, limits, draw) if part.may_grow else part.box
        mirrored = bool(draw.random() < MIRRORED)
        grey = bool(draw.random() < GREYED) and photograph.colours != GREY
        captions = _captions(part, draw, mirrored=mirrored, grey=grey)
        suffix = FORMATS[int(draw.integers(len(FORMATS)))]
        name = f"{photograph.name}_{number + 1:02d}.{suffix}"
        size = _target_size(box, draw)
        # No two pictures are the same, or one held out could be one trained on.
        while (box, size) in taken:
            size = (size[0] - 1, size[1] - 1)
        taken.add((box, size))
        yield CroppedPicture(name, photograph, box, size, mirrored, grey, captions)


def _parts(photograph: Photograph, limits: tuple[int, int]) -> list[_Region]:
    """Return the whole, the parts worth seeing, and the halves of a photograph."""
    width, height = limits
    whole = [f"{how}{what}" for what in photograph.subjects for how in ("", "a photograph of ")]
    parts = [_Region((0, 0, width, height), tuple(whole), photograph.colours)]
    for view in photograph.views:
        closer = (f"a close crop of {view.shows}", view.shows, f"{view.shows}, seen up close")
        parts.append(_Region(view.box, closer, view.colours, may_grow=True))
    halves: dict[str, Box] = {
        "left": (0, 0, width // 2, height),
        "upper": (0, 0, width, height // 2),
        "right": (width // 2, 0, width, height),
        "lower": (0, height // 2, width, height),
    }
    # A half need not show all the colours of the whole.
    colours = GREY if photograph.colours == GREY else ""
    for side, box in halves.items():
        words = tuple(f"the {side} half of a photograph of {what}" for what in photograph.subjects)
        parts.append(_Region(box, words, colours))
    return parts


def _captions(
    part: _Region, draw: "np.random.Generator", *, mirrored: bool, grey: bool
) -> tuple[str, ...]:
    """Return one wording of what a part shows, sometimes all of them."""
    count = len(part.wordings) if draw.random() < SEVERAL else 1
    first = int(draw.integers(len(part.wordings)))
    captions = []
    for turn in range(count):
        words = part.wordings[(first + turn) % len(part.wordings)]
        named = draw.random() < COLOURED
        if grey:
            words += ", in black and white"
        elif named and part.colours:
            words += f", in {part.colours}"
        captions.append(words + (", mirrored" if mirrored else ""))
    return tuple(captions)


def _grow(box: Box, limits: tuple[int, int], draw: "np.random.Generator") -> Box:
    """Grow a box towards a drawn aspect, inside the photograph; what it held, it still holds."""
    left, upper, right, lower = box
    width, height = right - left, lower - upper
    aspect = ASPECTS[int(draw.integers(len(ASPECTS)))] or width / height
    # Some slack, so that no two crops of a part are alike.
    slack = 1 + SLACK * draw.random()
    wide = min(height * aspect, width * MAX_GROWTH)
    high = min(width / aspect, height * MAX_GROWTH)
    new_width = min(round(max(width, wide) * slack), limits[0])
    new_height = min(round(max(height, high) * slack), limits[1])
    x = _place(left, right, new_width, limits[0], draw)
    y = _place(upper, lower, new_height, limits[1], draw)
    return x, y, x + new_width, y + new_height


def _place(start: int, stop: int, length: int, limit: int, draw: "np.random.Generator") -> int:
    """Return where a span of a length may begin that holds start to stop and ends by limit."""
    return int(draw.integers(max(0, stop - length), min(start, limit - length) + 1))


def _target_size(box: Box, draw: "np.random.Generator") -> tuple[int, int]:
    """Draw the size in pixels that a part of a photograph is scaled to."""
    width, height = box[2] - box[0], box[3] - box[1]
    wish = SHORT_SIDES[int(draw.integers(len(SHORT_SIDES)))]
    wish += int(draw.integers(-ODD_PIXELS, ODD_PIXELS + 1))
    scale = min(wish / min(width, height), MAX_ENLARGEMENT)
    return round(width * scale), round(height * scale)
