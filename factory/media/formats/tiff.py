"""How large is a TIFF, and how many pages has it?"""

from factory.errors import MediaError
from factory.media.formats.window import Header, Window

_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274
_TRANSPOSED = (5, 6, 7, 8)
# Whole numbers: BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG, IFD, LONG8.
_LAYOUTS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
_BIG = 43


def read(window: Window, count_frames: bool) -> Header:
    """Return the header of a TIFF or BigTIFF: of its first page, and the number of pages.

    Its decoder turns pages itself, so the size is the one after orientation.
    """
    order = "<" if window.data[:2] == b"II" else ">"
    (version,) = window.unpack(order + "H", 2)
    reader = _Directories(window, order, big=version == _BIG)
    first = reader.number(8 if reader.big else 4)
    if not first:
        raise MediaError("not a picture", "TIFF without a page")
    tags = reader.tags(first)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    if tags.get(_ORIENTATION) in _TRANSPOSED:
        width, height = height, width
    return Header(width, height, "TIFF", frames=reader.pages(first) if count_frames else 1)


class _Directories:
    """The directories of a TIFF, one a page, each naming where the next one is."""

    def __init__(self, window: Window, order: str, big: bool) -> None:
        self.window, self.order, self.big = window, order, big
        self._count = order + ("Q" if big else "H")
        self._number = order + ("Q" if big else "I")
        self._entry = order + ("HHQ" if big else "HHI")
        self._length = 20 if big else 12

    def number(self, position: int) -> int:
        """Return an offset stored at a position."""
        return int(self.window.unpack(self._number, position)[0])

    def tags(self, start: int) -> dict[int, int]:
        """Return the whole numbers in a directory that size and orientation are among."""
        tags: dict[int, int] = {}
        for entry in range(*self._entries(start), self._length):
            tag, kind, count = self.window.unpack(self._entry, entry)
            if tag not in (_WIDTH, _HEIGHT, _ORIENTATION) or tag in tags:
                continue
            layout = _LAYOUTS.get(kind)
            if layout is None or count != 1:
                continue
            value = entry + (12 if self.big else 8)
            tags[tag] = self.window.unpack(self.order + layout, value)[0]
        return tags

    def pages(self, start: int) -> int:
        """Return the number of directories; a loop ends where it closes."""
        seen: set[int] = set()
        try:
            while start and start not in seen:
                following = self.number(self._entries(start)[1])
                seen.add(start)
                start = following
        except MediaError:  # the chain is broken: what is before that counts
            pass
        return max(len(seen), 1)

    def _entries(self, start: int) -> tuple[int, int]:
        """Return where the entries of a directory begin and end."""
        first = start + (8 if self.big else 2)
        (count,) = self.window.unpack(self._count, start)
        end = first + count * self._length
        self.window.need(end)
        return first, end
