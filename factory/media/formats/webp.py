"""How large is a WebP, which way up, and how many frames has it?"""

import struct

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.window import UPRIGHT, Header, Window

_ANIMATED, _HAS_EXIF = 0x02, 0x08


def read(window: Window, count_frames: bool) -> Header:
    """Return the header of a WebP; frames and EXIF may stand behind the pixels."""
    (riff,) = window.unpack("<I", 4)
    window.need(30)
    data, kind = window.data, window.data[12:16]
    if kind == b"VP8X":
        return _extended(window, riff + 8, count_frames)
    if kind == b"VP8L" and data[20] == 0x2F:  # noqa: PLR2004 - the signature of lossless data
        bits = int.from_bytes(data[21:25], "little")
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WEBP")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, "WEBP")
    raise MediaError("not a picture", f"WebP that starts with {kind!r}")


def _extended(window: Window, end: int, count_frames: bool) -> Header:
    data = window.data
    flags = data[20]
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    count = count_frames and bool(flags & _ANIMATED)
    orientation, frames, position = UPRIGHT, 0, 30
    while flags & _HAS_EXIF or count:
        if position + 8 > end:
            break
        kind, length = window.unpack("<4sI", position)
        if kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and flags & _HAS_EXIF:
            window.need(position + 8 + length)
            block = data[position + 8 : position + 8 + length]
            orientation = exif_orientation(block.removeprefix(b"Exif\0\0"))
            flags &= ~_HAS_EXIF
        position += 8 + length + (length & 1)
    return Header(width, height, "WEBP", orientation, max(frames, 1))
