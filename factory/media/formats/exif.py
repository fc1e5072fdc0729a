"""Which way up is a picture, by its EXIF block?"""

import struct

from factory.media.formats.window import UPRIGHT

_LAST = 8  # orientations are 1 to 8
# Bytes of a directory entry: tag, type, count, value.
_ENTRY = 12


def exif_orientation(block: bytes) -> int:
    """Return the orientation in an EXIF block (a small TIFF), 1 where there is none.

    Only the first directory counts, and there the first entry: nothing is followed, so that a
    loop of offsets leads nowhere.
    """
    little = block[:2] == b"II"
    if not little and block[:2] != b"MM":
        return UPRIGHT
    order, tag = ("<", b"\x12\x01") if little else (">", b"\x01\x12")
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        start += 2
        entry = _aligned(block, tag, start, start + _ENTRY * count)
        if entry < 0:
            return UPRIGHT
        (kind,) = struct.unpack_from(order + "H", block, entry + 2)
        layout = {1: "B", 3: "H", 4: "I"}.get(kind, "H")  # BYTE, SHORT, LONG
        (value,) = struct.unpack_from(order + layout, block, entry + 8)
    except struct.error:  # a directory that runs out of the block has no orientation
        return UPRIGHT
    return value if UPRIGHT <= value <= _LAST else UPRIGHT


def _aligned(block: bytes, tag: bytes, start: int, end: int) -> int:
    """Return where the first entry of a tag begins, -1 without one."""
    found = block.find(tag, start, end)
    while found >= 0 and (found - start) % _ENTRY:
        found = block.find(tag, found + 1, end)
    return found
