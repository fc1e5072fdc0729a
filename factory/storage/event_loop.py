"""The event loop of this process: requests with retries, and reads side by side in order."""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from factory.storage.endpoint_limits import Endpoint, Slot
from factory.storage.per_process import PerProcess
from factory.storage.retry import LEAST_RATE, Attempts, ExhaustedError, Fault, RetryLimits

if TYPE_CHECKING:
    import aiohttp

# Results are taken by halves of those under way: one by one a scan of S3 took a fifth longer, and
# of a batch of pictures the first half is decoded while the second one is on its way.
_PARTS = 2

# Threads that put what came to its place: as many as can copy at once, and no more than the cache
# fetches shards side by side, each of which is a file of its own.
_DISK_THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")
S = TypeVar("S")


def _loop() -> asyncio.AbstractEventLoop:
    """Return the loop that s3fs uses too, one for each process."""
    from fsspec.asyn import get_loop

    loop: asyncio.AbstractEventLoop = get_loop()
    return loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in this process's loop and wait for it; an interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def cancel_every_task() -> None:
    """End all that runs in this process's loop, if it has one; the process ends."""
    from fsspec.asyn import loop

    running: asyncio.AbstractEventLoop | None = loop[0]
    if running is None or not running.is_running():
        return

    async def end() -> None:
        """Cancel all but this, and wait a second at most."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    with suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(end(), running).result(2)


async def run_in_disk_thread(work: Callable[..., None], *given: Any) -> None:
    """Run what may wait for a disk, in threads that nothing else waits for."""
    pool = _POOLS.get("putting")
    await asyncio.get_running_loop().run_in_executor(pool, partial(work, *given))


def _pool(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix=f"factory-{name}")


_POOLS: PerProcess[str, ThreadPoolExecutor] = PerProcess(_pool)


def without_own_retries(session: "aiohttp.ClientSession") -> "aiohttp.ClientSession":
    """Switch off that a session repeats requests by itself, past any limit on tries."""
    session._retry_connection = False  # noqa: SLF001 - there is no public way
    return session


class TransferProgress:
    """Told of each part of a body, it moves the deadline of its request on."""

    def __init__(self, tries: Attempts, limit: asyncio.Timeout, slot: Slot) -> None:
        """Keep what is to be told."""
        self._tries, self._limit, self._endpoint = tries, limit, slot.endpoint
        self._unsaid = 0

    def received(self, size: int) -> None:
        """Count bytes that came."""
        self._endpoint.count(received=size)
        self.sent(size)

    def sent(self, size: int) -> None:
        """Allow for bytes that go or went the other way."""
        self._unsaid += size
        if self._unsaid >= LEAST_RATE:  # less moves the deadline by less than a second
            self._tries.received(self._unsaid)
            self._unsaid = 0
            self._limit.reschedule(asyncio.get_running_loop().time() + self._tries.left_s)


async def send_with_retries(
    send: Callable[[TransferProgress], Awaitable[T]],
    judge: Callable[[Exception], Fault | None],
    endpoint: Endpoint,
    patience: RetryLimits,
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
    tries = Attempts(patience, endpoint.quota)
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
    send: Callable[[TransferProgress], Awaitable[T]],
    judge: Callable[[Exception], Fault | None],
    endpoint: Endpoint,
    tries: Attempts,
) -> T:
    try:
        async with asyncio.timeout(tries.left_s) as limit, endpoint.slot() as slot:
            tries.begin()
            try:
                found = await send(TransferProgress(tries, limit, slot))
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


class LoopFuture(Future[T]):
    """A coroutine that runs in the loop.

    Attributes:
        task: What runs it, once the loop has taken it on.
    """

    task: "asyncio.Task[T] | None" = None

    def take_over(self, task: "asyncio.Task[T]") -> None:
        """Take over how the task ended; runs in the loop."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            self.cancel()
        elif not self.set_running_or_notify_cancel():
            return  # nobody will take it
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


def start_all(coroutines: "Sequence[Coroutine[Any, Any, T]]") -> list[LoopFuture[T]]:
    """Start coroutines in that loop, waking its thread once for all of them."""
    loop = _loop()
    futures: list[LoopFuture[T]] = [LoopFuture() for _ in coroutines]

    def begin() -> None:
        for coroutine, future in zip(coroutines, futures, strict=True):
            if future.cancelled():
                coroutine.close()
                continue
            future.task = loop.create_task(coroutine)
            future.task.add_done_callback(future.take_over)

    loop.call_soon_threadsafe(begin)
    return futures


def cancel_all(futures: "Sequence[Future[Any]]") -> None:
    """Cancel what runs or waits in the loop."""
    for future in futures:
        future.cancel()

    def stop() -> None:
        for future in futures:
            if isinstance(future, LoopFuture) and future.task is not None:
                future.task.cancel()

    with suppress(RuntimeError):  # the interpreter ends, and its loop is closed
        _loop().call_soon_threadsafe(stop)


class OrderedRequests(Generator[T, None, None], Generic[S, T]):
    """Results of many jobs in the order of the jobs, at most some of them ahead.

    The first ones begin at once, further ones as results are taken. Results are taken and jobs
    started some at a time: each call between this thread and the loop's costs both of them a
    switch of the GIL. That is why it is no `factory.engine.pipeline.Lookahead`, which begins jobs
    one by one. Closing it, or dropping it, cancels what is under way.
    """

    def __init__(
        self,
        begin: "Callable[[S], Coroutine[Any, Any, T] | Future[T]]",
        jobs: Iterable[S],
        ahead: int,
    ) -> None:
        """Begin the first jobs.

        Args:
            begin: Returns a coroutine that does a job, bounded in time by itself; or a future
                that is done, where nothing is to be waited for.
            jobs: The jobs; taken as they are begun.
            ahead: Jobs under way, or done and not yet taken.
        """
        self._begin, self._jobs, self._ahead = begin, iter(jobs), ahead
        self._pending: deque[Future[T]] = deque()
        self._process = os.getpid()
        self._ready = 0
        self._fill()

    def _fill(self) -> None:
        """Start as many jobs as there is room for."""
        begun = [self._begin(job) for job in islice(self._jobs, self._ahead - len(self._pending))]
        coroutines = [each for each in begun if not isinstance(each, Future)]
        futures = iter(start_all(coroutines)) if coroutines else iter(())
        self._pending.extend(e if isinstance(e, Future) else next(futures) for e in begun)

    def send(self, value: None) -> T:
        """Return the next result, and begin further jobs now and then."""
        del value
        if not self._ready:
            self._fill()
            if not self._pending:
                raise StopIteration
            # Not one at a time: this thread would wake for each of them.
            self._ready = max(1, len(self._pending) // _PARTS)
            wait(islice(self._pending, self._ready), return_when=FIRST_EXCEPTION)
        try:
            found = self._pending[0].result()
        except BaseException:
            self._cancel()
            raise
        self._pending.popleft()
        self._ready -= 1
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
        self._ready = 0
        flying, self._pending = self._pending, deque()
        if flying and self._process == os.getpid():  # what a forked child inherits is not its own
            cancel_all(flying)

    def __del__(self) -> None:
        """Cancel results that nobody will take."""
        if hasattr(self, "_pending"):
            self._cancel()
