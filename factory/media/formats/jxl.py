"""Header of a JPEG XL: its size and orientation.

The size and the orientation are packed bit by bit into the first bytes of the codestream,
which lies bare in the file or in a box of a container. Frames are not counted.
"""

from factory.errors import MediaError
from factory.media.formats.header_bytes import UPRIGHT, Header, HeaderBytes

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# The signature, then 1 + 2 + 30 + 3 + 2 + 30 bits of size and 1 + 1 + 3 of orientation.
_ENOUGH = 12
# A codestream in parts: four bytes of number before each part's own.
_NUMBER = 4
# Width = height * this, by a code that saves writing the width.
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
# Bits of an edge, by a code of two bits.
_EDGE_BITS = (9, 13, 18, 30)


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a JPEG XL, bare or in a container."""
    del count_frames
    bare = window.data.startswith(CODESTREAM)
    start = _bare(window) if bare else _contained(window)
    if not start.startswith(CODESTREAM):
        raise MediaError("not a picture", "JPEG XL without a codestream")
    bits = _Bits(start[len(CODESTREAM) :])
    width, height = _size(bits)
    return Header(width, height, "JXL", _orientation(bits))


def _bare(window: HeaderBytes) -> bytes:
    # The smallest pictures are shorter than the longest size: take what there is.
    if not window.whole:
        window.need(_ENOUGH)
    return window.data[:_ENOUGH]


def _contained(window: HeaderBytes) -> bytes:
    """Return the first bytes of the codestream in a container."""
    position, start = len(CONTAINER), b""
    while True:
        window.step()
        length, kind = window.unpack_at(">I4s", position)
        body = position + 8
        if length == 1:
            (length,) = window.unpack_at(">Q", body)
            body += 8
        last = length == 0  # the last box goes on to the end of the file
        end = body + _NUMBER + _ENOUGH if last else position + length
        if end < body:
            raise MediaError("not a picture", f"JPEG XL with a box of {length} bytes")
        if kind in (b"jxlc", b"jxlp"):
            body += _NUMBER if kind == b"jxlp" else 0
            start += _span(window, body, min(end, body + _ENOUGH - len(start)), last)
            if len(start) >= _ENOUGH or kind == b"jxlc" or last:
                return start
        elif last:
            raise MediaError("not a picture", "JPEG XL without a codestream")
        position = end


def _span(window: HeaderBytes, first: int, end: int, last: bool) -> bytes:
    if last and window.size is not None:
        end = min(end, window.size)
    return window.at(first, end - first)


class _Bits:
    """Bytes read bit by bit, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the number in the next bits."""
        self._left -= count
        if self._left < 0:
            raise MediaError("truncated header", "JPEG XL that ends in its size")
        taken = self._value & (1 << count) - 1
        self._value >>= count
        return taken


def _size(bits: _Bits) -> tuple[int, int]:
    eighths = bits.take(1)
    height = _edge(bits, eighths)
    ratio = bits.take(3)
    if not ratio:
        return _edge(bits, eighths), height
    wide, tall = _RATIOS[ratio - 1]
    return height * wide // tall, height


def _edge(bits: _Bits, eighths: int) -> int:
    if eighths:
        return 8 * (bits.take(5) + 1)
    return bits.take(_EDGE_BITS[bits.take(2)]) + 1


def _orientation(bits: _Bits) -> int:
    plain = bits.take(1)
    if plain or not bits.take(1):
        return UPRIGHT
    return bits.take(3) + 1
