"""Orientation of a picture, by its EXIF block or its XMP.

The rule is that of Pillow's `ImageOps.exif_transpose`: the EXIF tag counts; where there is none,
`tiff:Orientation` of the XMP does; values that make no sense mean upright.
"""

import re
import struct

from factory.media.formats.header_bytes import UPRIGHT

_LAST = 8  # orientations are 1 to 8
# Bytes of a directory entry: tag, type, count, value.
_ENTRY = 12
_PREFIX = re.compile(rb"(?:Exif\0\0){1,2}")
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def exif_orientation(block: bytes, xmp: bytes = b"") -> int:
    """Return the orientation that an EXIF block (a small TIFF) or else an XMP packet tells.

    Only the first directory counts: nothing is followed, so that a loop of offsets leads
    nowhere.
    """
    value = _tag(block)
    return as_seen(xmp_orientation(xmp) if value is None else value)


def xmp_orientation(xmp: bytes) -> int | None:
    """Return what an XMP packet says, whether that makes sense or not; None if it says nothing."""
    found = _IN_XMP.search(xmp)
    return None if found is None else int(found[1])


def as_seen(value: int | None) -> int:
    """Return an orientation from 1 to 8: a value as it was read, or upright if it is none."""
    return value if value is not None and UPRIGHT <= value <= _LAST else UPRIGHT


def has_tag(block: bytes) -> bool:
    """Return whether an EXIF block says anything of orientation."""
    return _tag(block) is not None


def _tag(block: bytes) -> int | None:
    """Return the value of the tag, None where there is none."""
    if block[:4] == b"Exif" and (prefix := _PREFIX.match(block)):
        block = block[prefix.end() :]
    little = block[:2] == b"II"
    if not little and block[:2] != b"MM":
        return None
    order, tag = ("<", b"\x12\x01") if little else (">", b"\x01\x12")
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        start += 2
        entry = _aligned(block, tag, start, start + _ENTRY * count)
        if entry < 0:
            return None
        (kind,) = struct.unpack_from(order + "H", block, entry + 2)
        # BYTE, SHORT, LONG, and their signed kin.
        layout = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}.get(kind, "H")
        (value,) = struct.unpack_from(order + layout, block, entry + 8)
    except struct.error:  # a directory that runs out of the block has no orientation
        return None
    return int(value)


def _aligned(block: bytes, tag: bytes, start: int, end: int) -> int:
    """Return where the first entry of a tag begins, -1 without one."""
    found = block.find(tag, start, end)
    while found >= 0 and (found - start) % _ENTRY:
        found = block.find(tag, found + 1, end)
    return found
