"""How large is a JPEG?"""

from factory.errors import MediaError
from factory.media.formats.exif import exif_orientation
from factory.media.formats.window import UPRIGHT, Header, Window

# Frame headers, which hold the size: 0xC0 to 0xCF without DHT, JPG and DAC.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: TEM and the restart markers; 0 and 0xFF are filling.
_BARE_MARKERS = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD8)})
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
# What the quick reader leaves to the careful one.
_UNUSUAL = _BARE_MARKERS | {_END, _SCAN}
_EXIF = b"Exif\0\0"


def quick(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and orientation of an ordinary JPEG; None leaves it to `read`.

    Nearly every file is a plain row of segments; scans measure millions of them.
    """
    orientation, seen, position = UPRIGHT, False, 2
    try:
        while data[position] == 0xFF:  # noqa: PLR2004 - every marker begins so
            marker = data[position + 1]
            if marker in _FRAME_MARKERS:
                height = data[position + 5] << 8 | data[position + 6]
                return data[position + 7] << 8 | data[position + 8], height, orientation
            if marker in _UNUSUAL:
                return None
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if marker == _APP1 and not seen and data.startswith(_EXIF, position + 4):
                if end >= len(data):
                    return None
                orientation, seen = exif_orientation(data[position + 10 : end]), True
            position = end
    except IndexError:
        pass
    return None


def read(window: Window, count_frames: bool) -> Header:
    """Return the header of a JPEG, whatever stands between its segments."""
    del count_frames  # a JPEG has one frame; further pictures of an MPO are previews
    data, orientation, seen, position = window.data, UPRIGHT, False, 2
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
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        window.need(end + 1)
        if marker == _APP1 and not seen and data.startswith(_EXIF, position + 4):
            orientation, seen = exif_orientation(data[position + 10 : end]), True
        position = end
