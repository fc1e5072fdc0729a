"""Header of an AVIF or HEIC: its size and orientation.

A still picture's header is a tree of boxes, read by hand. Sequences of AVIF are left to Pillow
behind a reader that asks for more bytes instead of running past those it has.
"""

import io
import struct
from typing import Any

from factory.errors import MediaError
from factory.media.formats.exif import as_seen, has_tag, xmp_orientation
from factory.media.formats.header_bytes import (
    MOST_PARTS,
    UPRIGHT,
    Header,
    HeaderBytes,
    NeedMoreBytes,
    too_many_parts,
)

# EXIF orientation of a rotation by so many quarters against the clock, without a mirror, with
# a mirror of top and bottom (axis 0), and with one of left and right (axis 1).
_TURNS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))
_AVIF = frozenset((b"avif", b"avis"))
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_EITHER = frozenset((b"mif1", b"msf1", b"mif2", b"miaf"))
# Bytes of the boxes before the coded pixels: a picture of a thousand tiles takes some 50 KB.
_LONGEST_META = 4 * 2**20


def kind(head: bytes) -> str | None:
    """Return "AVIF" or "HEIC" by the brands of a file type box, None for other kinds."""
    if head[4:8] != b"ftyp":
        return None
    brand = head[8:12]
    if brand in _EITHER:
        end = min(int.from_bytes(head[:4], "big"), 256)
        brands = {head[at : at + 4] for at in range(16, min(end, len(head)), 4)}
        return "HEIC" if brands & _HEIC and not brands & _AVIF else "AVIF"
    return "AVIF" if brand in _AVIF else "HEIC" if brand in _HEIC else None


def read_avif(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of an AVIF: of its primary item, or of a sequence by Pillow."""
    if window.data[8:12] in (b"avis", b"msf1"):
        return _sequence(window, count_frames)
    item = _Item(window)
    turned = item.turn != UPRIGHT
    return Header(*item.size, "AVIF", item.turn if turned else as_seen(item.xmp_orientation()))


def read_heic(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a HEIC, whose decoder cuts and turns it by itself."""
    del count_frames  # the primary item is the picture; others are its tiles and previews
    item = _Item(window)
    width, height = item.clean or item.size
    turned = Header(width, height, "HEIC", item.turn)
    return turned._replace(
        width=height if turned.transposed else width,
        height=width if turned.transposed else height,
        orientation=UPRIGHT,
    )


class _Item:
    """The primary item of a file.

    Attributes:
        size: Width and height as coded, px.
        clean: Those of its clean aperture; None without one.
        turn: EXIF orientation of its rotation and mirror.
    """

    def __init__(self, window: HeaderBytes) -> None:
        self._window = window
        self._boxes = boxes = dict(_boxes(_meta(window)))
        version = boxes[b"pitm"][0]
        primary = int.from_bytes(boxes[b"pitm"][4 : 8 if version else 6], "big")
        inner = dict(_boxes(boxes[b"iprp"]))
        properties = _boxes(inner[b"ipco"])
        self.size: tuple[int, int] = (0, 0)
        self.clean: tuple[int, int] | None = None
        turn = mirror = 0
        for index in _associated(inner[b"ipma"], primary):
            kind, body = properties[index - 1]
            if kind == b"ispe":
                self.size = struct.unpack_from(">II", body, 4)
            elif kind == b"clap":
                wide, per, tall, by = struct.unpack_from(">IIII", body)
                self.clean = (wide // per, tall // by)
            elif kind == b"irot":
                turn = body[0] & 3
            elif kind == b"imir":
                mirror = 1 + (body[0] & 1)
        self.turn = _TURNS[turn][mirror]

    def xmp_orientation(self) -> int | None:
        """Return what XMP says, None where it says nothing or EXIF says something."""
        if b"mime" not in self._boxes.get(b"iinf", b""):
            return None
        items, places = _items(self._boxes[b"iinf"]), _places(self._boxes[b"iloc"])
        found: dict[bytes, bytes] = {}
        for number, (kind, content) in items.items():
            wanted = kind == b"Exif" or (kind == b"mime" and b"rdf+xml" in content)
            if wanted and number in places and kind not in found:
                found[kind] = self._window.at(*places[number])
        exif = found.get(b"Exif", b"")
        begin = 4 + int.from_bytes(exif[:4], "big")  # where the small TIFF in it starts
        # The tag in EXIF is not the picture's orientation, as decoders have it, and hides XMP's.
        return None if has_tag(exif[begin:]) else xmp_orientation(found.get(b"mime", b""))


def _meta(window: HeaderBytes) -> bytes:
    """Return the body of the meta box."""
    position = 0
    while True:
        window.step()
        length, kind = window.unpack_at(">I4s", position)
        if kind == b"meta":
            break
        if length == 1:
            (length,) = window.unpack_at(">Q", position + 8)
        if length < 8:  # noqa: PLR2004 - a box is at least its own header; 0 is the last one
            raise MediaError("not a picture", f"{window.data[8:12]!r} without a meta box")
        position += length
    if not 12 <= length <= _LONGEST_META:  # noqa: PLR2004 - its own header, version and flags
        raise MediaError(
            "not a picture", f"{window.data[8:12]!r} with a meta box of {length} bytes"
        )
    return window.at(position + 12, length - 12)


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return (kind, body) of the boxes in a row."""
    found, position = [], 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if length < 8:  # noqa: PLR2004 - a box is at least its own header
            break
        found.append((kind, data[position + 8 : position + length]))
        position += length
        if len(found) > MOST_PARTS:
            raise too_many_parts()
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


def _items(iinf: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Return type and content type of the items, by number; those of old versions are left out."""
    found = {}
    for kind, body in _boxes(iinf[6 if iinf[0] == 0 else 8 :]):
        if kind != b"infe" or body[0] not in (2, 3):
            continue
        wide = 4 if body[0] == 3 else 2  # noqa: PLR2004 - a version
        number = int.from_bytes(body[4 : 4 + wide], "big")
        # After its number two bytes of protection, then the type, a name and the content type.
        found[number] = (body[6 + wide : 10 + wide], body[10 + wide :])
    return found


def _places(iloc: bytes) -> dict[int, tuple[int, int]]:
    """Return (offset, length) of items that lie in the file in one piece, by number."""
    version = iloc[0]
    offset, length = iloc[4] >> 4, iloc[4] & 15
    base, index = iloc[5] >> 4, iloc[5] & 15 if version else 0
    wide = 2 if version < 2 else 4  # noqa: PLR2004 - a version
    stream = io.BytesIO(iloc[6:])

    def take(count: int) -> int:
        """Return the next number."""
        return int.from_bytes(stream.read(count), "big")

    found = {}
    for _ in range(min(take(wide), len(iloc))):
        number = take(wide)
        method = take(2) & 15 if version else 0
        take(2)  # where the data are: this file
        start, extents = take(base), take(2)
        parts = [(take(index), take(offset), take(length)) for _ in range(min(extents, len(iloc)))]
        if method == 0 and len(parts) == 1:
            found[number] = (start + parts[0][1], parts[0][2])
    return found


def _sequence(window: HeaderBytes, count_frames: bool) -> Header:
    from PIL.AvifImagePlugin import AvifImageFile

    guard = _Guard(window)
    try:
        with AvifImageFile(guard) as image:
            width, height = image.size
            turn = image.getexif().get(0x0112)
            frames = _count(image) if count_frames else 1
    except Exception:
        if guard.ended:
            raise window.short(len(window.data) + 1) from None
        raise
    return Header(width, height, "AVIF", as_seen(turn), frames=frames)


class _Guard(io.BytesIO):
    """A file that asks for more bytes instead of ending early.

    Attributes:
        ended: Whether a read came upon the end of the whole file.
    """

    def __init__(self, window: HeaderBytes) -> None:
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
