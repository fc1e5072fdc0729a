"""Header of a PNG: its size, orientation and frames; and the chunks that its pixels need."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.header_bytes import MOST_PARTS, Header, HeaderBytes, too_many_parts

_START = 33  # signature and IHDR
_FRAMING = 12  # bytes of a chunk beside its body: length, kind, checksum
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# What stands behind the pixels is looked for in so many last bytes: an EXIF block has up to
# 64 KiB, and texts written there (creation date, XMP) a few. ImageMagick and ExifTool write EXIF
# there, photographs turned by it as well, and nothing before the pixels tells: a scan that saved
# the read would take every such picture for one of another size, and training would drop it.
TAIL_BYTES = 64 * 1024
_BEHIND = re.compile(rb"eXIf|tEXt|zTXt|iTXt")
_RAW_PROFILE = b"Raw profile type exif"
_XMP = b"XML:com.adobe.xmp"
# Longest keyword of a text, with the byte that ends it.
_KEYWORD = 80
# A profile or a packet of XMP is unpacked up to here, as Pillow does: zeros shrink a thousandfold.
_UNPACKED = 2**20
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a PNG: its chunks before the pixels, and those right at its end."""
    del count_frames  # an animated PNG says how many before its pixels
    window.need(_START)
    data = window.data
    if data[12:16] != b"IHDR" or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise MediaError("not a picture", "damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    told, frames, position, shown = _Orientation(), 1, _START, False
    while True:
        window.step()
        length, kind = window.unpack_at(">I4s", position)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"eXIf" or kind in _TEXTS:
            told.look(kind, _body(window, kind, position + 8, length))
        elif kind == b"acTL":
            (count,) = window.unpack_at(">I", position + 8)
            frames = count if 0 < count < 2**31 else 1
        elif kind == b"fcTL":
            shown = True
        position += _FRAMING + length
    for kind, body in _behind(window, position):
        told.look(kind, body)
    # The picture in IDAT is a further one unless a frame control stands before it.
    extra = 0 if frames == 1 or shown else 1
    return Header(width, height, "PNG", told.value, frames + extra)


def pixels_only(data: bytes) -> bytes:
    """Return a whole file without its ancillary chunks, whose profiles and texts may be bombs.

    Raises:
        MediaError: With reason "too many parts".
    """
    view = memoryview(data)
    parts, position = [view[:8]], 8
    for _ in range(MOST_PARTS):
        kind = data[position + 4 : position + 8]
        end = position + _FRAMING + int.from_bytes(data[position : position + 4], "big")
        if kind in _PIXELS:
            parts.append(view[position:end])
        if kind == b"IEND" or end >= len(data):
            return b"".join(parts) if len(parts) > 1 else data
        position = end
    raise too_many_parts()


class _Orientation:
    """What chunks say of orientation: of several of one kind the last one counts."""

    def __init__(self) -> None:
        self._exif = self._profile = self._xmp = b""

    def look(self, kind: bytes, body: bytes) -> None:
        """Take in the body of an eXIf chunk or of a text."""
        if kind == b"eXIf":
            self._exif = body
            return
        key, _, rest = body.partition(b"\0")
        if key == _XMP:
            self._xmp = _text(kind, rest)
        elif key == _RAW_PROFILE:
            self._profile = _text(kind, rest)
        elif key == b"exif" and kind == b"tEXt":
            self._exif = rest

    @property
    def value(self) -> int:
        """Orientation from 1 to 8."""
        return exif_orientation(self._exif or _from_hex(self._profile), self._xmp)


def _body(window: HeaderBytes, kind: bytes, start: int, length: int) -> bytes:
    """Return the body of a chunk, empty where it is a text about something else."""
    if kind != b"eXIf":
        key = window.at(start, min(length, _KEYWORD)).partition(b"\0")[0]
        if key not in (_XMP, b"exif", _RAW_PROFILE):
            return b""
    return window.at(start, length)


def _behind(window: HeaderBytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, body) of chunks behind the pixels, which begin at a position.

    No further read is needed where the bytes that are here show the end: in small files, and
    where the pixels are one chunk up to it. Else pixels are not walked through: a chunk is one
    whose checksum is right.
    """
    found: list[tuple[bytes, bytes]] = []
    data, start, kind = window.data, position, b""
    while position + _FRAMING <= len(data):
        window.step()
        length, kind = window.unpack(">I4s", position)
        if kind == b"IEND":
            yield from found
            return
        if kind == b"eXIf" or kind in _TEXTS:
            found.append((kind, data[position + 8 : position + 8 + length]))
        position += _FRAMING + length
    if window.size is None or (kind == b"IDAT" and position + _FRAMING == window.size):
        return
    start = max(start, window.size - TAIL_BYTES)
    tail = window.at(start, window.size - start) if start < window.size else b""
    for match in _BEHIND.finditer(tail, 4):
        begin = match.start()
        end = begin + 4 + int.from_bytes(tail[begin - 4 : begin], "big")
        sum_ = tail[end : end + 4]
        if len(sum_) == 4 and zlib.crc32(tail[begin:end]) == int.from_bytes(sum_, "big"):  # noqa: PLR2004
            yield match[0], tail[begin + 4 : end]


def _text(kind: bytes, rest: bytes) -> bytes:
    """Return the text of a chunk from what stands behind its keyword."""
    if kind == b"tEXt":
        return rest
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]
    else:
        packed = rest[:1] != b"\0"
        rest = b"".join(rest[2:].split(b"\0", 2)[2:])
    if packed:
        try:
            return zlib.decompressobj().decompress(rest, _UNPACKED)
        except zlib.error:
            return b""
    return rest


def _from_hex(profile: bytes) -> bytes:
    """Return the block in a raw profile: a name and a length in lines of their own, then hex."""
    with suppress(ValueError):
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii", "ignore"))
    return b""
