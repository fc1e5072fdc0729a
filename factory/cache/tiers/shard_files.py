"""Published files of a cache: mapped where they are local, copied nearer where not."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from factory.cache.format.compression import SUFFIX, plain_name, unpacked
from factory.cache.format.safetensors_file import Bytes, DamagedError
from factory.cache.tiers.local_copy import ByteRange, FileCopy, MemoryCopy, ReadRanges, WholeFile
from factory.cache.tiers.mapped_file import extent_of, file_bytes, mapped_file, willneed
from factory.cache.tiers.tier import Tier
from factory.errors import ObjectNotFoundError, StorageError
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import Put, Storage
from factory.storage.local import LocalStorage

# Small files fetched at once: enough to hide a server's latency, few enough for any server.
_CONNECTIONS = 16
# Asked of the disk before a large file's header is touched: a page, which is what all but headers
# of very many fields take. Touched unasked it would come with what the system reads around it, up
# to megabytes of rows that nobody may want.
_HEADER = 4096


@dataclass(eq=False)
class PublishedFiles:
    """The files of one folder: mapped where they are local, copied nearer where not.

    Files are published once under names that never come again, so a copy is never out of
    date.

    Attributes:
        storage: Where they are published.
        folder: Folder in the storage, without a slash at its ends.
        mirror: Local folder that small remote files are copied to whole; None keeps them in
            memory.
        tiers: Where large files are copied to, the nearest first.
    """

    storage: Storage
    folder: str
    mirror: str | None = None
    tiers: Sequence[Tier] = field(default=())

    def key(self, name: str) -> str:
        """Return a file's key in the storage."""
        return f"{self.folder}/{name}"

    def listed(self) -> dict[str, ObjectInfo]:
        """Return all files by name; none if the folder does not exist.

        Hidden ones are left out: no file of a cache is, and macOS puts some into any folder.
        """
        start = len(self.folder) + 1
        try:
            found = {info.key[start:]: info for info in self.storage.objects(self.folder)}
            return {name: info for name, info in found.items() if not name.startswith(".")}
        except ObjectNotFoundError:
            return {}

    def copies(self, name: str, size: int, plain_size: int) -> Iterator[FileCopy]:
        """Yield where a large file can be read from, the nearest first; the last has room.

        Args:
            name: The file's name; of one that says it is packed, copies are plain.
            size: Its bytes, as published.
            plain_size: Its bytes unpacked; the same if it is not packed.

        Raises:
            ObjectNotFoundError: There is no such file.
            DamagedError: It is not of the size given.
            StorageError: It cannot be read.
        """
        path = self.storage.local_path(self.key(name))
        packed = name.endswith(SUFFIX)
        mappable = path is not None and not packed
        # Of what can be mapped where it lies, no copy on another disk is of use.
        tiers = [tier for tier in self.tiers if tier.volatile or not mappable]
        published = partial(self._read_packed if packed else self._read_published, name, size)
        if packed:
            published = partial(published, plain_size)
        for number, tier in enumerate(tiers):
            read = partial(self._read_below, tiers[number + 1 :], name, plain_size, published)
            copy = tier.open(plain_name(name), plain_size, read, self.where(name), whole=packed)
            if copy is not None:
                yield copy
        if path is not None and mappable:
            extent = extent_of(path)
            data = self._mapped(path, name, size)
            willneed(data.ctypes.data, min(size, _HEADER))
            yield WholeFile(data, extent)
        else:
            # Where there is no tier at all, what was used is held in memory.
            kept = not tiers
            yield MemoryCopy(plain_size, published, self.where(name), kept=kept, whole=packed)

    def data(self, name: str, size: int = UNKNOWN_SIZE, plain_size: int = UNKNOWN_SIZE) -> Bytes:
        """Return a file's bytes, uint8 [bytes], mapped if they are many; not to be written to.

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
            return unpacked(self.published(name, size), plain_size, self.where(name))
        path = self.storage.local_path(self.key(name))
        if path is None and self.mirror is not None:
            path = self._mirrored(name, size, LocalStorage(root=self.mirror))
        if path is not None:
            data = file_bytes(path)
            self._check_size(name, data.size, size)
            return data
        return np.frombuffer(self.published(name, size), np.uint8)

    def published(self, name: str, size: int = UNKNOWN_SIZE) -> bytes:
        """Return a file's bytes as they were published, packed or not, read where they lie.

        Raises:
            ObjectNotFoundError: There is no such file.
            DamagedError: It is not of the size given.
            StorageError: It cannot be read.
        """
        found = self.storage.read(self.key(name))
        self._check_size(name, len(found), size)
        return found

    def all_data(self, infos: list[ObjectInfo]) -> list[Bytes | StorageError | DamagedError]:
        """Return the bytes of many small files, or what went wrong with each."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self._attempt, infos))

    def where(self, name: str) -> str:
        """Return what to call a file so that it can be found."""
        root, mark, server = self.storage.identity.partition("?")
        return f"{root.rstrip('/')}/{self.key(name)}{mark}{server}"

    @cached_property
    def copied(self) -> bool:
        """Whether what is read are copies of what is published: it is far, or comes to memory."""
        memory = any(tier.volatile for tier in self.tiers)
        return memory or self.storage.local_path(self.folder) is None

    def delete(self, name: str) -> None:
        """Remove a file and its local copies."""
        self.storage.delete(self.key(name))
        self.forget(name)
        self.forget_mirrored(name)

    def forget_mirrored(self, name: str) -> bool:
        """Remove the copy of a small file; False if none is made of it."""
        if self.mirror is None or self.storage.local_path(self.key(name)) is not None:
            return False
        LocalStorage(root=self.mirror).delete(name)
        return True

    def forget(self, name: str) -> None:
        """Remove the copies of a large file."""
        for tier in self.tiers:
            tier.drop(plain_name(name))

    def on_need(self, let_go: Callable[[str], None]) -> None:
        """Say who can let go of a copy when its room is needed."""
        for tier in self.tiers:
            tier.let_go = let_go

    def expect(self, plan: int, now: int) -> None:
        """Say which plan is followed, and the step it has come to."""
        for tier in self.tiers:
            tier.expect(plan, now)

    def close(self) -> None:
        """End the use of the tiers."""
        for tier in self.tiers:
            tier.close()

    def _attempt(self, info: ObjectInfo) -> Bytes | StorageError | DamagedError:
        try:
            return self.data(info.key[len(self.folder) + 1 :], info.size)
        except (StorageError, DamagedError) as error:
            return error

    def _mirrored(self, name: str, size: int, mirror: LocalStorage) -> Path:
        """Return a file's local copy; fetch it if there is none of the right size."""
        if not mirror.exists(name) or mirror.head(name).size not in (size, UNKNOWN_SIZE):
            fetched = self.storage.read(self.key(name))
            self._check_size(name, len(fetched), size)
            # Another process may do the same: both write equal bytes, and the move is whole.
            mirror.write(name, fetched)
        return mirror.local_path(name)

    def _mapped(self, path: Path, name: str, size: int) -> Bytes:
        data = mapped_file(path)
        self._check_size(name, data.size, size)
        return data

    def _read_published(
        self, name: str, size: int, ranges: Sequence[ByteRange], put: Put
    ) -> Generator[int | StorageError, None, None]:
        del size
        key = self.key(name)
        return self.storage.read_to([(key, start, length) for start, length in ranges], put)

    def _read_packed(
        self, name: str, size: int, plain_size: int, ranges: Sequence[ByteRange], put: Put
    ) -> Generator[int | StorageError, None, None]:
        """Read a packed file whole, unpack it and cut ranges from it."""
        data = unpacked(self.published(name, size), plain_size, self.where(name))
        yield from _put_from(data, ranges, put)

    def _read_below(
        self,
        tiers: Sequence[Tier],
        name: str,
        plain_size: int,
        published: ReadRanges,
        ranges: Sequence[ByteRange],
        put: Put,
    ) -> Generator[int | StorageError, None, None]:
        """Read ranges from the first of some tiers that has room, or from the storage."""
        packed = name.endswith(SUFFIX)
        for number, tier in enumerate(tiers):
            read = partial(self._read_below, tiers[number + 1 :], name, plain_size, published)
            copy = tier.open(plain_name(name), plain_size, read, self.where(name), whole=packed)
            if copy is not None and copy.fetch(np.array(ranges, np.int64)):
                yield from _put_from(copy.data, ranges, put)
                return
        yield from published(ranges, put)

    def _check_size(self, name: str, found: int, size: int) -> None:
        if size not in (UNKNOWN_SIZE, found):
            raise DamagedError(f"{self.where(name)} is {found} bytes, and {size} were published")


def _put_from(data: Bytes, ranges: Sequence[ByteRange], put: Put) -> Generator[int, None, None]:
    """Hand ranges of what is there on."""
    for number, (start, length) in enumerate(ranges):
        piece = data[start : start + length].data
        put(number, 0, [piece])
        yield len(piece)
