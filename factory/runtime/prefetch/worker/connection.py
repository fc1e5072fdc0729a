"""The trainer's connection to one worker process: its start, its messages, and its end."""

import contextlib
import itertools
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from factory.errors import FetchError
from factory.runtime.prefetch.executors import CLOSE_S, BatchFuture, join
from factory.runtime.prefetch.worker.channel import Channel, Kind, watch
from factory.runtime.prefetch.worker.exceptions import deserialize
from factory.runtime.prefetch.worker.main import DUMP, NOT_OURS
from factory.runtime.prefetch.worker.packed_batch import PackedBatch, unpack

# It ends itself, hard, when its work is over: a thread that hangs would hold up a soft end.
_LAUNCH = (
    "import os, sys; sys.path[:] = sys.argv[4:]; "
    "from factory.runtime.prefetch.worker.main import serve; "
    "os._exit(serve(*map(int, sys.argv[1:4])))"
)
# It closes threads, then what they used, each within CLOSE_S; a second more to start doing so.
_EXIT_S = 2 * CLOSE_S + 1
# For an answer of a thread that does nothing else than answer, and for an exit that has begun.
_ANSWER_S = 1.0
_DUMP_BYTES = 2**16  # what a pipe holds
INSTEAD = "prefetch=thread does without that process"


class WorkerConnection:
    """The process while it runs, from this side.

    Attributes:
        process: The process.
        ended: Whether it is gone, or going.
        up: Whether it has said a word.
        ready: Whether it has opened what makes batches.
    """

    def __init__(self, setup: dict[str, Any], *, timeout_s: float) -> None:
        """Start the process.

        Raises:
            FetchError: It cannot be started.
        """
        # Only here: it brings torch, and the worker process reads this module, too.
        from factory.runtime.prefetch.worker.shared_buffers import MappedBlocks

        self._pid = os.getpid()
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._futures: dict[int, BatchFuture[Any, Any]] = {}
        self._numbers = itertools.count()
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._broken: bytes | None = None
        self._failure: Exception | None = None
        self._blocks = MappedBlocks()
        self.ended = self.up = self.ready = self._closing = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._dump, dump = os.pipe()
        os.set_blocking(self._dump, False)
        try:
            self.process = _launch(theirs.fileno(), dump)
        except OSError as error:
            ours.close()
            os.close(self._dump)
            raise FetchError(
                f"the worker process cannot be started ({error}); {INSTEAD}"
            ) from error
        finally:
            theirs.close()
            os.close(dump)
        self._ending = watch(self.process.pid)
        self._channel = Channel(ours, timeout_s)
        self._receiver = threading.Thread(target=self._receive, name="factory-receive", daemon=True)
        self._receiver.start()
        with contextlib.suppress(OSError):  # gone already: the receiver says so
            self._channel.send(Kind.SETUP, setup)

    @property
    def foreign(self) -> bool:
        """Whether another process started it, of which this one is a fork."""
        return os.getpid() != self._pid

    def submit(self, future: BatchFuture[Any, Any]) -> None:
        """Send a job."""
        number = next(self._numbers)
        try:
            job = pickle.dumps(future.job)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            future.fail(error)
            return
        with self._lock:
            if not self.ended:
                self._futures[number] = future
        if number in self._futures:
            self._send_job(future, number, job)
        else:
            future.fail(self._reason([future]))

    def _send_job(self, future: BatchFuture[Any, Any], number: int, job: bytes) -> None:
        try:
            self._channel.send(Kind.JOB, number, job, self._blocks.take_released())
        except BlockingIOError:
            # Part of the job may be sent, so that nothing more can be said to it.
            future.fail(FetchError(f"the worker process takes no job: it hangs; {INSTEAD}"))
            self.process.kill()
        except OSError:
            pass  # it is gone: the receiver completes every future

    def cancel(self, futures: Sequence[BatchFuture[Any, Any]]) -> None:
        """Give up jobs, if they are here."""
        gone = set(map(id, futures))
        numbers = [n for n, each in list(self._futures.items()) if id(each) in gone]
        for number in numbers:
            self._futures.pop(number, None)
        if numbers and not self.foreign:
            self._tell(Kind.CANCEL, numbers)

    def gate(self, *, opened: bool) -> None:
        """Tell whether further jobs may be begun."""
        self._tell(Kind.GATE, opened)

    def look(self) -> str:
        """Return what its threads do, and note in the futures for how long they do it."""
        title = f"In the worker process (pid {self.process.pid}"
        title += ")" if self.ready else f", starting for {time.monotonic() - self._began:.1f} s)"
        self._tell(Kind.ASK)
        try:
            answer = self._answers.get(timeout=_ANSWER_S)
        except Empty:
            return f"{title}, which did not answer:\n{self._dumped()}"
        now = time.monotonic()
        for number, age in answer["ages"].items():
            future = self._futures.get(number)
            if future is not None and age is not None:
                future.begun = now - age
        return f"{title}:\n{answer['stacks']}"

    def close(self, *, wait: bool = True) -> None:
        """End the process, and let go of everything; prompt, whatever it is doing.

        Args:
            wait: Let it close what it has open; else it is killed.
        """
        if self.foreign:
            self._channel.close()  # the socket is the other process's, too, and stays open there
            return
        self._closing = self.ended = True
        self._channel.end()
        # One that has not said a word has nothing open yet that it should close.
        if not (wait and self.up and self._wait_exit(_EXIT_S)):
            self.process.kill()
        self._reap()
        join([self._receiver], CLOSE_S)
        self._fail_all(lambda _: FetchError("the worker process is closed"))
        self._channel.close()
        os.close(self._dump)
        if self._ending is not None:
            os.close(self._ending)
        self._blocks.close()

    def _tell(self, kind: Kind, *content: Any) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(kind, *content)

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        if self._ending is not None:
            # The socket's end alone may be held open by a process that it has started.
            poll.register(self._ending, select.POLLIN)
        while True:
            if self._channel.fileno() not in {file for file, _ in poll.poll()}:
                break
            try:
                message = self._channel.receive()
                if message is None:
                    break
                self._take(*message)
            except Exception as error:  # noqa: BLE001 - the consumers'
                self._failure = error
                self._channel.end()  # nothing more can be said to it, and it ends
                break
            del message
        with self._lock:
            self.ended = True
        if not self._closing:
            self._lost()

    def _take(self, kind: Kind, content: tuple[Any, ...], files: list[int]) -> None:
        if kind is Kind.MADE:
            self._arrive(*content)
        elif kind is Kind.MEMORY:
            self._blocks.add(content[0], files)
        elif kind is Kind.FAILED:
            number, data = content
            future = self._futures.pop(number, None)
            if future is not None:
                future.fail(deserialize(data))
        elif kind is Kind.BROKEN:
            self._broken = content[0]
            with self._lock:
                self.ended = True
            self._fail_all(self._reason)
        elif kind is Kind.HELLO:
            self.up = True
        elif kind is Kind.READY:
            self.ready = True
        elif kind is Kind.ANSWER:
            self._answers.put(content[0])
        elif kind is Kind.LOG:
            name, level, text = content
            logging.getLogger(name).log(level, "%s", text)

    def _arrive(self, number: int, seconds: float, retired: list[int], *parts: Any) -> None:
        for gone in retired:
            self._blocks.forget(gone)
        packed = PackedBatch(*parts)
        blocks = {block: self._blocks.lend(block) for block in packed.blocks}
        future = self._futures.pop(number, None)
        if future is None or future.cancelled:
            return  # with the leases the segments are free again
        try:
            made = unpack(packed, blocks)
        except Exception as error:  # noqa: BLE001 - raised at the consumer
            future.fail(error)
        else:
            future.complete(made, packed.tensor_bytes, seconds)

    def _lost(self) -> None:
        """Fail all jobs of a process that is gone, with what became of it."""
        if not self._wait_exit(_EXIT_S):
            self.process.kill()  # its socket is gone: no batch will come
        self._reap()
        self._fail_all(self._reason)

    def _fail_all(self, reason: Callable[[list[BatchFuture[Any, Any]]], BaseException]) -> None:
        with self._lock:
            futures = [self._futures.pop(number) for number in sorted(self._futures)]
        for future in futures:
            if not future.done:
                future.fail(reason(futures))

    def _reason(self, futures: list[BatchFuture[Any, Any]]) -> BaseException:
        if self._broken is not None:
            return deserialize(self._broken)
        if self._failure is not None:
            error = FetchError(
                f"what the worker process has sent cannot be taken ({self._failure}); {INSTEAD}"
            )
            error.__cause__ = self._failure
            return error
        # Its socket closes a moment before its exit status is there, and `wait` returns none while
        # another thread waits, too.
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_ANSWER_S)
        how = "is gone" if code is None else cause(code)
        when = "while it made" if self.ready else "while it started, before it made"
        jobs = "; ".join(str(future.job) for future in futures[:2])
        return FetchError(
            f"the worker process (pid {self.process.pid}) {how} {when} {jobs}. If "
            "memory ran out, lower prefetch.batches, prefetch.megabytes or prefetch.workers; "
            f"{INSTEAD}"
        )

    def _reap(self) -> None:
        """Take in the exit status; one that the system holds in a read is killed later on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_S)

    def _wait_exit(self, seconds: float) -> bool:
        if self._ending is None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _dumped(self) -> str:
        """Return what threads do in a process whose interpreter is held by one of them."""
        with contextlib.suppress(OSError):
            self.process.send_signal(DUMP)
        poll = select.poll()
        poll.register(self._dump, select.POLLIN)
        parts: list[bytes] = []
        # It is written in several pieces, at once; the first pause is the end of it.
        while poll.poll(_ANSWER_S * 1000 if not parts else 100):
            part = os.read(self._dump, _DUMP_BYTES)
            if not part:
                break
            parts.append(part)
        return b"".join(parts).decode(errors="replace") or "it is stopped, or hangs in the system"


def _launch(control: int, dump: int) -> "subprocess.Popen[bytes]":
    # Until it has said what becomes of them: a Ctrl-C in its first moments would be a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*NOT_OURS, DUMP])
    try:
        return subprocess.Popen(  # noqa: S603 - this interpreter, and our own words
            [sys.executable, "-c", _LAUNCH, *map(str, [control, dump, os.getpid(), *sys.path])],
            stdin=subprocess.DEVNULL,
            pass_fds=(control, dump),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cause(code: int) -> str:
    """Return what an exit status of a process says."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
    return f"was killed by {name}{memory}"
