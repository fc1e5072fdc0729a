"""One run of the process that makes batches: its start, its frames, and its end."""

import contextlib
import itertools
import json
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
from factory.runtime.batches.sent_once import Sender
from factory.runtime.prefetch.executors import CLOSE_S, join
from factory.runtime.prefetch.future import Ticket
from factory.runtime.prefetch.worker.channel import Channel, Kind, watch
from factory.runtime.prefetch.worker.exceptions import received
from factory.runtime.prefetch.worker.main import DUMP, NOT_OURS
from factory.runtime.prefetch.worker.packed_batch import Packed, unpack
from factory.runtime.prefetch.worker.shared_files import Leases

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


class Running:
    """The process while it runs, from this side.

    Attributes:
        process: The process.
        ended: Whether it is gone, or going.
        up: Whether it has said a word.
        ready: Whether it has opened what makes batches.
    """

    def __init__(self, setup: bytes, *, timeout_s: float) -> None:
        """Start the process.

        Raises:
            FetchError: It cannot be started.
        """
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._tickets: dict[int, Ticket[Any, Any]] = {}
        self._numbers = itertools.count()
        self._answers: SimpleQueue[bytes] = SimpleQueue()
        self._broken: bytes | None = None
        self._failure: Exception | None = None
        self._leases, self._sender = Leases(), Sender()
        self._submitting = threading.Lock()
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
                f"the process that makes batches cannot be started ({error}); {INSTEAD}"
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

    def submit(self, ticket: Ticket[Any, Any]) -> None:
        """Send a job."""
        number = next(self._numbers)
        with self._submitting:  # what is sent once goes with the first that has it
            released = self._leases.take_released()
            try:
                body = self._sender.dumps((number, ticket.job, released))
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                self._leases.released.extend(released)
                ticket.fail(error)
                return
            with self._lock:
                if not self.ended:
                    self._tickets[number] = ticket
            if number in self._tickets:
                self._send_job(ticket, body)
            else:
                ticket.fail(self._reason([ticket]))

    def _send_job(self, ticket: Ticket[Any, Any], body: bytes) -> None:
        try:
            self._channel.send(Kind.JOB, body)
        except BlockingIOError:
            # Part of the job may be sent, so that nothing more can be said to it.
            ticket.fail(
                FetchError(f"the process that makes batches takes no job: it hangs; {INSTEAD}")
            )
            self.process.kill()
        except OSError:
            pass  # it is gone: the receiver completes every ticket

    def cancel(self, tickets: Sequence[Ticket[Any, Any]]) -> None:
        """Give up jobs, if they are here."""
        gone = set(map(id, tickets))
        numbers = [n for n, each in list(self._tickets.items()) if id(each) in gone]
        for number in numbers:
            self._tickets.pop(number, None)
        if numbers and not self.foreign:
            self._tell(Kind.CANCEL, json.dumps(numbers).encode())

    def gate(self, state: bytes) -> None:
        """Tell whether further jobs may be begun: b"open" or b"shut"."""
        self._tell(Kind.GATE, state)

    def look(self) -> str:
        """Return what its threads do, and note in the tickets for how long they do it."""
        title = f"In the process that makes batches (pid {self.process.pid}"
        title += ")" if self.ready else f", starting for {time.monotonic() - self._began:.1f} s)"
        self._tell(Kind.ASK)
        try:
            answer = json.loads(self._answers.get(timeout=_ANSWER_S))
        except Empty:
            return f"{title}, which did not answer:\n{self._dumped()}"
        now = time.monotonic()
        for number, age in answer["ages"].items():
            ticket = self._tickets.get(int(number))
            if ticket is not None and age is not None:
                ticket.begun = now - age
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
        self._fail_all(lambda _: FetchError("the process that makes batches is closed"))
        self._channel.close()
        os.close(self._dump)
        if self._ending is not None:
            os.close(self._ending)
        self._leases.close()

    def _tell(self, kind: Kind, body: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            self._channel.send(kind, body)

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        if self._ending is not None:
            # The socket's end alone may be held open by a process that it has started.
            poll.register(self._ending, select.POLLIN)
        while True:
            if not (
                self._channel.pending or self._channel.fileno() in {file for file, _ in poll.poll()}
            ):
                break
            try:
                frame = self._channel.receive()
                if frame is None:
                    break
                self._take(*frame)
            except Exception as error:  # noqa: BLE001 - the consumers'
                self._failure = error
                self._channel.end()  # nothing more can be said to it, and it ends
                break
            del frame
        with self._lock:
            self.ended = True
        if not self._closing:
            self._lost()

    def _take(self, kind: Kind, body: bytes, files: list[int]) -> None:
        if kind is Kind.MADE:
            self._arrive(*pickle.loads(body))  # noqa: S301 - from our own process
        elif kind is Kind.MEMORY:
            self._leases.add(json.loads(body), files)
        elif kind is Kind.FAILED:
            number, data = pickle.loads(body)  # noqa: S301 - as above
            ticket = self._tickets.pop(number, None)
            if ticket is not None:
                ticket.fail(received(data))
        elif kind is Kind.BROKEN:
            self._broken = body
            with self._lock:
                self.ended = True
            self._fail_all(self._reason)
        elif kind is Kind.HELLO:
            self.up = True
        elif kind is Kind.READY:
            self.ready = True
        elif kind is Kind.ANSWER:
            self._answers.put(body)
        elif kind is Kind.LOG:
            name, level, text = json.loads(body)
            logging.getLogger(name).log(level, "%s", text)

    def _arrive(self, number: int, seconds: float, retired: list[int], *parts: Any) -> None:
        for gone in retired:
            self._leases.forget(gone)
        packed = Packed(*parts)
        leases = {segment: self._leases.lend(segment) for segment in packed.segments}
        ticket = self._tickets.pop(number, None)
        if ticket is None or ticket.cancelled:
            return  # with the leases the segments are free again
        try:
            made = unpack(packed, leases)
        except Exception as error:  # noqa: BLE001 - raised at the consumer
            ticket.fail(error)
        else:
            ticket.complete(made, packed.tensor_bytes, seconds)

    def _lost(self) -> None:
        """Say what became of the process, to everybody who waits for a batch of it."""
        if not self._wait_exit(_EXIT_S):
            self.process.kill()  # its socket is gone: no batch will come
        self._reap()
        self._fail_all(self._reason)

    def _fail_all(self, reason: Callable[[list[Ticket[Any, Any]]], BaseException]) -> None:
        with self._lock:
            tickets = [self._tickets.pop(number) for number in sorted(self._tickets)]
        for ticket in tickets:
            if not ticket.done:
                ticket.fail(reason(tickets))

    def _reason(self, tickets: list[Ticket[Any, Any]]) -> BaseException:
        if self._broken is not None:
            return received(self._broken)
        if self._failure is not None:
            error = FetchError(
                "what the process that makes batches has sent cannot be taken "
                f"({self._failure}); {INSTEAD}"
            )
            error.__cause__ = self._failure
            return error
        # Its socket closes a moment before its exit status is there, and who asks while another
        # thread takes that in is told of none.
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_ANSWER_S)
        how = "is gone" if code is None else cause(code)
        when = "while it made" if self.ready else "while it started, before it made"
        jobs = "; ".join(str(ticket.job) for ticket in tickets[:2])
        return FetchError(
            f"the process that makes batches (pid {self.process.pid}) {how} {when} {jobs}. If "
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
