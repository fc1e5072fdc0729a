"""Arrow files with a checksum in front, for this project's own indexes.

Arrow's readers follow the offsets in a file wherever they lead, so that a flipped bit may end the
process. The checksum stands outside of what it covers, and is compared before Arrow sees a byte.
"""

import io
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from factory.errors import ContentMismatchError
from factory.storage.keys import temporary_name
from factory.storage.mapped_length import Extent

if TYPE_CHECKING:
    import pyarrow as pa

# Magic, checksum and padding: as long as Arrow aligns, so that a mapped table needs no copy.
HEAD = 64
# A file up to this size is read whole, in some 10 ms, and checked at each opening. What is in
# memory of the process's own cannot be cut short by others.
READ_WHOLE = 32 * 2**20
# Bytes hashed at once.
_PIECE = 2**20
# Beside a larger file: which one was found sound.
_FOUND_SOUND = ".sound"


def sealed(magic: bytes, table: "pa.Table") -> bytes:
    """Return a table as the bytes of a file; `magic` says what it is, in at most 48 bytes."""
    sink = io.BytesIO(bytes(HEAD))
    sink.seek(HEAD)
    _write(sink, magic, table.schema, table.to_batches())
    return sink.getvalue()


def unsealed(data: "pa.Buffer", magic: bytes) -> "pa.Table":
    """Return the table in a file's bytes, its columns views of them.

    Raises:
        ContentMismatchError: They are not what was written, or not of this magic.
        ArrowException: They are no Arrow file.
    """
    body = data.slice(min(HEAD, data.size))
    _compare(data.slice(0, min(HEAD, data.size)).to_pybytes(), magic, xxhash.xxh3_128(body))
    return _table(body)


def write_sealed(
    path: Path, magic: bytes, schema: "pa.Schema", batches: Iterable["pa.RecordBatch"]
) -> None:
    """Write a table to a file, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / temporary_name()
    try:
        with temporary.open("wb") as file:
            file.write(bytes(HEAD))
            _write(file, magic, schema, batches)
            file.flush()
            temporary.replace(path)
            status = os.fstat(file.fileno())  # the new name is a change, too
            if status.st_size > READ_WHOLE:
                _note_sound(path, status)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def open_sealed(path: Path, magic: bytes) -> tuple["pa.Table", Extent | None]:
    """Open what `write_sealed` wrote: a table in memory, or of a large file a memory map.

    A large file is read from end to end once, by whichever process comes first; as long as it is
    that same file, unchanged, it is only mapped. Its mark is no more than that: a file beside it.

    Returns:
        The table, and what is to be asked before a memory map is used.

    Raises:
        ContentMismatchError: The file is not what was written, or not of this magic.
        ArrowException: It is no Arrow file.
        OSError: It cannot be read.
    """
    import pyarrow as pa

    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if status.st_size <= READ_WHOLE:
            return unsealed(pa.py_buffer(file.readall()), magic), None
        if not _is_noted(path, status):
            head, state = file.read(HEAD), xxhash.xxh3_128()
            piece = bytearray(_PIECE)
            while count := file.readinto(piece):
                state.update(memoryview(piece)[:count])
            _compare(head, magic, state)
            _note_sound(path, status)
        elif not file.read(HEAD).startswith(magic):
            raise ContentMismatchError("is of another format")
        extent = Extent(str(path), status.st_ino, status.st_size)
        with pa.memory_map(str(path)) as mapped:
            if mapped.size() != extent.size or Extent.of(path) != extent:
                raise ContentMismatchError("was replaced while it was opened")
            return _table(mapped.read_buffer().slice(HEAD)), extent


class _Hashing(io.RawIOBase):
    """Passes on what is written, and hashes it."""

    def __init__(self, file: BinaryIO | io.BytesIO) -> None:
        self._file, self.state = file, xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.state.update(data)
        return self._file.write(data)


def _write(
    file: BinaryIO | io.BytesIO,
    magic: bytes,
    schema: "pa.Schema",
    batches: Iterable["pa.RecordBatch"],
) -> None:
    """Write batches behind the place of the head, then the head."""
    import pyarrow as pa

    sink = _Hashing(file)
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as out:
        for batch in batches:
            out.write_batch(batch)
    file.seek(0)
    file.write(_head(magic, sink.state))


def _head(magic: bytes, state: Any) -> bytes:
    digest: bytes = state.digest()
    return (magic + digest).ljust(HEAD, b"\0")


def _compare(head: bytes, magic: bytes, state: Any) -> None:
    if head != _head(magic, state):
        raise ContentMismatchError("does not match its checksum, or is of another version")


def _table(body: "pa.Buffer") -> "pa.Table":
    import pyarrow as pa

    return pa.ipc.open_file(body).read_all()


def _mark(path: Path) -> Path:
    return path.with_name(path.name + _FOUND_SOUND)


def _identity(status: os.stat_result) -> list[int]:
    """Return what tells one state of a file from all others; a change cannot set its own ctime."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_noted(path: Path, status: os.stat_result) -> bool:
    try:
        return bool(json.loads(_mark(path).read_bytes()) == _identity(status))
    except (OSError, ValueError):
        return False


def _note_sound(path: Path, status: os.stat_result) -> None:
    with suppress(OSError):  # then it is read from end to end each time
        _mark(path).write_text(json.dumps(_identity(status)))
