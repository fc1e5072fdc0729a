"""How do two processes of a run talk: short frames over a Unix socket, files beside them."""

import errno
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum

# Kind, bytes that follow, and files that come with the frame.
_HEAD = struct.Struct("<BIB")
# Files that may come with one frame; the system allows some 250.
MOST_FILES = 64
# Read at a time, bytes: some frames as they usually are; and more of one that is known to be long.
_PART, _LARGE_PART = 2**16, 2**20
# Of a timeout of a socket, as the kernel takes it: seconds, microseconds.
_TIME = struct.Struct("@ll")


class Kind(IntEnum):
    """What a frame says."""

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
            send_timeout_s: Seconds after which a frame that the other end does not take is
                an error (BlockingIOError); None waits.
        """
        self._socket, self._sending = sock, threading.Lock()
        self._files: deque[int] = deque()
        # What has come, and where in it the frame ends that comes first, as far as that is known.
        self._read, self._end = b"", _HEAD.size
        if send_timeout_s is not None:
            seconds, rest = divmod(send_timeout_s, 1)
            # Of sending alone: a timeout of Python's socket would hold for receiving, too.
            value = _TIME.pack(int(seconds), int(rest * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def fileno(self) -> int:
        """Return the socket's descriptor, to wait on."""
        return self._socket.fileno()

    def send(self, kind: Kind, body: bytes = b"", files: Sequence[int] = ()) -> None:
        """Send a frame whole.

        Raises:
            OSError: The other end is gone, or does not read.
        """
        data = _HEAD.pack(kind, len(body), len(files)) + body
        with self._sending:
            if files:
                sent = socket.send_fds(self._socket, [data], list(files))
            else:
                sent = self._socket.send(data)
            if sent < len(data):
                self._socket.sendall(memoryview(data)[sent:])

    @property
    def pending(self) -> bool:
        """Whether a frame is here as a whole, so that `receive` need not wait."""
        return self._end <= len(self._read)

    def receive(self) -> tuple[Kind, bytes, list[int]] | None:
        """Wait for a frame; None where the other end is gone.

        Raises:
            OSError: Files that came with it were lost, for want of descriptors.
        """
        while not self.pending:
            if not self._fill():
                return None
        kind, _, files = _HEAD.unpack_from(self._read)
        body = self._read[_HEAD.size : self._end]
        self._read = self._read[self._end :]
        self._look()
        if len(self._files) < files:
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}; raise it by ulimit -n")
        return Kind(kind), body, [self._files.popleft() for _ in range(files)]

    def _look(self) -> None:
        """Note where the frame ends that has begun, as far as that is known."""
        self._end = _HEAD.size
        if len(self._read) >= _HEAD.size:
            self._end += _HEAD.unpack_from(self._read)[1]

    def _fill(self) -> bool:
        """Read on to where the frame ends, as far as that is known; False where nobody sends."""
        parts, length = [self._read], len(self._read)
        while length < self._end:
            try:
                part = self._some(max(_PART, min(self._end - length, _LARGE_PART)))
            except OSError:  # gone, or closed on this side
                return False
            if not part:
                return False
            parts.append(part)
            length += len(part)
        self._read = b"".join(parts)
        self._look()
        return True

    def _some(self, length: int) -> bytes:
        data, found, _, _ = socket.recv_fds(self._socket, length, MOST_FILES)
        for file in found:
            os.set_inheritable(file, False)  # whoever forks later takes none along
        self._files.extend(found)
        return data

    def end(self) -> None:
        """Send nothing more: the other end sees that this one is done."""
        with suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket, and files that nobody took."""
        self._socket.close()
        while self._files:
            os.close(self._files.popleft())


def watch(pid: int) -> int | None:
    """Return a descriptor that can be read once a process has ended; None on some systems."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an older kernel
        return None
