"""How large is a picture, told from its first bytes?

JPEG, PNG, WebP and still AVIF headers are read by hand, which is quick and never needs more
than the header; the rarer formats are left to Pillow behind a reader that asks for more bytes
instead of running past those it has.

Orientation: the EXIF block before the pixels of a JPEG or PNG, the EXIF chunk of a WebP, the
tag of a TIFF, the rotation and mirror boxes of an AVIF. Values that make no sense are ignored.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from factory.errors import MediaError
from factory.records import MediaFacts

# Enough for the header of nearly every web picture, and four pages of a file system. Camera
# files with an embedded preview put up to 64 KB of EXIF first and cost a second read.
HEAD_BYTES = 16 * 1024
# Above the largest sensors sold (200 MP phones) and panoramas of 20,000 px by 10,000; a picture
# at the limit takes 805 MB as RGB, so more is a decompression bomb until someone says otherwise.
MAX_PIXELS = 2**28

_UPRIGHT = 1  # EXIF orientation of a picture stored as it is seen
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# Bytes that tell the format: the longest signature (RIFF....WEBP) ends here.
_SIGNATURE = 12


class NeedMoreBytes(Exception):  # noqa: N818 - a request to the reader, not an error
    """The header goes on beyond the bytes given.

    Attributes:
        length: How many first bytes of the file to try next.
    """

    def __init__(self, length: int) -> None:
        """Ask for the first `length` bytes of the file."""
        self.length = length
        super().__init__(f"the header needs the first {length} bytes")


@dataclass(frozen=True, slots=True)
class Header:
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
    orientation: int = _UPRIGHT
    frames: int = 1

    @property
    def transposed(self) -> bool:
        """Whether orientation swaps width and height."""
        return self.orientation in _TRANSPOSED


def measure(
    head: bytes, size: int | None = None, *, max_pixels: int | None = MAX_PIXELS
) -> MediaFacts:
    """Return what the first bytes of a picture say about it.

    Animated GIF and WebP, and animated AVIF, are asked for whole: their frames are counted.

    Args:
        head: First bytes of the file, at best `HEAD_BYTES` or all of it.
        size: Bytes of the whole file, if known; negative counts as unknown.
        max_pixels: Largest width x height accepted; None means no limit.

    Raises:
        NeedMoreBytes: The header is longer than `head`, and the file may be too.
        MediaError: With reason "empty file", "not a picture", "truncated header" or
            "too large".
    """
    header = read_header(head, size, max_pixels=max_pixels)
    width, height = header.width, header.height
    if header.transposed:
        width, height = height, width
    return MediaFacts(width, height, header.format, header.frames)


def read_header(
    head: bytes,
    size: int | None = None,
    *,
    max_pixels: int | None = MAX_PIXELS,
    count_frames: bool = True,
) -> Header:
    """Return width, height, orientation and frames as stored; arguments as in `measure`.

    With `count_frames=False` the frames of GIF, TIFF and WebP are not looked for.

    Raises:
        NeedMoreBytes: As `measure`.
        MediaError: As `measure`.
    """
    window = _Window(head, None if size is not None and size < 0 else size)
    if not head:
        raise window.short(_SIGNATURE) if window.size else MediaError("empty file")
    kind = sniff(head)
    if kind is None:
        if len(head) < _SIGNATURE and not window.whole:
            raise window.short(min(HEAD_BYTES, window.size or HEAD_BYTES))
        raise MediaError("not a picture", f"it starts with {head[:_SIGNATURE]!r}")
    try:
        header = _READERS[kind](window, count_frames)
    except (NeedMoreBytes, MediaError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsing comes upon
        raise MediaError("not a picture", f"damaged {kind} header: {error}") from error
    _check_size(header, max_pixels)
    return header


def sniff(head: bytes) -> str | None:
    """Return the format that the first 12 bytes announce, or None."""
    for kind, start in _SIGNATURES:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def open_pillow(kind: str, file: io.BytesIO) -> Any:
    """Return Pillow's lazily read image of a format, without its own limit on pixels.

    The format's own class is used: `PIL.Image.open` would try them all, and would warn by a
    limit that is global to the process; `read_header` checks the limit instead.
    """
    module, name = _PILLOW[kind]
    return getattr(import_module(f"PIL.{module}ImagePlugin"), f"{name}ImageFile")(file)


_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
    ("BMP", b"BM"),
)

_PILLOW = {
    "JPEG": ("Jpeg", "Jpeg"),
    "PNG": ("Png", "Png"),
    "GIF": ("Gif", "Gif"),
    "TIFF": ("Tiff", "Tiff"),
    "BMP": ("Bmp", "Bmp"),
    "WEBP": ("WebP", "WebP"),
    "AVIF": ("Avif", "Avif"),
}


class _Window:
    """The first bytes of a file, which know how to ask for more."""

    __slots__ = ("data", "size")

    def __init__(self, data: bytes, size: int | None) -> None:
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
        if self.size is None:
            return NeedMoreBytes(max(end, 4 * len(self.data)))
        if end > self.size:
            return MediaError("truncated header", f"it goes on beyond the {self.size} bytes")
        # At least fourfold, so that a long chain of blocks costs few reads.
        return NeedMoreBytes(min(max(end, 4 * len(self.data)), self.size))

    def unpack(self, layout: str, position: int) -> tuple[Any, ...]:
        """Return numbers at a position, asking for more bytes where they are not here."""
        self.need(position + struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, position)


def _check_size(header: Header, max_pixels: int | None) -> None:
    width, height = header.width, header.height
    if width <= 0 or height <= 0:
        raise MediaError("not a picture", f"{header.format} of {width} x {height} px")
    if max_pixels is not None and width * height > max_pixels:
        raise MediaError(
            "too large",
            f"{width} x {height} px is {width * height / 1e6:.0f} MP, above the limit of "
            f"{max_pixels / 1e6:.0f} MP; raise the limit if the picture is meant to be so large",
        )


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────

# Frame headers, which hold the size: 0xC0 to 0xCF without DHT, JPG and DAC.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: TEM and the restart markers; 0 and 0xFF are filling.
_BARE_MARKERS = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1


def _jpeg(window: _Window, count_frames: bool) -> Header:
    del count_frames  # a JPEG has one frame; further pictures of an MPO are previews
    data, orientation, seen, position = window.data, _UPRIGHT, False, 2
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise window.short(len(data) + 1)
        window.need(position + 4)
        marker = data[position + 1]
        if marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2  # noqa: PLR2004 - filling before a marker
            continue
        if marker in (_END, _SCAN):
            raise MediaError("not a picture", "JPEG without a frame header")
        if marker in _FRAME_MARKERS:
            height, width = window.unpack(">HH", position + 5)
            return Header(width, height, "JPEG", orientation)
        length = data[position + 2] << 8 | data[position + 3]
        end = position + 2 + length
        window.need(end + 1)
        if marker == _APP1 and not seen and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation, seen = exif_orientation(data[position + 10 : end]), True
        position = end


def exif_orientation(block: bytes) -> int:
    """Return the orientation in an EXIF block (a small TIFF), 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return _UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == 0x0112:  # noqa: PLR2004 - Orientation
                layout = {1: "B", 3: "H", 4: "I"}.get(kind, "H")  # BYTE, SHORT, LONG
                (value,) = struct.unpack_from(order + layout, block, entry + 8)
                return value if 1 <= value <= 8 else _UPRIGHT  # noqa: PLR2004 - EXIF's range
    except struct.error:
        pass  # a directory that runs out of the block has no orientation
    return _UPRIGHT


# ── PNG ──────────────────────────────────────────────────────────────────────────────────


def _png(window: _Window, count_frames: bool) -> Header:
    del count_frames  # an animated PNG says how many before its pixels
    window.need(33)
    data = window.data
    if data[12:16] != b"IHDR" or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise MediaError("not a picture", "damaged PNG header")
    width, height = struct.unpack_from(">II", data, 16)
    orientation, frames, position, shown = _UPRIGHT, 1, 33, False
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


# ── WebP ─────────────────────────────────────────────────────────────────────────────────

_ANIMATED, _HAS_EXIF = 0x02, 0x08


def _webp(window: _Window, count_frames: bool) -> Header:
    (riff,) = window.unpack("<I", 4)
    window.need(30)
    data, kind = window.data, window.data[12:16]
    if kind == b"VP8X":
        return _webp_extended(window, riff + 8, count_frames)
    if kind == b"VP8L" and data[20] == 0x2F:  # noqa: PLR2004 - the signature of lossless data
        bits = int.from_bytes(data[21:25], "little")
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WEBP")
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, "WEBP")
    raise MediaError("not a picture", f"WebP that starts with {kind!r}")


def _webp_extended(window: _Window, end: int, count_frames: bool) -> Header:
    data = window.data
    flags = data[20]
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    count = count_frames and bool(flags & _ANIMATED)
    orientation, frames, position = _UPRIGHT, 0, 30
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


# ── AVIF ─────────────────────────────────────────────────────────────────────────────────

# EXIF orientation of a rotation by so many quarters against the clock, without a mirror, with
# a mirror of top and bottom (axis 0), and with one of left and right (axis 1).
_TURNS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))


def _avif(window: _Window, count_frames: bool) -> Header:
    if window.data[8:12] in (b"avis", b"msf1"):
        return _pillow("AVIF")(window, count_frames)
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
    return _avif_item(window.data[position + 12 : position + length])


def _avif_item(meta: bytes) -> Header:
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


# ── The rest, by Pillow ──────────────────────────────────────────────────────────────────


class _Guard(io.BytesIO):
    """A file that asks for more bytes instead of ending early.

    Attributes:
        ended: Whether a read came upon the end of the whole file.
    """

    def __init__(self, window: _Window) -> None:
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


def _pillow(kind: str) -> Callable[[_Window, bool], Header]:
    def read(window: _Window, count_frames: bool) -> Header:
        guard = _Guard(window)
        try:
            with open_pillow(kind, guard) as image:
                width, height = image.size
                frames = _count(image) if count_frames else 1
        except Exception:
            if guard.ended:
                raise window.short(len(window.data) + 1) from None
            raise
        return Header(width, height, kind, frames=frames)

    return read


_READERS: dict[str, Callable[[_Window, bool], Header]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "AVIF": _avif,
    "GIF": _pillow("GIF"),
    "TIFF": _pillow("TIFF"),
    "BMP": _pillow("BMP"),
}
