"""Executors of batch requests, and the futures they complete."""

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


class BatchFuture(Generic[Job, Made]):
    """One job on its way to the consumer; completed once, by whoever works on it.

    Attributes:
        job: The work.
        stage: What is done with it, for messages.
        made: The batch, once it is done.
        error: Why there is none.
        done: Whether it is made or failed.
        nbytes: Bytes the batch holds.
        begun: When work on it began, by the monotonic clock; None before.
        seconds: How long the work took.
        cancelled: Whether nobody wants it any more.
    """

    __slots__ = (
        "begun", "bell", "cancelled", "done", "error", "job", "made", "nbytes", "seconds", "stage",
    )  # fmt: skip

    def __init__(self, job: Job) -> None:
        """Begin with nothing done."""
        self.job = job
        self.stage = "making"
        self.made: Made | None = None
        self.error: BaseException | None = None
        self.nbytes = 0
        self.seconds = 0.0
        self.begun: float | None = None
        self.done = self.cancelled = False
        # Waited at without polling, quicker than a condition, and safe to ring from anywhere.
        self.bell: SimpleQueue[None] = SimpleQueue()

    def complete(self, made: Made, nbytes: int, seconds: float) -> None:
        """Note the batch, and wake whoever waits for it."""
        self.made, self.nbytes, self.seconds = made, nbytes, seconds
        self.done = True
        self.bell.put(None)

    def fail(self, error: BaseException) -> None:
        """Note why there is no batch, and wake whoever waits for it."""
        self.error = error
        self.done = True
        self.bell.put(None)

    def cancel(self) -> None:
        """Note that nobody wants it any more, and let whoever waits for it find out."""
        self.cancelled = True
        self.bell.put(None)

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done, or somebody rings for another reason; False if neither was."""
        if self.done:
            return True
        try:
            self.bell.get(timeout=timeout)
        except Empty:
            return self.done
        return True

    def age(self) -> float | None:
        """Return for how long it is in the making, s; None where work has not begun."""
        return None if self.begun is None else time.monotonic() - self.begun


logger = logging.getLogger("factory")

# A batch of pictures takes tenths of a second; what takes longer hangs in a read, and is left
# to end by itself.
CLOSE_S = 2.0


class Executor(Protocol[Job, Made]):
    """Makes batches of jobs, in no particular order."""

    def submit(self, future: BatchFuture[Job, Made]) -> None:
        """Take on a job; its future is completed later, in another thread."""

    def pause(self) -> None:
        """Begin with no further job until `resume`."""

    def resume(self) -> None:
        """Go on."""

    def look(self) -> str:
        """Return what threads elsewhere do, as text; for the report of a stall."""

    def close(self, *, wait: bool = True) -> None:
        """Give up what has not begun; wait for what has, but not long."""


def begin(executor: Executor[Job, Made], job: Job) -> BatchFuture[Job, Made]:
    """Have an executor take on a job, and return its future."""
    future: BatchFuture[Job, Made] = BatchFuture(job)
    executor.submit(future)
    return future


class ThreadExecutor(Generic[Job, Made]):
    """Threads of this process; each is started when there is work for it."""

    def __init__(
        self,
        make: Callable[[Job], Made],
        workers: int,
        nbytes: Callable[[Made], int] | None,
        name: str = "factory-fetch",
    ) -> None:
        """Store the parts; no thread starts.

        Args:
            make: Turns a job into a batch.
            workers: Number of threads; with none, whoever submits a job does it at once.
            nbytes: Bytes a batch holds; None where nobody asks.
            name: Beginning of the threads' names.
        """
        self._make, self._nbytes = make, nbytes
        self._workers, self._name = workers, name
        self._waiting: SimpleQueue[BatchFuture[Job, Made] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._changing = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self._helped = threading.Event()
        self._helped.set()
        self._closed = False

    @property
    def alone(self) -> bool:
        """Whether one thread does all the work; at first all of them do.

        Where a job takes less than threads wait for each other at the interpreter, they cost more
        than they give.
        """
        return not self._helped.is_set()

    @alone.setter
    def alone(self, value: bool) -> None:
        """Have one thread do all the work, or all of them again."""
        if value:
            self._helped.clear()  # whoever waits for a job now is given one more
        if self._closed or not value:  # looked at last: whoever closes wakes all after it says so
            self._helped.set()

    def submit(self, future: BatchFuture[Job, Made]) -> None:
        """Take on a job; dropped where this is closed."""
        if not self._workers:
            self._waiting.put(future)
            self._waiting.put(None)
            self._work(first=True)
            return
        with self._changing:
            if self._closed:
                return
            if len(self._threads) < self._workers:
                # Daemons: the end of the program does not wait for a read that hangs.
                name = f"{self._name}_{len(self._threads)}"
                first = not self._threads
                thread = threading.Thread(target=self._work, args=[first], name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            self._waiting.put(future)

    def pause(self) -> None:
        """Begin with no further job until `resume`."""
        self._gate.clear()

    def resume(self) -> None:
        """Go on."""
        self._gate.set()

    def look(self) -> str:
        """Return nothing: these threads are among this process's own."""
        return ""

    def close(self, *, wait: bool = True) -> None:
        """Give up what has not begun; wait for what has, but not long."""
        with self._changing:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._waiting.put(None)
        self._gate.set()
        self._helped.set()
        join(self._threads, CLOSE_S if wait else 0.0)

    def _work(self, first: bool) -> None:
        while (first or self._helped.wait()) and (future := self._waiting.get()) is not None:
            self._gate.wait()
            if not (self._closed or future.cancelled):
                future.begun = begun = time.monotonic()
                try:
                    made = self._make(future.job)
                    nbytes = 0 if self._nbytes is None else self._nbytes(made)
                except BaseException as error:  # noqa: BLE001 - the consumer's, whatever it is
                    future.fail(error)
                else:
                    future.complete(made, nbytes, time.monotonic() - begun)
            # Else the batch is held while this thread waits for the next job.
            future = made = None  # type: ignore[assignment]


def join(threads: list[threading.Thread], seconds: float) -> None:
    """Wait for threads to end, but not longer in all than this; say so if some do not.

    Bounded in every case, since it may be called by the garbage collector, in the midst of
    whatever its thread was doing.
    """
    deadline = time.monotonic() + seconds
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    left: list[Any] = [thread.name for thread in threads if thread.is_alive()]
    if left and seconds:
        logger.warning("%s: still at work, and left to end by itself", ", ".join(left))
