"""Header of a BMP: its size."""

from factory.errors import MediaError
from factory.media.formats.header_bytes import Header, HeaderBytes

# Bytes of the headers there are: OS/2 1, Windows 3 and its extensions, OS/2 2, Windows 4 and 5.
_CORE, _OTHERS = 12, (40, 52, 56, 64, 108, 124)
_DEPTHS = (1, 4, 8, 16, 24, 32)
# None, run lengths of 8 and 4 bits, bit fields; others are pictures of other formats inside.
_COMPRESSIONS = (0, 1, 2, 3)


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a BMP."""
    del count_frames  # it has one
    (length,) = window.unpack("<I", 14)
    if length == _CORE:
        width, height, _, bits = window.unpack("<HHHH", 18)
        compression = 0
    elif length in _OTHERS:
        width, height, _, bits, compression = window.unpack("<IIHHI", 18)
        if height >> 24 == 0xFF:  # noqa: PLR2004 - negative: rows run from top to bottom
            height = 2**32 - height
    else:
        raise MediaError("not a picture", f"BMP with a header of {length} bytes")
    if bits not in _DEPTHS or compression not in _COMPRESSIONS:
        raise MediaError("unsupported pixels", f"BMP of {bits} bits, compression {compression}")
    window.need(14 + length)
    return Header(width, height, "BMP")
