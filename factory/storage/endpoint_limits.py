"""Limits on the requests under way to one endpoint, over all storages of this process."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from factory.storage.per_process import PerProcess
from factory.storage.retry import LONGEST_WAIT_S, RetryQuota

# Endpoints remembered before idle ones are forgotten: a list of URLs may name a host a row.
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What one endpoint was asked for by this process.

    Attributes:
        endpoint: Scheme, host and port.
        requests: Tries sent.
        retries: Those of them that repeated a failed one.
        throttled: Answers that asked for fewer requests.
        failed: Requests given up.
        waited_s: Seconds that requests waited for their turn, summed.
        bytes: Bytes of bodies received.
        limit: Requests allowed at once now.
        busy_s: Seconds that requests took once it was their turn, summed.
    """

    endpoint: str
    requests: int
    retries: int
    throttled: int
    failed: int
    waited_s: float
    bytes: int
    limit: int
    busy_s: float


@dataclass(slots=True)
class Slot:
    """The right to have one request under way.

    Attributes:
        endpoint: The endpoint it is sent to.
        begun: When it was granted.
    """

    endpoint: "Endpoint"
    begun: float

    def succeeded(self) -> None:
        """Let the endpoint take a little more."""
        self.endpoint.grow()

    def throttled(self, retry_after_s: float | None) -> None:
        """Ask the endpoint for less, and for nothing until the time it named."""
        self.endpoint.shrink(self.begun, retry_after_s)


class Endpoint:
    """One server's share of attention: a queue, first come first served.

    The number of requests under way halves when the server says that they are too many, and
    grows by one for each round without complaint (additive increase, multiplicative decrease,
    as TCP does it). Coroutines of any loop and threads wait in the same queue.
    """

    def __init__(
        self, name: str, limit: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with the full number.

        Args:
            name: Scheme, host and port.
            limit: Most requests at once.
            clock: Seconds that never go back.
        """
        self.name = name
        self.quota = RetryQuota()
        self._clock = clock
        self._ceiling = limit
        self._limit = float(limit)
        self._under_way = 0
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()
        self._cut_at = self._paused_until = float("-inf")
        self._requests = self._retries = self._throttled = self._failed = self._bytes = 0
        self._waited_s = self._busy_s = 0.0

    def allow(self, limit: int) -> None:
        """Raise the most requests at once: storages that share a server share the largest."""
        with self._lock:
            if limit > self._ceiling:
                self._limit += limit - self._ceiling
                self._ceiling = limit
            granted = self._grantable()
        _grant(granted)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a turn, and for a pause that the server asked for; in a coroutine."""
        asked = self._clock()
        waiter = self._enter()
        try:
            if waiter is not None:
                await asyncio.wrap_future(waiter)
        except BaseException:
            self._abandon(waiter)
            raise
        slot = None
        try:
            while (pause := self._paused_until - self._clock()) > 0:
                await asyncio.sleep(pause)
            slot = self._granted(asked)
            yield slot
        finally:
            self._leave(slot)

    @contextmanager
    def slot_in_thread(self, timeout_s: float) -> Iterator[Slot]:
        """Wait for a turn, and for a pause that the server asked for; in a thread.

        Raises:
            TimeoutError: The turn did not come in time.
        """
        asked = self._clock()
        waiter = self._enter()
        try:
            if waiter is not None:
                waiter.result(timeout_s)
        except BaseException:
            self._abandon(waiter)
            raise
        slot = None
        try:
            while (pause := self._paused_until - self._clock()) > 0:
                if self._clock() + pause > asked + timeout_s:
                    raise TimeoutError(f"{self.name} asked for a pause of {pause:.1f} s")
                time.sleep(pause)
            slot = self._granted(asked)
            yield slot
        finally:
            self._leave(slot)

    def _enter(self) -> "Future[None] | None":
        """Take a slot, or queue for one."""
        with self._lock:
            if not self._waiting and self._under_way < int(self._limit):
                self._under_way += 1
                return None
            waiter: Future[None] = Future()
            self._waiting.append(waiter)
            return waiter

    def _abandon(self, waiter: "Future[None] | None") -> None:
        """Leave the queue; where the turn came in the same moment, pass it on."""
        if waiter is not None and not waiter.cancel():
            self._leave()

    def _leave(self, slot: Slot | None = None) -> None:
        with self._lock:
            self._under_way -= 1
            if slot is not None:
                self._busy_s += self._clock() - slot.begun
            granted = self._grantable()
        _grant(granted)

    def _grantable(self) -> "list[Future[None]]":
        granted = []
        while self._waiting and self._under_way < int(self._limit):
            waiter = self._waiting.popleft()
            if waiter.set_running_or_notify_cancel():
                self._under_way += 1
                granted.append(waiter)
        return granted

    def _granted(self, asked: float) -> Slot:
        now = self._clock()
        with self._lock:
            self._waited_s += now - asked
            self._requests += 1
        return Slot(self, now)

    def grow(self) -> None:
        """Allow one request more once each of those now allowed has succeeded."""
        if self._limit >= self._ceiling:
            return
        with self._lock:
            self._limit = min(self._ceiling, self._limit + 1 / self._limit)
            granted = self._grantable()
        _grant(granted)

    def shrink(self, begun: float, retry_after_s: float | None) -> None:
        """Halve the number of requests, and pause as long as the server asked.

        Args:
            begun: When the request was sent. What was sent before the last cut says nothing of
                how the server likes the new number.
            retry_after_s: Seconds that the server asked to wait, if it did.
        """
        now = self._clock()
        with self._lock:
            self._throttled += 1
            if retry_after_s:
                until = now + min(retry_after_s, LONGEST_WAIT_S)
                self._paused_until = max(self._paused_until, until)
            if begun >= self._cut_at:
                self._limit = max(1.0, self._limit / 2)
                self._cut_at = now

    def count(self, *, retries: int = 0, failed: int = 0, received: int = 0) -> None:
        """Add to the counters."""
        with self._lock:
            self._retries += retries
            self._failed += failed
            self._bytes += received

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nothing is held against the server."""
        return not (self._under_way or self._waiting) and self._limit >= self._ceiling

    @property
    def counts(self) -> RequestCounts:
        """The counters now."""
        with self._lock:
            return RequestCounts(
                self.name, self._requests, self._retries, self._throttled, self._failed,
                self._waited_s, self._bytes, int(self._limit), self._busy_s,
            )  # fmt: skip


def _grant(waiters: "list[Future[None]]") -> None:
    """Wake those whose turn it is; outside the lock, for their callbacks run here."""
    for waiter in waiters:
        waiter.set_result(None)


class _Endpoints:
    """The endpoints that this process talks to."""

    def __init__(self, name: str) -> None:
        del name
        self._known: dict[str, Endpoint] = {}
        self._lock = threading.Lock()

    def of(self, name: str, limit: int) -> Endpoint:
        with self._lock:
            found = self._known.get(name)
            if found is None:
                if len(self._known) >= _REMEMBERED:
                    self._known = {n: e for n, e in self._known.items() if not e.is_idle}
                found = self._known[name] = Endpoint(name, limit)
        found.allow(limit)
        return found

    def counts(self) -> list[RequestCounts]:
        with self._lock:
            return [endpoint.counts for _, endpoint in sorted(self._known.items())]


_ENDPOINTS: PerProcess[str, _Endpoints] = PerProcess(_Endpoints)
_ALL = "all"


def endpoint(url: str, limit: int) -> Endpoint:
    """Return this process's budget for the server of a URL.

    Args:
        url: Any URL of the server; it may hold a path and secrets, which are not kept.
        limit: Most requests at once that the caller would send.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _ENDPOINTS.get(_ALL).of(f"{parts.scheme}://{parts.hostname}:{port}", limit)


def request_counts() -> list[RequestCounts]:
    """Return what this process asked each endpoint for, sorted by endpoint."""
    return _ENDPOINTS.get(_ALL).counts()
