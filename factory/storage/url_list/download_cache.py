"""Download cache: files fetched from web servers once, within limits, and kept on disk."""

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import ObjectNotFoundError, StorageError
from factory.storage.event_loop import TransferProgress, run
from factory.storage.keys import slice_bytes
from factory.storage.local import LocalStorage
from factory.storage.url_list.web_client import WebClient, WebLimits, body_of

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

# What eviction leaves of the limit, so that it does not run again at the next file.
_LEAVE = 0.9
# The folder is counted anew after this share of the limit: other processes fill it too.
_RECOUNT = 0.05

_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class DownloadLimits:
    """How much is kept of downloads, and where.

    Attributes:
        cache_dir: Folder for the files.
        file_bytes: Largest file.
        cache_bytes: Size of the folder beyond which the least recently used files go.
    """

    cache_dir: str
    file_bytes: int
    cache_bytes: int


@dataclass
class _Flight:
    """A download under way and how many wait for it; when none does, it is cancelled."""

    task: "asyncio.Task[bytes]"
    waiting: int = field(default=0)


class Downloads:
    """The files of one cache folder, fetched when first read; all methods are thread-safe."""

    def __init__(self, limits: DownloadLimits, web: WebLimits) -> None:
        """Keep the limits; sockets open on use."""
        self._limits = limits
        self._client = WebClient(web)
        self._cache = LocalStorage(limits.cache_dir)
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}  # touched by the loop only
        self._in_use: Counter[str] = Counter()
        self._counted = 0
        self._since_count: int | None = None

    def read(self, name: str, url: str, where: str, start: int, length: int | None) -> bytes:
        """Return a span of a file, downloading the file first if it is not in the folder.

        Args:
            name: The file's name in the folder.
            url: Absolute http(s) URL.
            where: What errors call the file.
            start: First byte.
            length: Number of bytes; None for all that follow.

        Raises:
            ObjectNotFoundError: The server says there is no such file.
            StorageUnavailableError: Every try failed in a way that may pass.
            StorageError: The answer is no file within the limits.
        """
        with self._held(name):
            found = self.cached(name, start, length)
            return run(self.fetched(name, url, where, start, length)) if found is None else found

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """Keep eviction away from a file while it is written and read."""
        with self._lock:
            self._in_use[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[name] -= 1
                if not self._in_use[name]:
                    del self._in_use[name]

    def cached(self, name: str, start: int, length: int | None) -> bytes | None:
        """Return a span of a file, or None if the file is not in the folder."""
        try:
            data = self._cache.read(name, start, length)
        except ObjectNotFoundError:
            return None
        with suppress(OSError):  # another process may just have removed it
            os.utime(self._cache.local_path(name))  # the clock of least recent use
        return data

    async def fetched(
        self, name: str, url: str, where: str, start: int, length: int | None
    ) -> bytes:
        """Return a span of a file that is downloaded, or just being; for the loop of `run`."""
        flight = self._flights.get(name)
        if flight is None:
            flight = _Flight(asyncio.ensure_future(self._fly(name, url, where)))
            self._flights[name] = flight
        flight.waiting += 1
        try:
            return slice_bytes(await asyncio.shield(flight.task), start, length)
        except StorageError as error:
            # Its own instance for each reader: notes and tracebacks must not pile up.
            raise type(error)(*error.args) from error
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._flights.pop(name, None)
                flight.task.cancel()

    async def _fly(self, name: str, url: str, where: str) -> bytes:
        with self._held(name):
            # Once more: a flight may have landed between the look into the folder and now.
            body = await asyncio.to_thread(self.cached, name, 0, None)
            if body is None:
                body = await self._download(url, where)
                await asyncio.to_thread(self._keep, name, body)
            return body

    def _keep(self, name: str, body: bytes) -> None:
        self._cache.write(name, body)
        self._make_room(len(body))

    async def _download(self, url: str, where: str) -> bytes:
        """Download a file, in as many tries as it may take."""
        limit = self._limits.file_bytes

        async def take(response: "aiohttp.ClientResponse", progress: TransferProgress) -> bytes:
            if response.content_type in _HTML:
                raise StorageError(f"{where}: got HTML instead of a picture")
            too_large = StorageError(
                f"{where} is larger than {limit / 2**20:g} MiB; "
                "raise storage.max_file_mb to allow it"
            )
            body = await body_of(response, progress, limit, too_large)
            if not body:
                raise StorageError(f"{where}: the server sent an empty file")
            return bytes(body)

        return await self._client.ask(url, where, take)

    def _make_room(self, added: int) -> None:
        """Count a new file; when the folder is over its limit, remove the oldest ones."""
        limit = self._limits.cache_bytes
        with self._lock:
            recent = self._since_count
            self._since_count = None if recent is None else recent + added
            if recent is not None and recent + added <= limit * _RECOUNT:
                total = self._counted + recent + added
                if total <= limit:
                    return
            files = _by_age(Path(self._limits.cache_dir))
            total = sum(size for _, size, _ in files)
            if total > limit:
                total = self._evict(files, total, int(limit * _LEAVE))
            self._counted, self._since_count = total, 0

    def _evict(self, files: list[tuple[int, int, str]], total: int, target: int) -> int:
        before = total
        for _, size, name in files:
            if total <= target:
                break
            if name not in self._in_use:
                self._cache.delete(name)
                total -= size
        logger.info("%s: removed %d bytes of old downloads", self._limits.cache_dir, before - total)
        return total

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()


def _by_age(folder: Path) -> list[tuple[int, int, str]]:
    """Return (last use in ns, bytes, name) of every file, the least recently used first."""
    # The listing's etag starts with the time of change, which every use renews.
    return sorted(
        (int(info.etag.partition("-")[0], 16), info.size, info.key)
        for info in LocalStorage(str(folder)).objects()
    )
