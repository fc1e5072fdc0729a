"""Header of a TIFF: its size, orientation and pages."""

from factory.errors import MediaError
from factory.media.formats.exif import as_seen, xmp_orientation
from factory.media.formats.header_bytes import LONGEST_HEADER, Header, HeaderBytes

_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _XMP, _FORMAT = 256, 257, 258, 274, 700, 339
# Whole numbers: BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG, IFD, LONG8.
_LAYOUTS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
# Bytes of one value of each type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip
_BIG = 43
# Sample formats: whole numbers with a sign, and floating point.
_SIGNED, _FLOAT = 2, 3
_DEEPEST = 16  # bits whose range is known: 0 is black and all of them set is white
_MOST_SAMPLES = 16  # no picture has as many channels


def read(window: HeaderBytes, count_frames: bool) -> Header:
    """Return the header of a TIFF or BigTIFF: of its first page, and the number of pages."""
    order = "<" if window.data[:2] == b"II" else ">"
    (version,) = window.unpack(order + "H", 2)
    reader = _Directories(window, order, big=version == _BIG)
    first = reader.number(8 if reader.big else 4)
    if not first:
        raise MediaError("not a picture", "TIFF without a page")
    entries = reader.entries(first)
    width, height, turn = (reader.value(entries, tag) for tag in (_WIDTH, _HEIGHT, _ORIENTATION))
    if turn is None and _XMP in entries:
        turn = xmp_orientation(reader.values(entries, _XMP))
    _check_depth(reader, entries)
    pages = reader.pages(first) if count_frames else 1
    return Header(width or 0, height or 0, "TIFF", as_seen(turn), pages)


def _check_depth(reader: "_Directories", entries: dict[int, tuple[int, int, int]]) -> None:
    """Refuse values without a known range."""
    bits = max(reader.numbers(entries, _BITS), default=1)
    forms = reader.numbers(entries, _FORMAT)
    if bits > _DEEPEST or _FLOAT in forms or (_SIGNED in forms and bits == _DEEPEST):
        kind = "floating-point" if _FLOAT in forms else "signed" if _SIGNED in forms else "integer"
        raise MediaError(
            "unsupported pixels",
            f"TIFF of {bits}-bit {kind} values, which have no known range; save the picture with "
            "8 or 16 bits",
        )


class _Directories:
    """The directories of a TIFF, one a page, each naming where the next one is."""

    def __init__(self, window: HeaderBytes, order: str, big: bool) -> None:
        self.window, self.order, self.big = window, order, big
        self._count = order + ("Q" if big else "H")
        self._number = order + ("Q" if big else "I")
        self._entry = order + ("HHQ" if big else "HHI")
        self._length = 20 if big else 12

    def number(self, position: int) -> int:
        """Return an offset stored at a position."""
        return int(self.window.unpack_at(self._number, position)[0])

    def entries(self, start: int) -> dict[int, tuple[int, int, int]]:
        """Return type, count and place of the value of each entry of a directory, by its tag.

        Raises:
            MediaError: Its values cannot all lie in the file: a decoder that reads each of them
                would read the same bytes again and again.
        """
        found: dict[int, tuple[int, int, int]] = {}
        inline, total = 8 if self.big else 4, 0
        for entry in range(*self._span(start), self._length):
            tag, kind, count = self.window.unpack_at(self._entry, entry)
            length, value = count * _SIZES.get(kind, 0), entry + self._length - inline
            if length > inline:
                total += length
                value = self.number(value)
            found.setdefault(tag, (kind, count, value))
        size = LONGEST_HEADER if self.window.size is None else self.window.size
        if total > size:
            raise MediaError("truncated header", f"TIFF whose tags take {total} of {size} bytes")
        return found

    def value(self, entries: dict[int, tuple[int, int, int]], tag: int) -> int | None:
        """Return the whole number of a tag, None where it has none, or several."""
        kind, count, _ = entries.get(tag, (0, 0, 0))
        return self.numbers(entries, tag)[0] if kind in _LAYOUTS and count == 1 else None

    def numbers(self, entries: dict[int, tuple[int, int, int]], tag: int) -> tuple[int, ...]:
        """Return the whole numbers of a tag, none of other types."""
        kind, count, place = entries.get(tag, (0, 0, 0))
        layout = _LAYOUTS.get(kind)
        if layout is None:
            return ()
        return self.window.unpack_at(f"{self.order}{min(count, _MOST_SAMPLES)}{layout}", place)

    def values(self, entries: dict[int, tuple[int, int, int]], tag: int) -> bytes:
        """Return the bytes of a tag."""
        kind, count, place = entries[tag]
        return self.window.at(place, count * _SIZES.get(kind, 0))

    def pages(self, start: int) -> int:
        """Return the number of directories; a loop ends where it closes.

        Those of a file beyond `LONGEST_HEADER` are counted as far as they lie near.
        """
        seen: set[int] = set()
        try:
            while start and start not in seen:
                self.window.step()
                following = self.number(self._span(start)[1])
                seen.add(start)
                start = following
        except MediaError:  # the chain is broken: what is before that counts
            pass
        return max(len(seen), 1)

    def _span(self, start: int) -> tuple[int, int]:
        """Return where the entries of a directory begin and end."""
        first = start + (8 if self.big else 2)
        (count,) = self.window.unpack_at(self._count, start)
        end = first + count * self._length
        self.window.at(first, end - first)
        return first, end
