"""Client of web servers: public addresses only, few redirects, limits on time, retries."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from factory.errors import (
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage.endpoint_limits import endpoint
from factory.storage.event_loop import TransferProgress, run, send_with_retries, without_own_retries
from factory.storage.retry import ExhaustedError, Fault, RetryLimits, retry_after
from factory.storage.url_list.hosts import PrivateHost, admits_name, guarded_socket, visiting
from factory.untrusted_text import config_value

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

# Answers that another try may better: request timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Answers that ask for fewer requests.
_THROTTLING = (429, 503)
_REDIRECTS = (301, 302, 303, 307, 308)

Take = Callable[["aiohttp.ClientResponse", TransferProgress], Awaitable[T]]


@dataclass(frozen=True)
class WebLimits:
    """What one request may cost, and whom it may reach.

    Attributes:
        timeout_s: Seconds for one try, redirects included.
        redirects: Redirects followed for one file.
        connections: Requests under way at once.
        attempts: Tries of one request.
        deadline_s: Seconds for all tries, and one more for each MiB that came.
        private_hosts: Hosts in private networks that may be asked.
        proxy: URL of the proxy that all requests go through; None asks servers directly.
    """

    timeout_s: float
    redirects: int
    connections: int
    attempts: int = 3
    deadline_s: float = 100.0
    private_hosts: tuple[PrivateHost, ...] = ()
    proxy: str | None = None


class PassingError(Exception):
    """A failure that another try may better."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.why)
        self.fault = fault


class WebClient:
    """Connections to web servers; its coroutines run in the loop of `event_loop`."""

    def __init__(self, limits: WebLimits) -> None:
        """Keep the limits; sockets open on use."""
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._gate: asyncio.Semaphore | None = None

    async def ask(
        self,
        url: str,
        where: str,
        take: Take[T],
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
    ) -> T:
        """Send a request, in as many tries as it may take, and take what it is answered.

        Args:
            url: Absolute http(s) URL.
            where: What errors call what is behind it.
            take: Reads the answer, told of each part of it.
            method: GET or HEAD.
            headers: Beside those that all requests have.
            accept: Statuses that `take` reads.

        Raises:
            ObjectNotFoundError: The server says there is no such file.
            StorageUnavailableError: Every try failed in a way that may pass.
            StorageError: The answer is another, or leads where it may not.
        """
        limits = self._limits
        session, gate = self._opened()

        async def send(progress: TransferProgress) -> T:
            """Send it once."""
            answer = self._followed(session, method, url, where, headers)
            async with gate, asyncio.timeout(limits.timeout_s), answer as response:
                if response.status not in accept:
                    raise _refusal(response, where)
                return await take(response, progress)

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

    @asynccontextmanager
    async def _followed(
        self,
        session: "aiohttp.ClientSession",
        method: str,
        url: str,
        where: str,
        headers: Mapping[str, str] | None,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """Answer of a URL, after redirects to http(s) only."""
        for _ in range(self._limits.redirects + 1):
            async with self._answer(session, method, url, where, headers) as response:
                target = response.headers.get("Location")
                if response.status not in _REDIRECTS or target is None:
                    yield response
                    return
            url = urljoin(url, target)
            scheme = urlsplit(url).scheme
            if scheme not in ("http", "https"):
                raise StorageError(
                    f"{where} redirects to a {scheme!r} URL; only http(s) is followed"
                )
        raise StorageError(
            f"{where} redirects more than {self._limits.redirects} times (storage.max_redirects)"
        )

    @asynccontextmanager
    async def _answer(
        self,
        session: "aiohttp.ClientSession",
        method: str,
        url: str,
        where: str,
        headers: Mapping[str, str] | None,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """Send one request, to a public address or one that is allowed.

        Each has the URL's own user and password, if any: none go on to where it redirects.
        """
        import aiohttp
        from yarl import URL

        host = (URL(url).host or "").lower()
        allowed, proxy = self._limits.private_hosts, self._limits.proxy
        if proxy is not None:
            # Who answers is the proxy's choice; here, only what a URL itself says can be refused.
            if not admits_name(host, URL(url).port or 0, allowed):
                raise _private(where, host, host)
            host = (URL(proxy).host or "").lower()
            allowed = (PrivateHost(host, None, None),)
        with visiting(host, allowed) as visit:
            try:
                async with session.request(
                    method, url, allow_redirects=False, proxy=proxy, headers=headers
                ) as response:
                    yield response
            except aiohttp.ClientConnectorError as error:
                if visit.refused:
                    raise _private(where, host, ", ".join(visit.refused)) from error
                raise

    def _fault(self, error: Exception) -> Fault | None:
        import aiohttp

        if isinstance(error, PassingError):
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
                timeout=aiohttp.ClientTimeout(total=None),  # one clock: that of `ask`
                # Or whoever writes the list is sent what `~/.netrc` holds for the hosts he names,
                # and a proxy of the environment asks for addresses that are refused here.
                trust_env=False,
                # As stored: a size limit must not meet a small answer that swells.
                headers={"Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity"},
            )
            self._session = without_own_retries(session)
            self._gate = asyncio.Semaphore(self._limits.connections)
        return self._session, self._gate

    def close(self) -> None:
        """Close the sockets."""
        session, self._session, self._gate = self._session, None, None
        if session is not None:
            run(session.close())


def _private(where: str, host: str, address: str) -> StorageError:
    return StorageError(
        f"{where} leads to {host} at a private or reserved address ({address}), which a list of "
        f"URLs or a web page may not reach by itself; if it is a server of yours, set "
        f"storage.private_hosts=[{config_value(host)}]"
    )


def _refusal(response: "aiohttp.ClientResponse", where: str) -> Exception:
    """Return the error for an answer that was not wanted."""
    status = response.status
    if status in (404, 410):
        return ObjectNotFoundError(f"{where}: the server says {status}, there is no such file")
    if status >= 500 or status in _PASSING:  # noqa: PLR2004 - HTTP's server errors
        headers = {name.lower(): value for name, value in response.headers.items()}
        throttled, asked = status in _THROTTLING, retry_after(headers)
        return PassingError(
            Fault(f"the server says {status}", throttled=throttled, retry_after_s=asked)
        )
    return StorageError(f"{where}: the server says {status}, not 200")


async def body_of(
    response: "aiohttp.ClientResponse",
    progress: TransferProgress,
    limit: int,
    too_large: Exception | None,
) -> bytearray:
    """Return a body, or so many bytes of it.

    Args:
        response: The answer.
        progress: Told of each part.
        limit: Bytes at most.
        too_large: Raised as soon as it is known to have more; None reads no further.

    Raises:
        Exception: `too_large`.
    """
    if too_large and (response.content_length or 0) > limit:
        raise too_large
    parts = bytearray()
    async for chunk in response.content.iter_any():
        progress.received(len(chunk))
        parts += chunk
        if len(parts) > limit:
            if too_large:
                raise too_large
            break
    del parts[limit:]
    return parts
