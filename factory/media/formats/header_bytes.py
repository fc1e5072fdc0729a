"""First bytes of a file for the header readers, and the header they return."""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from factory.errors import MediaError

UPRIGHT = 1  # EXIF orientation of a picture stored as it is seen
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# First bytes of a file that a header may be looked for in. Profiles, previews and XMP of
# panoramas before the pixels have up to some 16 MiB, and animations are counted frame by frame.
LONGEST_HEADER = 64 * 2**20
# Chunks, boxes, blocks, frames and pages that are walked through. An hour of frames at 25 a
# second are 90,000; a hundred thousand steps take less than a second.
MOST_PARTS = 100_000
# What is read of a file at once where a header goes on far behind: as much as its beginning.
_RANGE = 16 * 1024
# Such reads of one file, each of which may be a request to a server.
_MOST_RANGES = 64


class NeedMoreBytes(Exception):  # noqa: N818 - a request to the reader, not an error
    """The header goes on beyond the bytes given.

    Attributes:
        length: How many first bytes of the file to try next.
        start: Where those begin that are missing, if what is between is not needed; 0 if it is.
    """

    def __init__(self, length: int, start: int = 0) -> None:
        """Ask for the first `length` bytes of the file, or for those of them from `start` on."""
        self.length, self.start = length, start
        super().__init__(f"the header needs the first {length} bytes")


class Header(NamedTuple):
    """What a header says, before orientation is applied.

    Attributes:
        width: Stored width, px.
        height: Stored height, px.
        format: Upper-case format name.
        orientation: EXIF orientation 1 to 8 that is still to be applied.
        frames: Number of frames.
        whole: Whether a decoder holds all of the picture, however small it is wanted: always,
            but for JPEGs that are stored row by row.
    """

    width: int
    height: int
    format: str
    orientation: int = UPRIGHT
    frames: int = 1
    whole: bool = True

    @property
    def transposed(self) -> bool:
        """Whether orientation swaps width and height."""
        return self.orientation in _TRANSPOSED

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after orientation, px."""
        return (self.height, self.width) if self.transposed else (self.width, self.height)


class HeaderBytes:
    """The first bytes of a file, and others, which know how to ask for more.

    Attributes:
        data: The first bytes.
        size: Bytes of the whole file; None where that is unknown.
        ranges: Bytes from further behind, by where they begin.
    """

    __slots__ = ("_steps", "data", "ranges", "size")

    def __init__(
        self, data: bytes, size: int | None, ranges: Mapping[int, bytes] | None = None
    ) -> None:
        """Look at some bytes; a size below their number is corrected."""
        self.data = data
        self.size = None if size is None else max(size, len(data))
        self.ranges = ranges or {}
        self._steps = 0

    @property
    def whole(self) -> bool:
        """Whether the window is known to hold all of the file."""
        return self.size == len(self.data)

    def step(self) -> None:
        """Count one more part of the header.

        Raises:
            MediaError: With reason "too many parts".
        """
        self._steps += 1
        if self._steps > MOST_PARTS:
            raise too_many_parts()

    def need(self, end: int) -> None:
        """Raise unless the first `end` bytes are here."""
        if end > len(self.data):
            raise self.short(end)

    def short(self, end: int) -> Exception:
        """Return what to raise where the first `end` bytes are wanted."""
        if end > (LONGEST_HEADER if self.size is None else min(self.size, LONGEST_HEADER)):
            known = "first 64 MiB"
            if self.size is not None and end > self.size:
                known = f"{self.size} bytes"
            return MediaError("truncated header", f"it goes on beyond the {known}")
        # At least fourfold, so that a long chain of blocks costs few reads.
        more = min(max(end, 4 * len(self.data)), LONGEST_HEADER)
        return NeedMoreBytes(more if self.size is None else min(more, self.size))

    def at(self, start: int, length: int) -> bytes:
        """Return bytes from anywhere in the file; what is between need not be here."""
        end = start + length
        if end <= len(self.data):
            return self.data[start:end]
        for first, part in self.ranges.items():
            if first <= start and end <= first + len(part):
                return part[start - first : end - first]
        if self.size is None:
            raise self.short(end)
        if end > self.size:
            raise MediaError("truncated header", f"it goes on beyond the {self.size} bytes")
        if len(self.ranges) >= _MOST_RANGES:
            raise MediaError("too many parts", f"its header lies in over {_MOST_RANGES} places")
        raise NeedMoreBytes(min(max(end, start + _RANGE), self.size), start)

    def unpack(self, layout: str, position: int) -> tuple[Any, ...]:
        """Return numbers at a position, asking for more bytes where they are not here."""
        self.need(position + struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, position)

    def unpack_at(self, layout: str, position: int) -> tuple[Any, ...]:
        """Return numbers from anywhere in the file; see `at`."""
        return struct.unpack(layout, self.at(position, struct.calcsize(layout)))


def too_many_parts() -> MediaError:
    """Return the error of a file in more pieces than any picture has."""
    return MediaError(
        "too many parts",
        f"over {MOST_PARTS} chunks, blocks or frames; save it again, or as a video",
    )
