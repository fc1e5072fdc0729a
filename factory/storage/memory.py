"""Storage in this process's memory, for tests and short experiments."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory.errors import ObjectNotFoundError, StorageError
from factory.records import ObjectInfo
from factory.storage.base import Storage, safe_key
from factory.storage.keys import check_span, is_listed, safe_prefix

if TYPE_CHECKING:
    from fsspec.implementations.memory import MemoryFileSystem

# Of a content hash: enough that two contents never meet, short enough to print.
_ETAG_BYTES = 16


@dataclass(frozen=True)
class MemoryStorage(Storage):
    """Objects in fsspec's memory file system, below a folder of their own.

    Storages of one name share their objects, also with `fsspec` paths "memory://NAME/KEY".
    They live in one process: a worker process starts with none.

    Attributes:
        name: Name of the memory area; equal names share their contents. One path part.
    """

    name: str = "memory"

    def __post_init__(self) -> None:
        """Refuse a name that is not one path part."""
        if "/" in safe_key(self.name):
            raise ValueError(f"storage.name={self.name!r} must be one word without '/'")

    @property
    def identity(self) -> str:
        """The namespace as "memory://" and its name."""
        return f"memory://{self.name}"

    def _path(self, key: str) -> str:
        return f"/{self.name}/{safe_key(key)}"

    def _info(self, key: str, data: bytes) -> ObjectInfo:
        # A hash, not a time: two writes within one clock tick must differ.
        digest = hashlib.blake2b(data, digest_size=_ETAG_BYTES).hexdigest()
        return ObjectInfo(key, len(data), digest)

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a prefix; the root itself always exists.

        Raises:
            ObjectNotFoundError: Nothing lies below the prefix.
        """
        folder = safe_prefix(prefix)
        root = f"/{self.name}/"
        start = root + (folder + "/" if folder else "")
        found = [path for path in list(_filesystem().store) if path.startswith(start)]
        if folder and not found:
            raise ObjectNotFoundError(f"nothing lies below {self.identity}/{folder}")
        for path in found:
            key = path.removeprefix(root)
            data = self._bytes(path)
            if data is not None and is_listed(key):
                yield self._info(key, data)

    def _bytes(self, path: str) -> bytes | None:
        # Not through `open`, which hands every thread the same file position.
        try:
            return bytes(_filesystem().cat_file(path))
        except FileNotFoundError:
            return None

    def _existing(self, key: str) -> bytes:
        data = self._bytes(self._path(key))
        if data is None:
            raise ObjectNotFoundError(f"{self.identity}/{key} does not exist")
        return data

    def head(self, key: str) -> ObjectInfo:
        """Describe one object; the etag is a hash of its bytes.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        return self._info(safe_key(key), self._existing(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or a span of them.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        check_span(start, length)
        end = None if length is None else start + length
        return self._existing(key)[start:end]

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store a copy of the bytes under the key.

        Raises:
            StorageError: A part of the key's path is an object already.
        """
        try:
            _filesystem().pipe_file(self._path(key), bytes(data))
        except OSError as error:
            raise StorageError(
                f"cannot write {self.identity}/{key}: a part of its path is an object"
            ) from error

    def delete(self, key: str) -> None:
        """Forget an object; an absent one is no error."""
        _filesystem().store.pop(self._path(key), None)

    def check(self, *, write: bool = False) -> None:
        """Do nothing: memory is always there."""


def _filesystem() -> "MemoryFileSystem":
    from fsspec.implementations.memory import MemoryFileSystem

    return MemoryFileSystem()
