"""How do the bytes of a published file reach this process?"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from factory.cache.container import Bytes, DamagedError
from factory.cache.mapping import mapped_file
from factory.cache.packing import SUFFIX, plain_name, unpacked
from factory.errors import ObjectNotFoundError, StorageError
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import Storage
from factory.storage.local import LocalStorage

# Small files fetched at once: enough to hide a server's latency, few enough for any server.
_CONNECTIONS = 16


@dataclass(eq=False)
class Files:
    """The files of one folder: mapped where they are local, mirrored or held where not.

    Files are published once under names that never come again, so a mirrored one is never
    out of date.

    Attributes:
        storage: Where they are published.
        folder: Folder in the storage, without a slash at its ends.
        mirror: Local folder that remote files are copied to; None keeps them in memory.
    """

    storage: Storage
    folder: str
    mirror: str | None

    def key(self, name: str) -> str:
        """Return a file's key in the storage."""
        return f"{self.folder}/{name}"

    def listed(self) -> dict[str, ObjectInfo]:
        """Return all files by name; none if the folder does not exist."""
        start = len(self.folder) + 1
        try:
            return {info.key[start:]: info for info in self.storage.objects(self.folder)}
        except ObjectNotFoundError:
            return {}

    def data(self, name: str, size: int = UNKNOWN_SIZE, plain_size: int = UNKNOWN_SIZE) -> Bytes:
        """Return a file's bytes, uint8 [bytes], mapped if possible; not to be written to.

        Args:
            name: The file's name; one that says it is packed is unpacked.
            size: Bytes that were published.
            plain_size: Bytes of a packed file unpacked, which must then be given.

        Raises:
            ObjectNotFoundError: There is no such file.
            DamagedError: It is not of the size given.
            StorageError: It cannot be read.
        """
        if name.endswith(SUFFIX):
            return self._plain(name, size, plain_size)
        path = self.storage.local_path(self.key(name))
        if path is None and self.mirror is not None:
            path = self._mirrored(name, size, LocalStorage(root=self.mirror))
        if path is not None:
            found = mapped_file(path)
        else:
            found = np.frombuffer(self.storage.read(self.key(name)), np.uint8)
        self._check_size(name, found.size, size)
        return found

    def all_data(self, infos: list[ObjectInfo]) -> list[Bytes | StorageError | DamagedError]:
        """Return the bytes of many small files, or what went wrong with each."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self._attempt, infos))

    def where(self, name: str) -> str:
        """Return what to call a file so that it can be found."""
        return f"{self.storage.identity.rstrip('/')}/{self.key(name)}"

    def copy_of(self, name: str) -> Path | None:
        """Return where a remote file's local copy lies, if it has one."""
        lies_plain = self.storage.local_path(self.key(name)) is not None
        if self.mirror is None or (lies_plain and not name.endswith(SUFFIX)):
            return None
        path = LocalStorage(root=self.mirror).local_path(plain_name(name))
        return path if path.exists() else None

    def delete(self, name: str) -> None:
        """Remove a file and its local copy."""
        self.storage.delete(self.key(name))
        if self.mirror is not None and self.copy_of(name) is not None:
            LocalStorage(root=self.mirror).delete(plain_name(name))

    def _attempt(self, info: ObjectInfo) -> Bytes | StorageError | DamagedError:
        try:
            return self.data(info.key[len(self.folder) + 1 :], info.size)
        except (StorageError, DamagedError) as error:
            return error

    def _plain(self, name: str, size: int, plain_size: int) -> Bytes:
        """Return a packed file unpacked, mapped from its local copy if there may be one."""
        mirror = None if self.mirror is None else LocalStorage(root=self.mirror)
        copy = plain_name(name)
        if mirror is None or not mirror.exists(copy) or mirror.head(copy).size != plain_size:
            data = self.storage.read(self.key(name))
            self._check_size(name, len(data), size)
            whole = unpacked(data, plain_size, self.where(name))
            if mirror is None:
                return whole
            mirror.write(copy, whole.data)
        return mapped_file(mirror.local_path(copy))

    def _mirrored(self, name: str, size: int, mirror: LocalStorage) -> Path:
        """Return a file's local copy; fetch it if there is none of the right size."""
        if not mirror.exists(name) or mirror.head(name).size not in (size, UNKNOWN_SIZE):
            fetched = self.storage.read(self.key(name))
            self._check_size(name, len(fetched), size)
            # Another process may do the same: both write equal bytes, and the move is whole.
            mirror.write(name, fetched)
        return mirror.local_path(name)

    def _check_size(self, name: str, found: int, size: int) -> None:
        if size not in (UNKNOWN_SIZE, found):
            raise DamagedError(f"{self.where(name)} is {found} bytes, and {size} were published")
