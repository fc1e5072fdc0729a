"""Main loop of the worker process: it serves its trainer, and ends when the trainer does."""

import faulthandler
import logging
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from factory.runtime.prefetch.executors import CLOSE_S, BatchFuture, ThreadExecutor, join
from factory.runtime.prefetch.report import stacks
from factory.runtime.prefetch.worker.channel import MOST_FILES, Channel, Kind, watch
from factory.runtime.prefetch.worker.exceptions import serialize

if TYPE_CHECKING:  # loaded where there are tensors, for it takes a second
    from factory.runtime.prefetch.worker.shared_buffers import SharedBufferPool

# Meant for the trainer, though terminals and schedulers send them to the whole group: it
# decides what comes of them, and its end is this process's end.
NOT_OURS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Writes what every thread does, also where a call that does not return holds the interpreter.
DUMP = signal.SIGUSR2
# Jobs that take less are left to one thread: rows are copied in a fraction of it, and others would
# wait as long for the interpreter. Pictures take more.
_QUICK_S = 0.005


def serve(control: int, dump: int, trainer: int) -> int:
    """Make batches until the other end of the socket is closed; return the exit status.

    Args:
        control: Descriptor of the socket.
        dump: Descriptor that `DUMP` writes to.
        trainer: The process at the other end.
    """
    for number in NOT_OURS:
        signal.signal(number, _leave_alone)
    faulthandler.register(DUMP, file=dump, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [*NOT_OURS, DUMP])
    for file in (control, dump):
        os.set_inheritable(file, False)
    channel = Channel(socket.socket(fileno=control))
    with suppress(OSError):  # the trainer may be gone by now
        channel.send(Kind.HELLO)
    messages = _Messages(channel, trainer)
    setup = messages.next()
    if setup is not None:
        loop = WorkerLoop(channel, *setup[1])
        while (message := messages.next(loop.hurry)) is not None:
            loop.take(*message)
        loop.close()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class _Messages:
    """What the trainer says, until it is done, or dead.

    The socket alone does not tell: a process that the trainer has forked holds it open.
    """

    def __init__(self, channel: Channel, trainer: int) -> None:
        self._channel, self._trainer = channel, trainer
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        ending = watch(trainer)
        if ending is not None:
            self._poll.register(ending, select.POLLIN)

    def next(self, hurry: Callable[[], bool] = bool) -> tuple[Kind, tuple[Any, ...]] | None:
        """Wait for a message; None at the end.

        Args:
            hurry: Asked before each waiting, and after so long again, as long as it says so.
        """
        while True:
            found = self._poll.poll(_QUICK_S * 1000 if hurry() else None)
            if os.getppid() != self._trainer:
                return None
            if found:
                if self._channel.fileno() not in {file for file, _ in found}:
                    return None
                message = self._channel.receive()
                return None if message is None else message[:2]


def _leave_alone(*signal_: object) -> None:
    """Do nothing; unlike an ignored signal, one with this is its default in other programs."""
    del signal_


class WorkerLoop:
    """Threads that make batches of the jobs that arrive, and send them off."""

    def __init__(self, channel: Channel, setup: dict[str, Any]) -> None:
        """Store the parts; what makes batches is opened by the first thread that needs it."""
        self._channel, self._setup = channel, setup
        self._opening, self._sharing = threading.Lock(), threading.Lock()
        self._memory: SharedBufferPool | None = None
        self._make: Callable[[Any], Any] | None = None
        self._futures: dict[int, BatchFuture[Any, None]] = {}
        self._executor: ThreadExecutor[Any, None] = ThreadExecutor(
            self._deliver, setup["workers"], None, name="factory-make"
        )
        logger = logging.getLogger("factory")
        logger.addHandler(_Forwarding(channel))
        logger.setLevel(setup["level"])
        logger.propagate = False

    def take(self, kind: Kind, content: tuple[Any, ...]) -> None:
        """Do what a message asks for."""
        if kind is Kind.JOB:
            number, job, released = content[0], pickle.loads(content[1]), content[2]  # noqa: S301
            for lent in released:
                self._shared().give_back(lent)
            future = self._futures[number] = BatchFuture((number, job))
            self._executor.submit(future)
        elif kind is Kind.CANCEL:
            self._cancel(*content)
        elif kind is Kind.GATE:
            (self._executor.resume if content[0] else self._executor.pause)()
        elif kind is Kind.ASK:
            ages = {number: future.age() for number, future in list(self._futures.items())}
            self._send(Kind.ANSWER, {"ages": ages, "stacks": stacks()})

    def hurry(self) -> bool:
        """Have more threads begin jobs where one takes long; tell whether to ask soon again.

        That is as long as there are jobs: threads leave work to one of them whenever it goes
        quickly, and do not see what the others are at.
        """
        ages = [future.age() or 0.0 for future in list(self._futures.values())]
        if max(ages, default=0.0) > _QUICK_S:
            self._executor.alone = False
        return bool(ages) and self._setup["workers"] > 1

    def close(self) -> None:
        """Stop, and let what is open go; what hangs is left."""
        logging.getLogger("factory").setLevel(logging.CRITICAL)  # nobody listens any more
        self._executor.close()
        ending = threading.Thread(target=self._let_go, name="factory-close", daemon=True)
        ending.start()
        join([ending], CLOSE_S)

    def _let_go(self) -> None:
        close = getattr(self._make, "close", None)
        if close is not None:
            close()

    def _cancel(self, numbers: list[int]) -> None:
        for number in numbers:
            future = self._futures.get(number)
            if future is not None and future.begun is None:
                future.cancelled = True
                self._futures.pop(number, None)

    def _deliver(self, numbered: tuple[int, Any]) -> None:
        number, job = numbered
        future = self._futures.get(number)
        if future is None:
            return  # cancelled at this moment
        try:
            make = self._opened()
        except BaseException as error:  # noqa: BLE001 - the trainer's
            self._send(Kind.BROKEN, serialize(error))
            return
        try:
            made = make(job)
            self._ship(number, made, future.age() or 0.0)
        except BaseException as error:  # noqa: BLE001 - the trainer's
            self._send(Kind.FAILED, number, serialize(error))
        finally:
            self._futures.pop(number, None)
            self._executor.alone = (future.age() or 0.0) < _QUICK_S

    def _opened(self) -> Callable[[Any], Any]:
        """Return what makes batches, opened by the first thread that asks."""
        if self._make is None:
            with self._opening:
                if self._make is None:
                    self._make = self._open()
        return self._make

    def _open(self) -> Callable[[Any], Any]:
        if self._setup["main"]:
            multiprocessing.spawn.prepare(self._setup["main"])
        opener = pickle.loads(self._setup["opener"])  # noqa: S301 - from the trainer
        make: Callable[[Any], Any] = opener()
        gather_in = getattr(make, "gather_in", None)
        if gather_in is not None:
            gather_in(self._shared())
        if "torch" in sys.modules:
            # Several threads copy here already; more would take the trainer's processors.
            sys.modules["torch"].set_num_threads(1)
        self._send(Kind.READY)
        return make

    def _shared(self) -> "SharedBufferPool":
        """Return the memory that the trainer sees; made for the first tensor, as torch is slow."""
        with self._sharing:
            if self._memory is None:
                from factory.runtime.prefetch.worker.shared_buffers import SharedBufferPool

                self._memory = SharedBufferPool()
            return self._memory

    def _ship(self, number: int, made: Any, seconds: float) -> None:
        """Say where a batch is; what of it the trainer does not see yet is copied or sent."""
        from factory.runtime.prefetch.worker.packed_batch import pack

        packed = pack(made, self._shared)
        try:
            retired: list[int] = []
            if packed.blocks:
                self._hand_over(packed.blocks)
                retired = self._shared().retired()
            self._send(Kind.MADE, number, seconds, retired, *packed)
        except BaseException:
            for lent in packed.blocks:
                self._shared().give_back(lent)
            raise

    def _hand_over(self, numbers: Sequence[int]) -> None:
        """Send the descriptors of segments that the trainer does not know yet."""
        files = self._shared().hand_over(numbers)
        try:
            new = list(files)
            for at in range(0, len(new), MOST_FILES):
                some = new[at : at + MOST_FILES]
                self._send(Kind.MEMORY, some, files=[files[each] for each in some])
        finally:
            for file in files.values():
                os.close(file)

    def _send(self, kind: Kind, *content: Any, files: Sequence[int] = ()) -> None:
        with suppress(ConnectionError):  # the trainer is gone: the main thread sees it, too
            self._channel.send(kind, *content, files=files)


class _Forwarding(logging.Handler):
    """Sends records to the trainer, whose log they belong in."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        with suppress(OSError):
            self._channel.send(Kind.LOG, record.name, record.levelno, text)
