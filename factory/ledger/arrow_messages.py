"""Messages of an Arrow stream, each with a checksum that is verified before Arrow parses it.

A message is eight bytes, metadata, and a body. Its metadata may be longer than what Arrow reads of
it: there, at its end, lie the length of the body and a checksum. So a file is an Arrow stream like
any other for whoever knows nothing of this.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

import xxhash

_CONTINUES = b"\xff\xff\xff\xff"
_PREFIX = 8
# At the end of sealed metadata: this, the body's length in eight bytes, and the checksum.
_SEAL = b"\0sealed\1"
_LENGTHS = 8 + 16
_SEALED = len(_SEAL) + _LENGTHS
# The mark of a stream's end.
END = _CONTINUES + bytes(4)
# The first messages are looked at for a seal, in case that of one is damaged.
_FIRST = 2**20
# Arrow fills messages up with fewer zeros than this.
_ZEROS = 16


class DamagedMessageError(Exception):
    """A message that is whole and not what was written.

    Attributes:
        at: Where it begins in the file, bytes.
    """

    def __init__(self, at: int) -> None:
        """Keep the place."""
        super().__init__(f"the message at byte {at} does not match its checksum")
        self.at = at


def seal(message: memoryview) -> bytes:
    """Return a message, with its body if it has one, with a checksum in its metadata."""
    start = _PREFIX + int.from_bytes(message[4:_PREFIX], "little")
    prefix = _CONTINUES + (start - _PREFIX + _SEALED).to_bytes(4, "little")
    body = message[start:]
    head = b"".join([prefix, message[_PREFIX:start], _SEAL, len(body).to_bytes(8, "little")])
    return b"".join([head, _digest(head, body), body])


def split_schema(made: memoryview) -> tuple[memoryview, memoryview]:
    """Return the first message of a stream, which has no body, and what follows."""
    end = _PREFIX + int.from_bytes(made[4:_PREFIX], "little")
    return made[:end], made[end:]


def is_sealed(file: BinaryIO) -> bool:
    """Tell whether the messages of a file have checksums, and go back to its beginning."""
    found = _SEAL in file.read(_FIRST)
    file.seek(0)
    return found


def sealed_messages(file: BinaryIO) -> Iterator[bytes]:
    """Yield the messages of a file of which all have checksums.

    What a process that was killed, or a machine that lost its power, leaves at the end is left out:
    a part of a message, and zeros.

    Raises:
        DamagedMessageError: One is not what was written.
        OSError: The file cannot be read.
    """
    at, size = 0, os.fstat(file.fileno()).st_size
    while (message := _message(file, size - at)) is not None:
        yield message
        at += len(message)
    file.seek(at)
    rest = file.read()
    seals = rest.count(_SEAL)
    # A file that was ended was not cut; and one that was, is so within its last message.
    ended = rest.endswith(END) and rest != END
    if not ended and (seals == 0 or (seals == 1 and _cut(rest))):
        return
    raise DamagedMessageError(at)


def _message(file: BinaryIO, left: int) -> bytes | None:
    """Return a sound message; None where there is none."""
    prefix = file.read(_PREFIX)
    length = int.from_bytes(prefix[4:], "little")
    if prefix[:4] != _CONTINUES or not _SEALED <= length <= left - _PREFIX:
        return None
    metadata = file.read(length)
    found, size = metadata[-_SEALED:-_LENGTHS], int.from_bytes(metadata[-_LENGTHS:-16], "little")
    if found != _SEAL or size > left - _PREFIX - length:
        return None
    body = file.read(size)
    sound = _digest(prefix + metadata[:-16], body) == metadata[-16:]
    return prefix + metadata + body if sound else None


def _cut(rest: bytes) -> bool:
    """Tell whether the last message is one that was not written to its end."""
    start = _PREFIX + int.from_bytes(rest[4:_PREFIX], "little")
    size = int.from_bytes(rest[start - _LENGTHS : start - 16], "little")
    return len(rest) < start + size or not rest[-_ZEROS:].strip(b"\0")


def _digest(head: bytes, body: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_128(head)
    state.update(body)
    digest: bytes = state.digest()
    return digest
