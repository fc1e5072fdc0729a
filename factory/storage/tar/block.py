"""What does one header of a tar archive say?"""

from dataclasses import dataclass

# Headers and data come in blocks of this many bytes, by the format.
BLOCK = 512
# Of the two dialects; in the older one the field of the name's start holds other things.
_POSIX = b"ustar\0"
# Decimal digits of a record's own length or of a size: beyond them lies no file.
_MOST_DIGITS = 20


class PaxError(Exception):
    """Records of an extended header that cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Header:
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


def parse_header(block: bytes) -> Header | None:
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
    return Header(name, block[156:157], size, bool(block[482]))


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
