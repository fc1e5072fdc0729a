"""Tar shards that this process has opened, and reads from them."""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import ObjectNotFoundError, StorageError
from factory.metrics.stages import progress
from factory.records import ObjectInfo
from factory.storage.base import Storage
from factory.storage.mapped_length import Extent
from factory.storage.tar.index import MemberIndex, ShardId
from factory.storage.tar.tar_headers import read_members

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

# Local shards kept open at once: far below the 1024 files a process may usually hold.
_OPEN_FILES = 128
# A shard that is replaced more often than this while one read lasts is not at rest.
_TRIES = 10

_Signature = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class TarShard:
    """One state of a shard.

    Attributes:
        key: Its key in the storage it lies in.
        etag: Changes whenever its content does.
        index: Where its members lie.
        path: Where it lies on a mounted file system, or None.
        signature: What `path` showed then: inode, size, time of change.
    """

    key: str
    etag: str
    index: MemberIndex
    path: Path | None
    signature: _Signature | None

    @property
    def is_current(self) -> bool:
        """Whether the file is still the one the index describes; always so for a remote one."""
        return self.path is None or _signature(self.path) == self.signature


class _File:
    """An open file; closed when the last thread that reads from it drops it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.signature = _signature_of(os.fstat(self._descriptor))

    def read(self, start: int, length: int) -> bytes:
        # Not through a mapping: where a file shrinks, that would kill the process.
        data = os.pread(self._descriptor, length, start)
        while data and len(data) < length:  # one call gives 2 GiB at most
            more = os.pread(self._descriptor, length - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Shards:
    """The shards of one storage, opened on first use; thread-safe."""

    def __init__(
        self, storage: Storage, index: Storage | None, index_prefix: str, connections: int
    ) -> None:
        """Keep where shards and their indexes lie; nothing is read yet."""
        self._storage = storage
        self._index = index
        self._index_prefix = index_prefix
        self._connections = connections
        self._shards: dict[str, TarShard] = {}
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._index_is_writable = True

    def open_all(self, infos: Sequence[ObjectInfo]) -> list[TarShard]:
        """Return each shard in the state that is listed now, in their order; many open at once."""
        found = []
        pool = ThreadPoolExecutor(self._connections, thread_name_prefix="tar-index")
        try:
            with progress("tar shards", len(infos), "shards") as advance:
                for shard in pool.map(self.opened, infos):
                    found.append(shard)
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def current(self, key: str) -> TarShard:
        """Return a shard as known, after a look whether a local one changed.

        Raises:
            ObjectNotFoundError: There is no such shard.
        """
        known = self._shards.get(key)
        if known is not None and known.is_current:
            return known
        return self.opened(self._storage.head(key))

    def current_or_none(self, key: str) -> TarShard | None:
        """Return a shard as `current` does; None where it cannot be opened."""
        try:
            return self.current(key)
        except StorageError:
            return None

    def opened(self, info: ObjectInfo) -> TarShard:
        """Return a shard in the state that was listed, its index read or built."""
        with self._lock:
            opening = self._opening.setdefault(info.key, threading.Lock())
        with opening:
            known = self._shards.get(info.key)
            if known is None or known.etag != info.etag or not known.is_current:
                self._shards[info.key] = known = self._open(info)
            return known

    def _open(self, info: ObjectInfo) -> TarShard:
        """Read or build a shard's index, and make sure that it is of what lies there now."""
        for _ in range(_TRIES):
            path = self._storage.local_path(info.key)
            signature = None if path is None else _signature(path)
            identity = ShardId(self._storage.identity, info.key, info.etag, info.size)
            stored = self._stored(identity)
            index = self._built(identity) if stored is None else stored
            # Of a remote shard whose index is stored the listing is trusted: one request less.
            remote = path is None and stored is not None
            now = info if remote else self._storage.head(info.key)
            if now.etag == info.etag:
                if stored is None:
                    self._keep(identity, index)
                return TarShard(info.key, info.etag, index, path, signature)
            info = now
        raise self._restless(info.key)

    def _restless(self, key: str) -> StorageError:
        return StorageError(
            f"shard {key!r} in {self._storage.identity} changes while it is read; let its "
            "writer finish, and start again"
        )

    def _built(self, shard: ShardId) -> MemberIndex:
        """Walk over a shard's headers."""

        def read(start: int, length: int) -> bytes:
            return self._storage.read(shard.key, start, length)

        return MemberIndex.of(read_members(read, shard.size))

    def _stored(self, shard: ShardId) -> MemberIndex | None:
        """Return the index of an earlier run, if there is one and it is sound."""
        import pyarrow as pa

        if self._index is None:
            return None
        key = f"{self._index_prefix}/{shard.file_name}"
        try:
            path = self._index.local_path(key)
            if path is None:
                return MemberIndex.unpack(pa.py_buffer(self._index.read(key)), shard)
            extent = Extent.of(path)
            return MemberIndex.unpack(_mapped(path), shard, extent)
        except FileNotFoundError:  # ours is one too
            return None
        except (StorageError, OSError) as error:
            logger.warning("the index of %s is built anew: %s %s", shard.key, key, error)
        return None

    def _keep(self, shard: ShardId, index: MemberIndex) -> None:
        """Store an index; where that is not possible, say so once and go on without."""
        if self._index is None or not self._index_is_writable:
            return
        try:
            self._index.write(f"{self._index_prefix}/{shard.file_name}", index.pack(shard))
        except StorageError as error:
            self._index_is_writable = False
            logger.warning("indexes of tar shards are not kept for the next run: %s", error)

    def read(self, key: str, name: str, start: int, length: int | None) -> bytes:
        """Return a member's bytes, or a span of them.

        Raises:
            ObjectNotFoundError: There is no such shard or member.
            StorageError: The shard keeps changing.
        """
        for _ in range(_TRIES):
            shard = self.current(key)
            place = shard.index.find(name)
            if place is None:  # a remote shard may have been written anew since
                shard = self.opened(self._storage.head(key))
                place = shard.index.find(name)
            if place is None:
                raise ObjectNotFoundError(f"shard {key!r} has no member {name!r}")
            left = max(0, place[1] - start)
            wanted = left if length is None else min(left, length)
            data = self._bytes(shard, place[0] + start, wanted)
            if data is not None and len(data) == wanted:
                return data
            self._shards.pop(key, None)
        raise self._restless(key)

    def _bytes(self, shard: TarShard, start: int, length: int) -> bytes | None:
        """Return a span of a shard; None if another file has taken its place."""
        if not length:
            return b""
        if shard.path is None:
            return self._storage.read(shard.key, start, length)
        try:
            file = self._file(shard.path, shard.signature)
            return None if file is None else file.read(start, length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {shard.path}: {error.strerror}") from error

    def _file(self, path: Path, signature: _Signature | None) -> _File | None:
        with self._lock:
            file = self._files.pop(path, None)
            if file is None or file.signature != signature:
                file = _File(path)
            self._files[path] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file if file.signature == signature else None


def _signature(path: Path) -> _Signature | None:
    with suppress(OSError):
        return _signature_of(os.stat(path))  # noqa: PTH116 - a third of Path.stat's time
    return None


def _signature_of(found: os.stat_result) -> _Signature:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(path: Path) -> "pa.Buffer":
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except pa.ArrowInvalid:  # an empty file cannot be mapped
        return pa.py_buffer(b"")
