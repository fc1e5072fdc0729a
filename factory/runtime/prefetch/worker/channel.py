"""The channel between a trainer and its worker process: messages, and descriptors beside them."""

import errno
import os
import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import Any

# Files that may come with one message; the system allows some 250.
MOST_FILES = 64
# Of a timeout of a socket, as the kernel takes it: seconds, microseconds.
_TIME = struct.Struct("@ll")


class Kind(IntEnum):
    """What a message says."""

    # To the worker process.
    SETUP = 1
    JOB = 2
    CANCEL = 3
    GATE = 4
    ASK = 5
    # From it.
    HELLO = 10
    READY = 11
    MADE = 12
    FAILED = 13
    BROKEN = 14
    ANSWER = 15
    LOG = 16
    MEMORY = 17


class Channel:
    """One end of a socket pair; any thread may send, one receives."""

    def __init__(self, sock: socket.socket, send_timeout_s: float | None = None) -> None:
        """Take over the socket.

        Args:
            sock: A connected Unix stream socket, in blocking mode.
            send_timeout_s: Seconds after which a message that the other end does not take is
                an error (BlockingIOError); None waits.
        """
        # Descriptors go over the socket itself, messages over another descriptor of it.
        self._socket, self._messages = sock, Connection(os.dup(sock.fileno()))
        self._sending = threading.Lock()
        if send_timeout_s is not None:
            seconds, rest = divmod(send_timeout_s, 1)
            # Of sending alone: a timeout of Python's socket would hold for receiving, too.
            value = _TIME.pack(int(seconds), int(rest * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, kind: Kind, *content: Any, files: Sequence[int] = ()) -> None:
        """Send a message whole.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        data = pickle.dumps((kind, content, len(files)), pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._messages.send_bytes(data)
            if files:
                socket.send_fds(self._socket, [b"\0"], files)

    def receive(self) -> tuple[Kind, tuple[Any, ...], list[int]] | None:
        """Wait for a message; None where the other end is gone.

        Raises:
            OSError: Files that came with it were lost, for want of descriptors.
        """
        try:
            data = self._messages.recv_bytes()
        except (OSError, EOFError):  # gone, or closed on this side
            return None
        kind, content, count = pickle.loads(data)  # noqa: S301 - from the other process of this run
        return kind, content, self._receive_files(count) if count else []

    def _receive_files(self, count: int) -> list[int]:
        _, files, _, _ = socket.recv_fds(self._socket, 1, count)
        for file in files:
            os.set_inheritable(file, False)  # whoever forks later takes none along
        if len(files) < count:
            for file in files:
                os.close(file)
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}; raise it by ulimit -n")
        return files

    def end(self) -> None:
        """Send nothing more: the other end sees that this one is done."""
        with suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self._messages.close()
        self._socket.close()


def watch(pid: int) -> int | None:
    """Return a descriptor that can be read once a process has ended; None on some systems."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an older kernel
        return None
