"""Header of a JPEG: its size, orientation and scans."""

import re

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.header_bytes import UPRIGHT, Header, HeaderBytes

# Frame headers, which hold the size: 0xC0 to 0xCF without DHT, JPG and DAC.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Those of frames in several scans, whose coefficients a decoder holds until the last of them.
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
# What the quick reader leaves to the careful one: markers without a length (TEM and the restart
# markers, 0 and 0xFF, which are filling), the end, and a scan before any frame.
_UNUSUAL = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8), _END, _SCAN})
# A marker that a length follows, or an end, whatever stands before it.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def quick(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and orientation of an ordinary JPEG; None leaves it to `read`.

    Nearly every file is a plain row of segments; scans measure millions of them.
    """
    exif, position = b"", 2
    try:
        while data[position] == 0xFF:  # noqa: PLR2004 - every marker begins so
            marker = data[position + 1]
            if marker in _FRAME_MARKERS:
                scan = data.find(b"\xff\xda", position)
                if scan < 0 or data.find(b"\xff\xe1", position, scan) >= 0:
                    return None
                height = data[position + 5] << 8 | data[position + 6]
                width = data[position + 7] << 8 | data[position + 8]
                return width, height, exif_orientation(exif) if exif else UPRIGHT
            if marker in _UNUSUAL:
                return None
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if marker == _APP1:  # XMP, and EXIF in parts, are left to the careful reader
                if exif or end >= len(data) or not data.startswith(_EXIF, position + 4):
                    return None
                exif = data[position + 10 : end]
            position = end
    except IndexError:
        pass
    return None


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a JPEG, whatever stands between its segments."""
    del count_frames  # a JPEG has one frame; further pictures of an MPO are previews
    data, told, position = window.data, _Orientation(), 2
    while True:
        window.step()
        found = _MARKER.search(data, position)
        if found is None:
            raise window.short(len(data) + 1)
        position = found.end() - 2
        window.need(position + 4)
        marker = data[position + 1]
        if marker in (_END, _SCAN):
            raise MediaError("not a picture", "JPEG without a frame header")
        if marker in _FRAME_MARKERS:
            height, width = window.unpack(">HH", position + 5)
            scan = data.find(b"\xff\xda", position)
            if scan < 0:
                raise window.short(len(data) + 1)
            while (position := data.find(b"\xff\xe1", position + 1, scan)) >= 0:
                told.look(data, position)
            whole = marker in _PROGRESSIVE
            return Header(width, height, "JPEG", exif_orientation(told.exif, told.xmp), whole=whole)
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        window.need(end + 1)
        if marker == _APP1:
            told.look(data, position)
        position = end


class _Orientation:
    """What segments say of orientation: those of EXIF go on, of XMP the last one counts."""

    def __init__(self) -> None:
        self.exif = self.xmp = b""

    def look(self, data: bytes, position: int) -> None:
        """Take in the APP1 segment at a position."""
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data.startswith(_EXIF, position + 4):
            self.exif += data[position + 10 : end]
        elif data.startswith(_XMP, position + 4):
            self.xmp = data[position + 33 : end]


def scans(data: bytes, most: int) -> int:
    """Return the number of scans of a whole file; none is looked for beyond the `most`-th."""
    if data.count(b"\xff\xda") <= most:  # also counts previews: never too few
        return data.count(b"\xff\xda")
    found, position = 0, 2
    while found <= most and (match := _MARKER.search(data, position)) is not None:
        marker, position = match[1][0], match.end()
        if marker == _END:
            break
        found += marker == _SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return found
