"""Tar headers: the members of an archive and where their bytes lie."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from factory.errors import UnsafeKeyError
from factory.storage.base import safe_key
from factory.storage.keys import is_listed

# Headers and data come in blocks of this many bytes, by the format.
BLOCK = 512
# Of the two dialects; in the older one the field of the name's start holds other things.
_POSIX = b"ustar\0"
# Decimal digits of a record's own length or of a size: beyond them lies no file.
_MOST_DIGITS = 20


class PaxError(Exception):
    """Records of an extended header that cannot be told apart."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One header block.

    Attributes:
        name: Path as written, raw.
        kind: Type flag, one byte.
        size: Bytes of data that follow.
        extended: Whether blocks of a sparse file's map follow.
    """

    name: bytes
    kind: bytes
    size: int
    extended: bool


@dataclass(frozen=True, slots=True)
class Pax:
    """What an extended header says of its member; None where it says nothing.

    Attributes:
        name: Path, raw.
        size: Bytes of data.
        sparse: Whether the member is a sparse file.
    """

    name: bytes | None
    size: int | None
    sparse: bool


def rounded(size: int) -> int:
    """Return a size with the padding to whole blocks."""
    return (size + BLOCK - 1) // BLOCK * BLOCK


def parse_header(block: bytes) -> TarHeader | None:
    """Return what a block of 512 bytes says, or None where it is no sound header."""
    written = _number(block[148:156])
    if written is None or len(block) < BLOCK or not _adds_up(block, written):
        return None
    size = _number(block[124:136])
    if size is None:
        return None
    name = block[:100].partition(b"\0")[0]
    start = block[345:500].partition(b"\0")[0] if block[257:263] == _POSIX else b""
    if start:
        name = start + b"/" + name
    return TarHeader(name, block[156:157], size, bool(block[482]))


def _adds_up(block: bytes, written: int) -> bool:
    """Compare the sum of all bytes, the sum's own field taken as spaces."""
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if total == written:
        return True
    # Some old writers added bytes as signed numbers.
    signed = sum(byte >= 128 for byte in block) - sum(byte >= 128 for byte in block[148:156])  # noqa: PLR2004
    return total - 256 * signed == written


def _number(text: bytes) -> int | None:
    """Return an octal number, or a binary one (first byte 128); None for any other."""
    if text[:1] == b"\x80":
        return int.from_bytes(text[1:], "big")
    digits = text.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        return None
    return int(digits, 8)


def parse_pax(body: bytes) -> Pax:
    """Return what the records of an extended header say, each "LENGTH KEY=VALUE" and a newline.

    Raises:
        PaxError: The records are damaged.
    """
    said: dict[bytes, bytes] = {}
    at = 0
    while at < len(body) and body[at]:
        digits = body[at : at + _MOST_DIGITS].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length or record[-1:] != b"\n":
            raise PaxError
        said[key] = value
        at += length
    return Pax(_path(said), _size(said), any(key.startswith(b"GNU.sparse.") for key in said))


def _path(said: dict[bytes, bytes]) -> bytes | None:
    return said.get(b"GNU.sparse.name", said.get(b"path"))


def _size(said: dict[bytes, bytes]) -> int | None:
    value = said.get(b"size")
    if value is None:
        return None
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        raise PaxError
    return int(value)


# Read for each header found in the window before: small members share a read, and for a large
# one hardly more is read than its header. 32 KiB take a network about as long as asking does.
_PER_HEADER = 32 * 2**10
_FIRST_WINDOW = 64 * 2**10
_LARGEST_WINDOW = 2**20
# A longer path is no path: file systems end at 4096 bytes.
_LONGEST_EXTENSION = 2**20
# After a damaged header the next sound one is looked for in this many bytes.
_SEARCHED = 64 * 2**20
# Read first and doubled then, for the next header is often near.
_FIRST_SEARCH = 4 * 2**10
# Looked at behind the end mark: the padding that tar writes (20 blocks), and some more.
_BEHIND_END = 16 * 2**10

_FILES = (b"0", b"\0", b"7")
_LONG_NAME, _SPARSE = b"L", b"S"
_PAX = (b"x", b"X")
_SKIPPED = (b"K", b"g")  # long names of links' targets; records for all members (comments)
_DIRECTORY = b"5"
# Entries that say nothing of bytes: whatever size they name, no data follows.
_WITHOUT_DATA = {
    b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"6": "pipe",
}  # fmt: skip

_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip",
}  # fmt: skip

Reader = Callable[[int, int], bytes]


@dataclass
class Members:
    """The regular files of an archive, in its order; of equal names the last.

    Attributes:
        places: Offset and size of each member's bytes, by key.
        problems: How many entries were left out for each reason, and the first one's name.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)

    def leave_out(self, reason: str, example: str = "") -> None:
        """Count an entry that is not listed."""
        count, first = self.problems.get(reason, (0, example))
        self.problems[reason] = (count + 1, first)


def read_members(read: Reader, size: int) -> Members:
    """Walk over an archive's headers.

    What is damaged is left out with a reason, and the walk goes on where it can; nothing a
    file holds makes it fail.

    Args:
        read: Returns the bytes from an offset, up to a length; fewer at the end.
        size: Bytes of the archive.
    """
    walk = _HeaderWalk(read, size)
    at: int | None = 0
    while at is not None:
        at = walk.step(at)
    return walk.members


class _Windows:
    """Bytes read ahead, as many as the members' sizes make worth it."""

    def __init__(self, read: Reader, size: int) -> None:
        self._read = read
        self.size = size
        self._start = 0
        self._data = b""
        self._next = _FIRST_WINDOW
        self._uses = 0

    def take(self, at: int, length: int) -> bytes:
        """Return a span; shorter only where the archive ends."""
        end = min(at + length, self.size)
        if not self._start <= at <= end <= self._start + len(self._data):
            if self._uses:
                self._next = min(self._uses * _PER_HEADER, _LARGEST_WINDOW)
            self._start, self._uses = at, 0
            self._data = self._read(at, max(length, self._next)) if at < self.size else b""
        self._uses += 1
        return self._data[at - self._start : max(end, at) - self._start]


@dataclass
class _Pending:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    problem: str | None = None


class _HeaderWalk:
    """One walk; each step starts at a header and returns where the next one is."""

    def __init__(self, read: Reader, size: int) -> None:
        self.members = Members()
        self._read = read
        self._windows = _Windows(read, size)
        self._size = size
        self._pending = _Pending()
        self._last = ""

    def step(self, at: int) -> int | None:
        block = self._windows.take(at, BLOCK)
        if len(block) < BLOCK:
            if block or at == 0:
                self.members.leave_out(self._cut_short(block, at), self._last)
            return None
        if not any(block):
            self._look_behind(at)
            return None
        header = parse_header(block)
        if header is None:
            return self._search(at, block)
        if header.kind == _LONG_NAME or header.kind in (*_PAX, *_SKIPPED):
            return self._extension(header, at + BLOCK)
        return self._entry(header, at + BLOCK)

    def _cut_short(self, block: bytes, at: int) -> str:
        if at == 0:
            return "empty file" if not block else _not_tar(block)
        return "truncated header"

    def _extension(self, header: TarHeader, start: int) -> int | None:
        """Remember what an extended header says of the next member."""
        if start + header.size > self._size:
            self.members.leave_out("truncated header", self._last)
            return None
        if header.kind not in _SKIPPED:
            if header.size > _LONGEST_EXTENSION:
                self._pending.problem = "oversized extended header"
            else:
                self._note(header.kind, self._windows.take(start, header.size))
        return start + rounded(header.size)

    def _note(self, kind: bytes, body: bytes) -> None:
        # Of two headers that say the same the first counts, as tarfile has it.
        pending = self._pending
        if kind == _LONG_NAME:
            name = body.partition(b"\0")[0]
            pending.name = name if pending.name is None else pending.name
            return
        try:
            said = parse_pax(body)
        except PaxError:
            pending.problem = "damaged extended header"
            return
        pending.name = said.name if pending.name is None else pending.name
        pending.size = said.size if pending.size is None else pending.size
        if said.sparse:
            pending.problem = "sparse file"

    def _entry(self, header: TarHeader, start: int) -> int | None:
        pending, self._pending = self._pending, _Pending()
        raw = header.name if pending.name is None else pending.name
        self._last = shown = _shown(raw)
        folder = header.kind == _DIRECTORY or (header.kind == b"\0" and header.name[-1:] == b"/")
        if folder:
            return start
        if header.kind in _WITHOUT_DATA:
            self.members.leave_out(_WITHOUT_DATA[header.kind], shown)
            return start
        if header.kind == _SPARSE:
            self.members.leave_out("sparse file", shown)
            return self._behind_sparse(header, start)
        size = header.size if pending.size is None else pending.size
        if start + size > self._size:
            self.members.leave_out("truncated member", shown)
            return None
        problem = pending.problem
        if header.kind not in _FILES:
            problem = "entry of an unknown type"
        if problem:
            self.members.leave_out(problem, shown)
        else:
            self._file(raw, start, size)
        return start + rounded(size)

    def _file(self, raw: bytes, start: int, size: int) -> None:
        members = self.members
        try:
            key = safe_key(raw.decode())
        except UnicodeDecodeError:
            members.leave_out("name is not UTF-8", _shown(raw))
            return
        except UnsafeKeyError:
            members.leave_out("name leaves the archive", _shown(raw))
            return
        if not is_listed(key):
            return
        if members.places.pop(key, None) is not None:  # the last one counts, also for the order
            members.leave_out("replaced by a later member of its name", key)
        members.places[key] = (start, size)

    def _behind_sparse(self, header: TarHeader, start: int) -> int | None:
        """Return where the data of an old GNU sparse file ends, behind the blocks of its map."""
        more = header.extended
        while more:
            block = self._windows.take(start, BLOCK)
            if len(block) < BLOCK:
                return None
            more = bool(block[504])  # "one more block follows"
            start += BLOCK
        return start + rounded(header.size)

    def _search(self, at: int, block: bytes) -> int | None:
        """Return where the next sound header is after one that is none."""
        packed = at == 0 and any(block.startswith(magic) for magic in _MAGIC)
        found = None if packed else next(self._sound_headers(at + BLOCK), None)
        if at == 0 and found is None:
            self.members.leave_out(_not_tar(block))
        else:
            where = f"after {self._last!r}" if self._last else "the first"
            self.members.leave_out("damaged header", where)
        self._pending = _Pending()
        return found

    def _sound_headers(self, at: int) -> Iterator[int]:
        last = min(at + _SEARCHED, self._size)
        length = _FIRST_SEARCH
        while at < last:
            data = self._read(at, length)
            spot = data.find(b"ustar")  # at byte 257 of a header
            while spot >= 0:
                head = spot - 257
                if head >= 0 and head % BLOCK == 0 and parse_header(data[head : head + BLOCK]):
                    yield at + head
                spot = data.find(b"ustar", spot + 1)
            if len(data) < length:
                return
            at += length
            length = min(2 * length, _LARGEST_WINDOW)

    def _look_behind(self, at: int) -> None:
        """Say so where something follows the end mark, as in archives written one after another."""
        if any(self._windows.take(at, _BEHIND_END)):
            self.members.leave_out("bytes behind the end mark (archives joined by cat?)")


def _not_tar(block: bytes) -> str:
    for magic, name in _MAGIC.items():
        if block.startswith(magic):
            return f"compressed ({name}): decompress it, for members are read where they lie"
    return "not a tar archive"


def _shown(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
