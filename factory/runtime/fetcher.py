"""Background prefetch: batches made ahead of the trainer, delivered in plan order."""

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Generic, TypeVar

from factory.errors import FetchError

logger = logging.getLogger("factory")

Job = TypeVar("Job")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Prefetch:
    """How far batches are prepared ahead.

    Attributes:
        mode: "thread" prepares in the background, "inline" when a batch is asked for.
        batches: Batches kept ready or in the making.
        megabytes: Memory that those may hold, MiB; one batch is always allowed.
        timeout_s: Seconds to wait for a batch before the run is stopped with a report.
        workers: Threads that make batches; each makes a whole one.
    """

    mode: str = "thread"
    batches: int = 4
    megabytes: float = 1024.0
    timeout_s: float = 300.0
    workers: int = 2

    def __post_init__(self) -> None:
        """Refuse settings under which no batch would ever come."""
        if self.mode not in ("thread", "inline"):
            raise ValueError(f"prefetch.mode must be thread or inline, got {self.mode!r}")
        for name in ("batches", "megabytes", "timeout_s", "workers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"prefetch.{name} must be above 0, got {getattr(self, name)}")


class BatchFetcher(Generic[Job, Made]):
    """Makes batches from jobs, some ahead of the consumer, and delivers them in order.

    Jobs are started when the consumer takes a batch, never on a clock: nothing polls. What is
    ready or in the making is bounded by number and by bytes, the latter judged by the largest
    batch seen. An exception in a job is raised at the consumer when that job's turn comes,
    with its type kept. Iterate once; `close` is safe at any time and from any thread.
    """

    def __init__(
        self,
        make: Callable[[Job], Made],
        jobs: Iterable[Job],
        settings: Prefetch,
        *,
        nbytes: Callable[[Made], int] | None = None,
        describe: Callable[[Job], str] = str,
    ) -> None:
        """Store the parts; no thread starts before the first batch is asked for.

        Args:
            make: Turns a job into a batch; called in worker threads.
            jobs: The work, in the order of delivery; taken lazily.
            settings: Bounds and deadline.
            nbytes: Bytes a batch holds; None leaves `megabytes` without effect.
            describe: Names a job in errors, such as "step 12 of photos".
        """
        self._make = make
        self._jobs = iter(jobs)
        self._settings = settings
        self._nbytes = nbytes
        self._describe = describe
        self._ahead: deque[tuple[Job, Future[Made]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._largest = 0
        self._closed = False
        self._stuck = False
        self.waited_s = 0.0
        self.delivered = 0

    def __iter__(self) -> Iterator[Made]:
        """Yield the batches; closes when the consumer stops, for whatever reason."""
        try:
            while True:
                try:
                    made = self._next()
                except StopIteration:
                    return
                self.delivered += 1
                yield made
        finally:
            self.close()

    def close(self) -> None:
        """Cancel what has not begun, wait for what has, and leave no thread behind.

        A batch that was given up on is not waited for: its thread ends when its read does.
        """
        self._closed = True
        pool, self._pool = self._pool, None
        self._ahead.clear()
        if pool is not None:
            pool.shutdown(wait=not self._stuck, cancel_futures=True)

    def _next(self) -> Made:
        if self._closed:
            raise FetchError("this fetcher is closed; iterate over the loader again")
        if self._settings.mode == "inline":
            job = next(self._jobs)
            return self._guarded(job, lambda: self._make(job))
        self._start_jobs()
        if not self._ahead:
            raise StopIteration
        job, future = self._ahead.popleft()
        begin = time.perf_counter()
        made = self._guarded(job, lambda: self._await(job, future))
        self.waited_s += time.perf_counter() - begin
        if self._nbytes is not None:
            self._largest = max(self._largest, self._nbytes(made))
        self._start_jobs()
        return made

    def _start_jobs(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(
                self._settings.workers, thread_name_prefix="factory-fetch"
            )
        while len(self._ahead) < self._window():
            try:
                job = next(self._jobs)
            except StopIteration:
                return
            self._ahead.append((job, self._pool.submit(self._make, job)))

    def _window(self) -> int:
        if not self._largest:
            return self._settings.batches
        fitting = int(self._settings.megabytes * 2**20 / self._largest)
        return max(1, min(self._settings.batches, fitting))

    def _await(self, job: Job, future: "Future[Made]") -> Made:
        try:
            return future.result(timeout=self._settings.timeout_s)
        except FutureTimeoutError:
            if future.done():  # the job itself timed out on something: that is its error
                raise
            self._stuck = True
            raise FetchError(self._stalled(job)) from None

    def _guarded(self, job: Job, call: Callable[[], Made]) -> Made:
        try:
            return call()
        except Exception as error:
            error.add_note(f"while making the batch of {self._describe(job)}")
            self.close_soon()
            raise

    def close_soon(self) -> None:
        """Cancel what has not begun without waiting; for use while an error is on its way."""
        self._closed = True
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _stalled(self, job: Job) -> str:
        frames = sys._current_frames()  # noqa: SLF001 - documented, in spite of its name
        stacks = []
        for thread in threading.enumerate():
            if thread.name.startswith("factory-") and thread.ident in frames:
                stack = "".join(traceback.format_stack(frames[thread.ident]))
                stacks.append(f"--- {thread.name}\n{stack}")
        return (
            f"no batch within prefetch.timeout_s={self._settings.timeout_s:g} s: "
            f"{self._describe(job)} is still in the making, {len(self._ahead)} more wait "
            f"behind it, {self.delivered} were delivered. If the storage is merely slow, raise "
            "prefetch.timeout_s. What each thread does:\n" + "\n".join(stacks)
        )
