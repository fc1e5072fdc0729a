"""How large is an AVIF, and which way up?

A still picture's header is a tree of boxes, read by hand. Sequences are left to Pillow behind a
reader that asks for more bytes instead of running past those it has.
"""

import io
import struct
from typing import Any

from factory.errors import MediaError
from factory.media.formats.window import Header, NeedMoreBytes, Window

# EXIF orientation of a rotation by so many quarters against the clock, without a mirror, with
# a mirror of top and bottom (axis 0), and with one of left and right (axis 1).
_TURNS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))


def read(window: Window, count_frames: bool) -> Header:
    """Return the header of an AVIF: of its primary item, or of a sequence by Pillow."""
    if window.data[8:12] in (b"avis", b"msf1"):
        return _sequence(window, count_frames)
    position = 0
    while True:
        length, kind = window.unpack(">I4s", position)
        if kind == b"meta":
            break
        if length == 1:
            (length,) = window.unpack(">Q", position + 8)
        if length < 8:  # noqa: PLR2004 - a box is at least its own header; 0 is the last one
            raise MediaError("not a picture", "AVIF without a meta box")
        position += length
    window.need(position + length)
    return _item(window.data[position + 12 : position + length])


def _item(meta: bytes) -> Header:
    """Return the header of the primary item in the body of a meta box."""
    boxes = dict(_boxes(meta))
    version = boxes[b"pitm"][0]
    primary = int.from_bytes(boxes[b"pitm"][4 : 8 if version else 6], "big")
    inner = _boxes(boxes[b"iprp"])
    properties = _boxes(dict(inner)[b"ipco"])
    width, height, turn, mirror = 0, 0, 0, 0
    for index in _associated(dict(inner)[b"ipma"], primary):
        kind, body = properties[index - 1]
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", body, 4)
        elif kind == b"irot":
            turn = body[0] & 3
        elif kind == b"imir":
            mirror = 1 + (body[0] & 1)
    return Header(width, height, "AVIF", _TURNS[turn][mirror])


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return (kind, body) of the boxes in a row."""
    found, position = [], 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if length < 8:  # noqa: PLR2004 - a box is at least its own header
            break
        found.append((kind, data[position + 8 : position + length]))
        position += length
    return found


def _associated(ipma: bytes, wanted: int) -> list[int]:
    """Return the numbers, from 1, of the properties of one item."""
    version, wide = ipma[0], ipma[3] & 1
    (entries,) = struct.unpack_from(">I", ipma, 4)
    layout = ">IB" if version else ">HB"
    position = 8
    for _ in range(entries):
        item, count = struct.unpack_from(layout, ipma, position)
        position += struct.calcsize(layout)
        numbers = struct.unpack_from(f">{count}{'H' if wide else 'B'}", ipma, position)
        if item == wanted:
            # The highest bit says that the property is essential.
            return [number & (0x7FFF if wide else 0x7F) for number in numbers]
        position += count * (2 if wide else 1)
    return []


def _sequence(window: Window, count_frames: bool) -> Header:
    from PIL.AvifImagePlugin import AvifImageFile

    guard = _Guard(window)
    try:
        with AvifImageFile(guard) as image:
            width, height = image.size
            frames = _count(image) if count_frames else 1
    except Exception:
        if guard.ended:
            raise window.short(len(window.data) + 1) from None
        raise
    return Header(width, height, "AVIF", frames=frames)


class _Guard(io.BytesIO):
    """A file that asks for more bytes instead of ending early.

    Attributes:
        ended: Whether a read came upon the end of the whole file.
    """

    def __init__(self, window: Window) -> None:
        super().__init__(window.data)
        self._window = window
        self.ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        window = self._window
        if not window.whole:
            if size is None or size < 0:
                raise window.short(window.size or 4 * len(window.data))
            window.need(self.tell() + size)
        data = super().read(size)
        self.ended |= size is not None and len(data) < size
        return data


def _count(image: Any) -> int:
    """Return the number of frames; 1 where those after the first are damaged."""
    try:
        return int(getattr(image, "n_frames", 1))
    except (NeedMoreBytes, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - as in `read_header`: whatever parsing comes upon
        return 1
