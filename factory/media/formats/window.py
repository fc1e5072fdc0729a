"""What do the readers of headers share: the bytes they look at, and what they find there?"""

import struct
from typing import Any, NamedTuple

from factory.errors import MediaError

UPRIGHT = 1  # EXIF orientation of a picture stored as it is seen
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# No picture file is a terabyte: a header that goes on so far is damaged, and the number would
# be too large for some storages to take.
_FARTHEST = 2**40


class NeedMoreBytes(Exception):  # noqa: N818 - a request to the reader, not an error
    """The header goes on beyond the bytes given.

    Attributes:
        length: How many first bytes of the file to try next.
    """

    def __init__(self, length: int) -> None:
        """Ask for the first `length` bytes of the file."""
        self.length = length
        super().__init__(f"the header needs the first {length} bytes")


class Header(NamedTuple):
    """What a header says, before orientation is applied.

    Attributes:
        width: Stored width, px.
        height: Stored height, px.
        format: Upper-case format name.
        orientation: EXIF orientation 1 to 8 that is still to be applied.
        frames: Number of frames.
    """

    width: int
    height: int
    format: str
    orientation: int = UPRIGHT
    frames: int = 1

    @property
    def transposed(self) -> bool:
        """Whether orientation swaps width and height."""
        return self.orientation in _TRANSPOSED

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after orientation, px."""
        return (self.height, self.width) if self.transposed else (self.width, self.height)


class Window:
    """The first bytes of a file, which know how to ask for more.

    Attributes:
        data: The bytes.
        size: Bytes of the whole file; None where that is unknown.
    """

    __slots__ = ("data", "size")

    def __init__(self, data: bytes, size: int | None) -> None:
        """Look at some first bytes; a size below their number is corrected."""
        self.data = data
        self.size = None if size is None else max(size, len(data))

    @property
    def whole(self) -> bool:
        """Whether the window is known to hold all of the file."""
        return self.size == len(self.data)

    def need(self, end: int) -> None:
        """Raise unless the first `end` bytes are here."""
        if end > len(self.data):
            raise self.short(end)

    def short(self, end: int) -> Exception:
        """Return what to raise where the first `end` bytes are wanted."""
        if end > (_FARTHEST if self.size is None else self.size):
            known = "first terabyte" if self.size is None else f"{self.size} bytes"
            return MediaError("truncated header", f"it goes on beyond the {known}")
        # At least fourfold, so that a long chain of blocks costs few reads.
        more = max(end, 4 * len(self.data))
        return NeedMoreBytes(more if self.size is None else min(more, self.size))

    def unpack(self, layout: str, position: int) -> tuple[Any, ...]:
        """Return numbers at a position, asking for more bytes where they are not here."""
        self.need(position + struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, position)
