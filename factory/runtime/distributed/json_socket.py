"""A socket of JSON messages, one a line, on which neither side ever blocks."""

import json
import socket
from typing import Any

# Longest message, bytes: what is known of ten thousand processes takes two million.
LONGEST = 8 * 2**20
# Read at a time, bytes.
PART = 2**16


class JsonSocket:
    """A connection that carries one JSON value a line and never blocks.

    Bytes that the other side is too slow to read are buffered; while some are, further messages
    are skipped, since each carries the whole state.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Take over an open connection."""
        connection.setblocking(False)
        self.socket = connection
        self._read, self._unsent = b"", b""

    def receive(self) -> list[Any]:
        """Return the messages that have arrived completely.

        Raises:
            ConnectionError: The other side has closed, or sent something that is no message.
                Messages that arrived before are returned first.
        """
        ended = False
        while not ended:
            try:
                part = self.socket.recv(PART)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            ended = not part
            self._read += part
            if len(self._read) > LONGEST:
                raise ConnectionError("a message without an end")
        *lines, self._read = self._read.split(b"\n")
        if ended and not lines:
            raise ConnectionError("the other side has ended")
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConnectionError(f"not a message: {error}") from error

    def send(self, message: Any) -> None:
        """Send a message, or skip it if an earlier one is still being sent.

        Raises:
            ConnectionError: The other side has closed.
        """
        if not self.flush():
            return
        self._unsent = json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Send buffered bytes; tell whether all of them are sent.

        Raises:
            ConnectionError: The other side has closed.
        """
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectionError(str(error)) from error
        return True

    def finish(self, message: Any, seconds: float) -> None:
        """Send buffered bytes and a last message, waiting for the other side up to a timeout.

        Raises:
            OSError: The other side has closed, or does not read.
        """
        self.socket.settimeout(seconds)
        self.socket.sendall(self._unsent + json.dumps(message).encode() + b"\n")
        self._unsent = b""

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
