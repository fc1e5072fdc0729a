"""Abort of a process that may be blocked in a collective for ever."""

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable

from factory.errors import PeerError

logger = logging.getLogger("factory")

# Exit status of a process that could not be ended otherwise: EX_TEMPFAIL of sysexits.h,
# "try again later", for the run can be resumed.
EXIT_STATUS = 75
# Longest time the log may take, seconds: it may lie on a file system that hangs, too.
LOG_S = 2.0


def log_report(report: str) -> None:
    """Write a report to the log, which may hang itself."""
    _bounded(lambda: logger.critical("%s", report))


def end(
    report: str, thread: int, acknowledged: threading.Event, grace_s: float,
    leave: Callable[[int], None] = os._exit,
) -> None:  # fmt: skip
    """End the process: by an error in a thread, or hard if the thread does not end.

    A thread that is blocked in a collective sits in C++ and runs no Python: neither an
    exception nor a signal's handler reaches it. What would free it does not exist for
    all backends: `abort` and `shutdown` of gloo's process group return without waking a
    pending operation (torch 2.13), destroying the group waits for it, and closing the sockets
    below it is nothing torch offers. So the error gets its chance, for a thread that does
    run Python then unwinds and cleans up; after that the process leaves, without clean-up.

    Args:
        report: What happened; its first line is the message of the error.
        thread: Ident of the thread that trains.
        acknowledged: Set by that thread when it is ending.
        grace_s: Seconds the thread has for it.
        leave: Ends the process at once.
    """
    if not acknowledged.is_set():
        _raise_in(thread, report)
    if not acknowledged.wait(grace_s):
        _bounded(_flush)
        leave(EXIT_STATUS)


def _raise_in(thread: int, report: str) -> None:
    class ReportedPeerError(PeerError):
        """The error with its message: what is raised in another thread is a class."""

        def __init__(self) -> None:
            super().__init__(report.split("\n", maxsplit=1)[0])

    ReportedPeerError.__name__ = ReportedPeerError.__qualname__ = PeerError.__name__
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(ReportedPeerError)
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.shutdown()


def _bounded(call: Callable[[], None]) -> None:
    """Call something that may hang, for a while."""
    thread = threading.Thread(target=call, name="factory-monitor-log", daemon=True)
    thread.start()
    thread.join(LOG_S)
