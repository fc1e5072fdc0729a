"""File format of the ledger: columns, header, file names, and checksummed Arrow messages.

A file is an Arrow IPC stream, one row a micro-batch; record batches are appended whole, each with
a checksum, so that one cut off at its end is readable up to the last whole one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import xxhash

from factory.errors import CacheError

# Raised when a reader of before could not make sense of a file.
VERSION = 1
SUFFIX = ".arrows"
_ABOUT = b"factory.ledger"

REPLACED = pa.struct(
    [
        pa.field("place", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("substitute", pa.int64()),
        pa.field("substitute_key", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("global_step", pa.int64(), nullable=False),  # all steps count from 0
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("micro", pa.int16(), nullable=False),
        pa.field("backend", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        # 64 bits, since numbers in a stream have no end; compression takes the zeros away.
        pa.field("rows", pa.list_(pa.int64()), nullable=False),
        # Of streams only, whose rows say nothing by themselves.
        pa.field("keys", pa.list_(pa.string())),
        pa.field("replaced", pa.list_(REPLACED)),
    ]
)


@dataclass(frozen=True)
class LedgerHeader:
    """What one file's steps are steps of.

    Attributes:
        rank: The process that wrote it, from 0.
        ranks: Number of processes.
        micros: Micro-batches of an optimizer step.
        context_parallel: Consecutive ranks that work on the same samples.
        fingerprint: Fingerprint of the plan.
        seed: Seed of the plan.
        identities: What each backend's rows stand for, by its name.
        streams: Names of the backends whose keys are recorded.
        started: When the file was begun, nanoseconds since 1970; of two that hold a step, the
            later one counts.
    """

    rank: int = 0
    ranks: int = 1
    micros: int = 1
    fingerprint: str = ""
    seed: int = 0
    identities: Mapping[str, str] = field(default_factory=dict)
    streams: tuple[str, ...] = ()
    started: int = 0
    context_parallel: int = 1

    @property
    def shares(self) -> int:
        """How many shares a batch is cut into, before it is cut into micro-batches."""
        return self.ranks // self.context_parallel

    def schema(self) -> pa.Schema:
        """Return the schema of a file, with this in its metadata."""
        text = json.dumps({"version": VERSION, **asdict(self)})
        return SCHEMA.with_metadata({_ABOUT: text.encode()})

    @classmethod
    def of(cls, schema: pa.Schema, file: Path) -> "LedgerHeader":
        """Return what a file's schema says.

        Raises:
            CacheError: It is of no ledger, or of a later version than is known here.
        """
        text = (schema.metadata or {}).get(_ABOUT)
        if text is None:
            raise CacheError(f"{file} is no file of a ledger; move it out of the folder")
        try:
            values = json.loads(text)
            version = values.pop("version", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise _damaged(file) from error
        if version != VERSION:
            raise CacheError(
                f"{file} has version {version} of the ledger's format, and version {VERSION} is "
                "known here; read it with the release that wrote it"
            )
        try:
            found = cls(**{**values, "streams": tuple(values["streams"])})
        except (KeyError, TypeError) as error:
            raise _damaged(file) from error
        numbers = (found.rank, found.ranks, found.micros, found.context_parallel, found.started)
        if not schema.equals(SCHEMA) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _damaged(file)
        if not found.ranks >= found.context_parallel > 0 or found.rank >= found.ranks:
            raise _damaged(file)
        return found


def _damaged(file: Path) -> CacheError:
    return CacheError(f"{file} is damaged: what it says of itself; move it out of the folder")


def file_name(first_step: int, about: LedgerHeader, attempt: int) -> str:
    """Return a file's name; steps count from 1 in it, as people count.

    Args:
        first_step: The first global step it holds, from 0.
        about: Who writes it.
        attempt: How many files of that name there are already.
    """
    again = f"-again{attempt}" if attempt else ""
    who = f"rank{about.rank:05d}-of-{about.ranks:05d}"
    return f"step{first_step + 1:09d}-{who}{again}{SUFFIX}"


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
