"""Header of a GIF: the size of its first frame, and the number of its frames."""

import re

from factory.errors import MediaError
from factory.media.formats.header_bytes import LONGEST_HEADER, Header, HeaderBytes

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_BLOCK = re.compile(rb"[!,;]")
_HAS_COLOURS = 0x80
# Bytes of an image descriptor behind its first one.
_DESCRIPTOR = 9


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a GIF; to count frames its file is walked, block by block.

    Those that begin in the first `LONGEST_HEADER` bytes are counted.
    """
    window.need(13)
    data = window.data
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    image = _next_image(window, 13 + _colours(data[10]))
    if image is None:
        raise MediaError("not a picture", "GIF without a picture")
    behind = _behind(window, image)
    left, top, wide, tall = (
        int.from_bytes(data[at : at + 2], "little") for at in range(image, image + 8, 2)
    )
    frames = _count(window, behind) if count_frames else 1
    # A frame that leaves the screen enlarges it, as decoders have it.
    return Header(max(width, left + wide), max(height, top + tall), "GIF", frames=frames)


def _count(window: HeaderBytes, position: int) -> int:
    """Return the number of frames, the first one's pixels beginning at the position."""
    frames = 1
    while position < LONGEST_HEADER:
        try:
            image = _next_image(window, _behind_blocks(window, position))
            if image is None:
                break
            position = _behind(window, image)
        except MediaError:  # the file breaks off: what is before that counts
            break
        frames += 1
    return frames


def _next_image(window: HeaderBytes, position: int) -> int | None:
    """Return where the next image descriptor is, None where the trailer comes first."""
    data = window.data
    while True:
        window.step()
        found = _BLOCK.search(data, position)
        if found is None:
            raise window.short(max(position, len(data)) + 1)
        kind, position = found[0][0], found.end()
        if kind == _TRAILER:
            return None
        if kind == _IMAGE:
            return position
        if kind == _EXTENSION:
            position = _behind_blocks(window, position + 1)


def _behind(window: HeaderBytes, image: int) -> int:
    """Return where the data blocks of an image begin."""
    window.need(image + _DESCRIPTOR)
    behind = image + _DESCRIPTOR + _colours(window.data[image + 8]) + 1
    window.need(behind)
    return behind


def _behind_blocks(window: HeaderBytes, position: int) -> int:
    """Return where a row of data blocks ends, or where the whole file does."""
    data = window.data
    try:
        while length := data[position]:
            position += length + 1
    except IndexError:
        if window.whole:
            return len(data)
        raise window.short(position + 1) from None
    return position + 1


def _colours(flags: int) -> int:
    """Return the bytes of the colour table that flags announce."""
    return 3 << (flags & 7) + 1 if flags & _HAS_COLOURS else 0
