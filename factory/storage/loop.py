"""How are requests run in this process's event loop, and reads side by side in order?"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from factory.storage.budget import Endpoint, Slot
from factory.storage.retry import ExhaustedError, Fault, Patience, Tries

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")
S = TypeVar("S")


def start(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Begin a coroutine in the loop that s3fs uses too, one for each process."""
    from fsspec.asyn import get_loop

    return asyncio.run_coroutine_threadsafe(coroutine, get_loop())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in that loop and wait for it; an interrupt cancels it."""
    future = start(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def sent_once(session: "aiohttp.ClientSession") -> "aiohttp.ClientSession":
    """Switch off that a session repeats requests by itself, past any limit on tries."""
    session._retry_connection = False  # noqa: SLF001 - there is no public way
    return session


class Progress:
    """Told of each part of a body, it moves the deadline of its request on."""

    def __init__(self, tries: Tries, limit: asyncio.Timeout, slot: Slot) -> None:
        """Keep what is to be told."""
        self._tries, self._limit, self._endpoint = tries, limit, slot.endpoint

    def received(self, size: int) -> None:
        """Count bytes that came."""
        self._endpoint.count(received=size)
        self.sent(size)

    def sent(self, size: int) -> None:
        """Allow for bytes that go or went the other way."""
        self._tries.received(size)
        self._limit.reschedule(asyncio.get_running_loop().time() + self._tries.left_s)


async def persist(
    send: Callable[[Progress], Awaitable[T]],
    judge: Callable[[Exception], Fault | None],
    endpoint: Endpoint,
    patience: Patience,
) -> T:
    """Send a request until it succeeds, cannot succeed, or its tries or time are used up.

    Args:
        send: Sends it once.
        judge: Says of what `send` raised how it may pass, or None where it will not.
        endpoint: Whose turn to wait for, and whose quota of retries to use.
        patience: Bounds on tries and time; waiting for a turn counts.

    Raises:
        ExhaustedError: It was given up; holds the last cause.
        Exception: What `send` raised, where that will not pass.
    """
    tries = Tries(patience, endpoint.quota)
    while True:
        try:
            found = await _once(send, judge, endpoint, tries)
        except _FaultError as error:
            wait = tries.wait_after(error.fault)
            if wait is None:
                endpoint.count(failed=1)
                raise ExhaustedError(error.cause, tries) from error.cause
            endpoint.count(retries=1)
            await asyncio.sleep(wait)
        except _OverdueError as error:
            tries.ran_out()
            endpoint.count(failed=1)
            raise ExhaustedError(TimeoutError(), tries) from error
        else:
            tries.succeeded()
            return found


class _FaultError(Exception):
    """A failure that may pass, on its way out of the slot."""

    def __init__(self, fault: Fault, cause: Exception) -> None:
        super().__init__(fault.why)
        self.fault, self.cause = fault, cause


class _OverdueError(Exception):
    """The request's own deadline came."""


async def _once(
    send: Callable[[Progress], Awaitable[T]],
    judge: Callable[[Exception], Fault | None],
    endpoint: Endpoint,
    tries: Tries,
) -> T:
    try:
        async with asyncio.timeout(tries.left_s) as limit, endpoint.slot() as slot:
            tries.begin()
            try:
                found = await send(Progress(tries, limit, slot))
            except Exception as error:
                fault = judge(error)
                if fault is None:
                    raise
                if fault.throttled:
                    slot.throttled(fault.retry_after_s)
                raise _FaultError(fault, error) from error
            slot.succeeded()
            return found
    except TimeoutError as error:
        if limit.expired():
            raise _OverdueError from error
        raise


class Flights(Generator[T, None, None], Generic[S, T]):
    """Results of many jobs in the order of the jobs, at most some of them ahead.

    The first ones begin at once, further ones as results are taken. Closing it, or letting go
    of it, cancels what is under way.
    """

    def __init__(self, begin: "Callable[[S], Future[T]]", jobs: Iterable[S], ahead: int) -> None:
        """Begin the first jobs.

        Args:
            begin: Begins one job; bounded in time by itself.
            jobs: The jobs; taken as they are begun.
            ahead: Jobs under way, or done and not yet taken.
        """
        self._begin, self._jobs, self._ahead = begin, iter(jobs), ahead
        self._flying: deque[Future[T]] = deque()
        self._process = os.getpid()
        self._fill()

    def _fill(self) -> None:
        while len(self._flying) < self._ahead:
            try:
                job = next(self._jobs)
            except StopIteration:
                return
            self._flying.append(self._begin(job))

    def send(self, value: None) -> T:
        """Return the next result, and begin another job in its place."""
        del value
        if not self._flying:
            raise StopIteration
        try:
            found = self._flying[0].result()
        except BaseException:
            self._cancel()
            raise
        self._flying.popleft()
        self._fill()
        return found

    def throw(
        self,
        kind: Any,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> T:
        """Cancel what is under way, and raise."""
        self._cancel()
        return super().throw(kind, value, trace)

    def _cancel(self) -> None:
        self._jobs = iter(())
        flying, self._flying = self._flying, deque()
        if self._process == os.getpid():  # what a forked child inherits is not its own
            for future in flying:
                future.cancel()

    def __del__(self) -> None:
        """Cancel what nobody will take."""
        if hasattr(self, "_flying"):
            self._cancel()
