"""How large is a PNG, which way up, and how many frames has it?"""

import struct
import zlib

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.window import UPRIGHT, Header, Window


def read(window: Window, count_frames: bool) -> Header:
    """Return the header of a PNG: its chunks before the pixels."""
    del count_frames  # an animated PNG says how many before its pixels
    window.need(33)
    data = window.data
    if data[12:16] != b"IHDR" or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise MediaError("not a picture", "damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    orientation, frames, position, shown = UPRIGHT, 1, 33, False
    while True:
        length, kind = window.unpack(">I4s", position)
        if kind in (b"IDAT", b"IEND"):
            # The picture in IDAT is a further one unless a frame control stands before it.
            extra = 0 if frames == 1 or shown else 1
            return Header(width, height, "PNG", orientation, frames + extra)
        if kind == b"eXIf":
            window.need(position + 8 + length)
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        elif kind == b"acTL":
            (count,) = window.unpack(">I", position + 8)
            frames = count if 0 < count < 2**31 else 1
        elif kind == b"fcTL":
            shown = True
        position += 12 + length
