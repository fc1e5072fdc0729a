"""Background prefetch: batches made ahead of the trainer, delivered in plan order."""

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic

from factory.engine.pipeline import Lookahead
from factory.errors import FetchError
from factory.limits import Above, AtLeast, OneOf, check_limits
from factory.runtime.prefetch.device import DeviceCopier, DevicePrefetcher
from factory.runtime.prefetch.executors import (
    BatchFuture,
    Executor,
    Job,
    Made,
    ThreadExecutor,
    begin,
)
from factory.runtime.prefetch.report import FetchReport, stacks, stages
from factory.runtime.prefetch.worker.process import BatchWorker, ProcessExecutor

AUTO = "auto"


@dataclass(frozen=True)
class Prefetch:
    """How far batches are prepared ahead.

    Attributes:
        mode: thread: in the background | process: in another process, which leaves this one's
            interpreter to the trainer (streams stay here) | inline: on demand.
        batches: Batches kept ready, those in the making included.
        megabytes: Memory that they may hold, MiB; one batch is always allowed.
        timeout_s: Seconds to wait for a batch before the run is stopped with a report.
        workers: Threads that make batches, each a whole one. In another process one of them makes
            all where that takes a few milliseconds each: more would be in its way.
        pin_memory: Whether batches go through pinned memory: true | false | auto, where CUDA is.
        device_ahead: Copy the next batch to the CUDA device while the trainer works on this one.
    """

    mode: Annotated[str, OneOf("thread", "process", "inline")] = "thread"
    batches: Annotated[int, AtLeast(1)] = 4
    megabytes: Annotated[float, Above(0)] = 1024.0
    timeout_s: Annotated[float, Above(0)] = 300.0
    workers: Annotated[int, AtLeast(1)] = 2
    pin_memory: bool | str = AUTO
    device_ahead: bool = True

    def __post_init__(self) -> None:
        """Refuse settings under which no batch would ever come."""
        if self.pin_memory not in (AUTO, True, False):
            raise ValueError(
                f"prefetch.pin_memory must be auto, true or false, got {self.pin_memory!r}"
            )
        check_limits(self, "prefetch")

    @property
    def pins(self) -> bool | None:
        """Whether to go through pinned memory; None means where there is CUDA."""
        return None if self.pin_memory == AUTO else bool(self.pin_memory)


class BatchFetcher(Generic[Job, Made]):
    """Makes batches from jobs, some ahead of the consumer, and delivers them in order.

    Jobs are begun when the consumer takes a batch, never on a clock: nothing polls. What is
    ready or in the making is bounded by number and by bytes. An exception in a job is raised
    at the consumer when that job's turn comes, with its type kept, and closes the fetcher.
    Iterate once; `close` is safe at any time and from any thread, and comes by itself with the
    end of the iteration, of the fetcher and of the program.
    """

    def __init__(
        self,
        make: Callable[[Job], Made],
        jobs: Iterable[Job],
        settings: Prefetch,
        *,
        nbytes: Callable[[Made], int] | None = None,
        describe: Callable[[Job], str] = str,
        worker: BatchWorker[Job, Made] | None = None,
        here: Callable[[Job], bool] | None = None,
        copier: DeviceCopier | None = None,
    ) -> None:
        """Store the parts; no thread starts before the first batch is asked for.

        Args:
            make: Turns a job into a batch; called in worker threads. With mode "process" and
                no `worker` it must be picklable.
            jobs: The work, in the order of delivery; taken lazily.
            settings: Bounds and deadline.
            nbytes: Bytes a batch holds; None leaves `megabytes` without effect, but for
                batches of another process, whose bytes are known.
            describe: Names a job in errors, such as "step 12 of photos".
            worker: The process of mode "process", which may serve others, too, and is not
                closed; None starts one of this fetcher's own.
            here: Which jobs are done by threads of this process in mode "process", too.
            copier: How batches get onto a device; None leaves them where they are. Inline
                mode has none.
        """
        self._settings, self._describe = settings, describe
        self._inline = settings.mode == "inline"
        self._copier = None if self._inline else copier
        executors = _executors(make, settings, nbytes, worker)
        measured = nbytes is not None or settings.mode == "process"
        self._ahead: Lookahead[Job, BatchFuture[Job, Made]] = Lookahead(
            partial(_begin, executors, here if len(executors) > 1 else None),
            jobs,
            most=1 if self._inline else settings.batches,
            nbytes=_nbytes if measured else None,
            max_bytes=settings.megabytes * 2**20,
        )
        self._state = _State(self._ahead, executors, begins_ahead=not self._inline)
        self._shut: Callable[[], object] = self._state.close
        self._started: float | None = None
        self._making_s, self._first_s, self._elapsed_s = 0.0, 0.0, 0.0
        self._nbytes_given, self._at_once = 0, 0
        self.waited_s = 0.0
        self.delivered = 0

    def __iter__(self) -> Iterator[Made]:
        """Yield the batches; closes when the consumer stops, for whatever reason."""
        try:
            # Out of a list, so that it is the consumer's alone, who may let it go early.
            while given := [made for made in (self._next(),) if made is not None]:
                yield given.pop()
        finally:
            self.close()

    def close(self) -> None:
        """Give up what has not begun, wait shortly for what has, and leave nothing behind.

        A batch that hangs is not waited for: its thread ends when its read does.
        """
        self._shut()

    def pause(self) -> None:
        """Begin with no further batch until `resume`; what is ready is delivered."""
        self._state.pause()

    def resume(self) -> None:
        """Go on, from the batch that comes next."""
        self._state.resume()

    @property
    def report(self) -> FetchReport:
        """What was done so far, and what is ready now."""
        futures = self._ahead.begun()
        ready = [future for future in futures if future.done]
        return FetchReport(
            delivered=self.delivered,
            at_once=self._at_once,
            waited_s=self.waited_s,
            first_s=self._first_s,
            elapsed_s=self._elapsed_s,
            making_s=self._making_s,
            nbytes=self._nbytes_given,
            workers=0 if self._inline else self._settings.workers,
            ready=len(ready),
            making=len(futures) - len(ready),
            held=sum(future.nbytes for future in ready),
        )

    def _next(self) -> Made | None:
        """Return the next batch, None after the last one; accounts for the waiting."""
        self._refuse_closed()
        asked = time.monotonic()
        if self._started is None:
            self._started = asked
            # Only now: it keeps the jobs alive, and with them whoever gives them.
            self._shut = weakref.finalize(self, self._state.close)
        try:
            timeout = self._settings.timeout_s
            made = self._take(timeout) if self._copier is None else self._copied(self._copier)
        except BaseException:
            self._state.close(wait=False)
            raise
        now = time.monotonic()
        if made is not None:
            self._account(now - asked, now - self._started)
        return made

    def _account(self, waited: float, elapsed: float) -> None:
        self.waited_s += waited
        self._elapsed_s = elapsed
        if not self.delivered:
            self._first_s = waited
        self.delivered += 1

    def _take(self, timeout: float | None, *, counted: bool = True) -> Made | None:
        """Return the batch whose turn it is; None after the last one, or without a fetcher."""
        while (future := self._head()) is None:
            if self._ahead.exhausted:
                self._refuse_closed()
                return None
            self._wait_for_resume(timeout)
        self._at_once += counted and future.done and not self._inline
        if not future.wait(timeout):
            raise self._stalled(future)
        self._refuse_closed()
        made = self._made(future)
        self._ahead.pop()
        if not self._inline:
            self._ahead.fill()
        return made

    def _head(self) -> BatchFuture[Job, Made] | None:
        """Begin what there is room for, and return the future whose turn it is."""
        try:
            future = self._ahead.head()
        except Exception as error:
            error.add_note("while planning the next batch")
            raise
        # What was taken from the plan while this was closed is nobody's, and would never come.
        self._refuse_closed()
        return future

    def _made(self, future: BatchFuture[Job, Made]) -> Made:
        """Take the batch out of its future, or raise what went wrong."""
        if future.error is None:
            made, future.made = future.made, None
            self._making_s += future.seconds
            self._nbytes_given += future.nbytes
            return made  # type: ignore[return-value]
        future.error.add_note(f"while {future.stage} the batch of {self._describe(future.job)}")
        raise future.error

    def _copied(self, copier: DeviceCopier) -> Made | None:
        """Return the next batch from the device, where one is copied ahead."""
        if self._state.device is None:
            take = partial(self._take, None, counted=False)
            self._state.device = DevicePrefetcher(take, copier)
        device = self._state.device
        self._at_once += device.ready
        try:
            made = device.next(self._settings.timeout_s)
        except TimeoutError:
            raise self._stalled(next(iter(self._ahead.begun()), None)) from None
        if made is None:
            self._refuse_closed()
        return made

    def _wait_for_resume(self, timeout: float | None) -> None:
        gate = self._state.gate
        if not (gate.is_set() or gate.wait(timeout)):
            raise FetchError(
                f"no batch within prefetch.timeout_s={timeout:g} s: the fetcher is paused; call "
                "resume()"
            )
        self._refuse_closed()

    def _refuse_closed(self) -> None:
        if self._state.closed:
            raise FetchError("this fetcher is closed; iterate over the loader again")

    def _stalled(self, future: BatchFuture[Job, Made] | None) -> FetchError:
        """Return the error of a stall, with what each thread does; what hangs is not waited for."""
        elsewhere = "".join(executor.look() for executor in self._state.executors)
        late = "the next batch" if future is None else self._describe(future.job)
        error = FetchError(
            f"no batch within prefetch.timeout_s={self._settings.timeout_s:g} s: "
            f"{late} is still in the making. If the storage is merely slow, raise "
            "prefetch.timeout_s. Stages:\n"
            + stages(self._ahead.begun(), self._describe, self.delivered, self._ahead.paused)
            + f"\nWhat each thread does:\n{stacks()}"
            + (f"\n{elsewhere}" if elsewhere else "")
        )
        self._state.stuck = True
        return error


class _State(Generic[Job, Made]):
    """What outlives a fetcher by as long as it takes to close it."""

    def __init__(
        self,
        ahead: Lookahead[Job, BatchFuture[Job, Made]],
        executors: Sequence[Executor[Job, Made]],
        *,
        begins_ahead: bool,
    ) -> None:
        self.ahead, self.executors, self.begins_ahead = ahead, executors, begins_ahead
        self.device: DevicePrefetcher[Made] | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = self.stuck = False

    def pause(self) -> None:
        self.ahead.paused = True
        self.gate.clear()
        for executor in self.executors:
            executor.pause()

    def resume(self) -> None:
        if self.closed:
            return
        self.ahead.paused = False
        for executor in self.executors:
            executor.resume()
        self.gate.set()
        if self.begins_ahead:
            self.ahead.fill()

    def close(self, *, wait: bool = True) -> None:
        """Stop everything; a second time waits for what the first one did not wait for."""
        self.closed = True
        wait = wait and not self.stuck
        for future in self.ahead.drop():
            future.cancel()
        self.gate.set()
        for executor in self.executors if self.ahead.paused else ():
            executor.resume()  # a process may serve others, too
        if self.device is not None:
            self.device.wake()
        with contextlib.ExitStack() as stack:
            if self.device is not None:
                stack.callback(self.device.close, wait=wait)
            for executor in reversed(self.executors):
                stack.callback(executor.close, wait=wait)


def _nbytes(future: BatchFuture[Any, Any]) -> int | None:
    return future.nbytes if future.done else None


def _executors(
    make: Callable[[Job], Made],
    settings: Prefetch,
    nbytes: Callable[[Made], int] | None,
    worker: BatchWorker[Job, Made] | None,
) -> list[Executor[Job, Made]]:
    """Return what makes batches: threads of this process, the last; before it another process."""
    workers = 0 if settings.mode == "inline" else settings.workers
    threads: ThreadExecutor[Job, Made] = ThreadExecutor(make, workers, nbytes)
    if settings.mode != "process":
        return [threads]
    own = worker is None
    if worker is None:
        worker = BatchWorker(
            _ReadyMade(make), workers=settings.workers, timeout_s=settings.timeout_s
        )
    return [ProcessExecutor(worker, own=own), threads]


def _begin(
    executors: Sequence[Executor[Job, Made]], here: Callable[[Job], bool] | None, job: Job
) -> BatchFuture[Job, Made]:
    """Have the first executor take on a job, or the last one if it is done here."""
    return begin(executors[-1 if here is not None and here(job) else 0], job)


@dataclass(frozen=True)
class _ReadyMade(Generic[Job, Made]):
    """Opens what is open already; a picklable value where that is one."""

    make: Callable[[Job], Made]

    def __call__(self) -> Callable[[Job], Made]:
        return self.make
