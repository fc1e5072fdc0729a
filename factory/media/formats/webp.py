"""Header of a WebP: its size, orientation and frames."""

import struct

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.header_bytes import Header, HeaderBytes

_ANIMATED, _HAS_XMP, _HAS_EXIF = 0x02, 0x04, 0x08


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a WebP; frames, EXIF and XMP may stand behind the pixels."""
    (riff,) = window.unpack("<I", 4)
    # A lossless picture of one colour is a whole file of 28 bytes.
    window.need(25)
    data, kind = window.data, window.data[12:16]
    if kind == b"VP8L" and data[20] == 0x2F:  # noqa: PLR2004 - the signature of lossless data
        bits = int.from_bytes(data[21:25], "little")
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WEBP")
    window.need(30)
    if kind == b"VP8X":
        return _extended(window, riff + 8, count_frames)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, "WEBP")
    raise MediaError("not a picture", f"WebP that starts with {kind!r}")


def _extended(window: HeaderBytes, end: int, count_frames: bool) -> Header:
    data = window.data
    flags = data[20]
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    count = count_frames and bool(flags & _ANIMATED)
    wanted = {kind for kind, flag in ((b"EXIF", _HAS_EXIF), (b"XMP ", _HAS_XMP)) if flags & flag}
    found: dict[bytes, bytes] = {}
    frames, position = 0, 30
    while wanted - found.keys() or count:
        if position + 8 > end:
            break
        window.step()
        # Frames lie side by side, so that reading on costs less than asking for each.
        kind, length = (window.unpack if count else window.unpack_at)("<4sI", position)
        if kind == b"ANMF":
            frames += 1
        elif kind in wanted and kind not in found:
            found[kind] = window.at(position + 8, length)
        position += 8 + length + (length & 1)
    turn = exif_orientation(found.get(b"EXIF", b""), found.get(b"XMP ", b""))
    return Header(width, height, "WEBP", turn, max(frames, 1))
