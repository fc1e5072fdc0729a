"""First bytes of video containers: whether a file is one, and whether its end was cut off."""

import os
from typing import BinaryIO

# The longest signature (RIFF....AVI ) ends here.
SIGNATURE = 12
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Length and type of an MP4 box; a longer length follows them.
_BOX, _LONG_BOX = 8, 16
# Boxes looked at: a file has a handful, and fragments come in pairs. Damage must not take hours.
_MOST_BOXES = 100_000


def announces_video(head: bytes) -> bool:
    """Whether the first bytes are those of a container."""
    return _is_mp4(head) or _is_avi(head) or head.startswith((_EBML, b"GIF8"))


def breaks_off(file: BinaryIO) -> bool:
    """Whether a container says that it is longer than the file; leaves its position alone."""
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        return _claimed(file, size) > size
    finally:
        file.seek(position)


def _claimed(file: BinaryIO, size: int) -> int:
    """Return the length a container claims, bytes; 0 where it makes no claim."""
    head = _read(file, 0, 64)
    if _is_mp4(head):
        return _boxes_end(file, size)
    if _is_avi(head):
        return 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(_EBML):
        length, start = _ebml_length(head, len(_EBML))
        start += length or 0
        head = _read(file, start, 16)
        if head.startswith(_SEGMENT):
            length, used = _ebml_length(head, len(_SEGMENT))
            return 0 if length is None else start + used + length
    return 0


def _is_mp4(head: bytes) -> bool:
    return head[4:8] in _MP4_BOXES


def _is_avi(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Return where the last of the boxes of an MP4 ends."""
    position = 0
    for _ in range(_MOST_BOXES):
        header = _read(file, position, _LONG_BOX)
        if position + _BOX > size or len(header) < _BOX:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[_BOX:_LONG_BOX], "big")
        if length < _BOX:  # 0 goes up to the end of the file
            break
        position += length
    return position


def _ebml_length(data: bytes, place: int) -> tuple[int | None, int]:
    """Return a length of EBML, None where it is left open, and the place behind it."""
    first = data[place] if place < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), place + width


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    """Return the bytes at a place, all of them unless the file ends."""
    file.seek(start)
    found = b""
    while len(found) < length and (more := file.read(length - len(found))):
        found += more
    return found
