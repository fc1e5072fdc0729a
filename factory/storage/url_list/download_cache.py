"""Download cache: files fetched from web servers once, within limits, and kept on disk."""

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from factory.errors import ObjectNotFoundError, StorageError, StorageUnavailableError
from factory.storage.endpoint_limits import endpoint
from factory.storage.event_loop import TransferProgress, run, send_with_retries, without_own_retries
from factory.storage.keys import slice_bytes
from factory.storage.local import LocalStorage
from factory.storage.retry import ExhaustedError, Fault, RetryLimits, retry_after
from factory.storage.url_list.hosts import PrivateHost, admits_name, guarded_socket, visiting
from factory.untrusted_text import config_value

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

# What eviction leaves of the limit, so that it does not run again at the next file.
_LEAVE = 0.9
# The folder is counted anew after this share of the limit: other processes fill it too.
_RECOUNT = 0.05

_HTML = ("text/html", "application/xhtml+xml")
# Answers that another try may better: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Answers that ask for fewer requests.
_THROTTLING = (429, 503)


@dataclass(frozen=True)
class DownloadLimits:
    """What a download may cost.

    Attributes:
        cache_dir: Folder for the files.
        file_bytes: Largest file.
        cache_bytes: Size of the folder beyond which the least recently used files go.
        timeout_s: Seconds for one try, redirects included.
        redirects: Redirects followed for one file.
        connections: Downloads under way at once.
        attempts: Tries of one download.
        deadline_s: Seconds for all tries, and one more for each MiB that came.
        private_hosts: Hosts in private networks that may be asked.
        proxy: URL of the proxy that all requests go through; None asks servers directly.
    """

    cache_dir: str
    file_bytes: int
    cache_bytes: int
    timeout_s: float
    redirects: int
    connections: int
    attempts: int = 3
    deadline_s: float = 100.0
    private_hosts: tuple[PrivateHost, ...] = ()
    proxy: str | None = None


class _PassingError(Exception):
    """A failure that another try may better."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.why)
        self.fault = fault


@dataclass
class _Flight:
    """A download under way and how many wait for it; when none does, it is cancelled."""

    task: "asyncio.Task[bytes]"
    waiting: int = field(default=0)


class Downloads:
    """The files of one cache folder, fetched when first read; all methods are thread-safe."""

    def __init__(self, limits: DownloadLimits) -> None:
        """Keep the limits; sockets open on use."""
        self._limits = limits
        self._cache = LocalStorage(limits.cache_dir)
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}  # touched by the loop only
        self._in_use: Counter[str] = Counter()
        self._counted = 0
        self._since_count: int | None = None
        self._session: aiohttp.ClientSession | None = None
        self._gate: asyncio.Semaphore | None = None

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
        limits = self._limits
        session, gate = self._opened()

        async def send(progress: TransferProgress) -> bytes:
            async with gate, asyncio.timeout(limits.timeout_s):
                return await _follow(session, url, where, limits, progress)

        try:
            return await send_with_retries(
                send,
                self._fault,
                endpoint(url, limits.connections),
                RetryLimits(limits.attempts, limits.deadline_s),
            )
        except ExhaustedError as error:
            raise StorageUnavailableError(f"{where}: {error}; check the server") from error
        except ValueError as error:  # aiohttp.InvalidURL, or urljoin's own
            raise StorageError(f"{where} is, or redirects to, no valid URL") from error

    def _fault(self, error: Exception) -> Fault | None:
        import aiohttp

        if isinstance(error, _PassingError):
            return error.fault
        # Some kinds of our errors are kinds of OSError too, and some of aiohttp's of ValueError.
        if isinstance(error, StorageError | ValueError):
            return None
        if isinstance(error, TimeoutError):
            limit = f"storage.timeout_s={self._limits.timeout_s:g}"
            return Fault(f"no whole answer within {limit}", timeout=True)
        if isinstance(error, aiohttp.ClientError | OSError):
            return Fault(f"connection failed ({type(error).__name__})")
        return None

    def _opened(self) -> "tuple[aiohttp.ClientSession, asyncio.Semaphore]":
        """Return the session and the gate, made inside the loop that they belong to."""
        import aiohttp

        if self._session is None or self._gate is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limits.connections, socket_factory=guarded_socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),  # one clock: that of `_download`
                # Or whoever writes the list is sent what `~/.netrc` holds for the hosts he names,
                # and a proxy of the environment asks for addresses that are refused here.
                trust_env=False,
                # As stored: a size limit must not meet a small answer that swells.
                headers={"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"},
            )
            self._session = without_own_retries(session)
            self._gate = asyncio.Semaphore(self._limits.connections)
        return self._session, self._gate

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
        session, self._session, self._gate = self._session, None, None
        if session is not None:
            run(session.close())


def _by_age(folder: Path) -> list[tuple[int, int, str]]:
    """Return (last use in ns, bytes, name) of every file, the least recently used first."""
    # The listing's etag starts with the time of change, which every use renews.
    return sorted(
        (int(info.etag.partition("-")[0], 16), info.size, info.key)
        for info in LocalStorage(str(folder)).objects()
    )


async def _follow(
    session: "aiohttp.ClientSession",
    url: str,
    where: str,
    limits: DownloadLimits,
    progress: TransferProgress,
) -> bytes:
    """Return the body behind a URL, following redirects to http(s) only."""
    for _ in range(limits.redirects + 1):
        async with _answer(session, url, where, limits) as response:
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                _judge(response, where)
                return await _body(response, where, limits.file_bytes, progress)
        url = urljoin(url, target)
        scheme = urlsplit(url).scheme
        if scheme not in ("http", "https"):
            raise StorageError(f"{where} redirects to a {scheme!r} URL; only http(s) is followed")
    raise StorageError(
        f"{where} redirects more than {limits.redirects} times (storage.max_redirects)"
    )


@asynccontextmanager
async def _answer(
    session: "aiohttp.ClientSession", url: str, where: str, limits: DownloadLimits
) -> "AsyncIterator[aiohttp.ClientResponse]":
    """Send one request, to a public address or one that is allowed.

    Each has the URL's own user and password, if any: none go on to where it redirects.
    """
    import aiohttp
    from yarl import URL

    host = (URL(url).host or "").lower()
    allowed = limits.private_hosts
    if limits.proxy is not None:
        # Who answers is the proxy's choice; here, only what a URL itself says can be refused.
        if not admits_name(host, URL(url).port or 0, allowed):
            raise _refused(where, host, host)
        host = (URL(limits.proxy).host or "").lower()
        allowed = (PrivateHost(host, None, None),)
    with visiting(host, allowed) as visit:
        try:
            async with session.get(url, allow_redirects=False, proxy=limits.proxy) as response:
                yield response
        except aiohttp.ClientConnectorError as error:
            if visit.refused:
                raise _refused(where, host, ", ".join(visit.refused)) from error
            raise


def _refused(where: str, host: str, address: str) -> StorageError:
    return StorageError(
        f"{where} leads to {host} at a private or reserved address ({address}), which a list of "
        f"URLs may not reach by itself; if it is a server of yours, set "
        f"storage.private_hosts=[{config_value(host)}]"
    )


def _judge(response: "aiohttp.ClientResponse", where: str) -> None:
    """Let a good answer pass; raise for every other."""
    status = response.status
    if status in (404, 410):
        raise ObjectNotFoundError(f"{where}: the server says {status}, there is no such file")
    if status >= 500 or status in _PASSING:  # noqa: PLR2004 - HTTP's server errors
        headers = {name.lower(): value for name, value in response.headers.items()}
        throttled, asked = status in _THROTTLING, retry_after(headers)
        raise _PassingError(
            Fault(f"the server says {status}", throttled=throttled, retry_after_s=asked)
        )
    if status != 200:  # noqa: PLR2004 - HTTP's plain success
        raise StorageError(f"{where}: the server says {status}, not 200")
    if response.content_type in _HTML:
        raise StorageError(f"{where}: got HTML instead of a picture")


async def _body(
    response: "aiohttp.ClientResponse", where: str, limit: int, progress: TransferProgress
) -> bytes:
    """Read a body, stopping as soon as it is known to be too large."""
    too_large = StorageError(
        f"{where} is larger than {limit / 2**20:g} MiB; raise storage.max_file_mb to allow it"
    )
    if (response.content_length or 0) > limit:
        raise too_large
    parts = bytearray()
    async for chunk in response.content.iter_any():
        progress.received(len(chunk))
        parts += chunk
        if len(parts) > limit:
            raise too_large
    if not parts:
        raise StorageError(f"{where}: the server sent an empty file")
    return bytes(parts)
