"""A socket of JSON messages, one a line, on which neither side ever blocks."""

import json
import socket
from typing import Any

# Longest message, bytes: what is known of ten thousand processes takes two million.
LONGEST = 8 * 2**20
# Read at a time, bytes.
PART = 2**16


class JsonSocket:
    """A connection that carries one JSON value a line, and blocks nobody.

    What the other side is too slow to take is kept; while something is kept, further messages
    are left out, for each tells the whole state anew.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Take over an open connection."""
        connection.setblocking(False)
        self.socket = connection
        self._read, self._unsent = b"", b""

    def receive(self) -> list[Any]:
        """Return the messages that have come in whole.

        Raises:
            ConnectionError: The other side has ended, or sends what is no message. Messages
                that came before are returned first.
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
        """Send a message, or leave it out if an earlier one is still on its way.

        Raises:
            ConnectionError: The other side has ended.
        """
        if not self.flush():
            return
        self._unsent = json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Send on what was kept; tell whether all of it is sent.

        Raises:
            ConnectionError: The other side has ended.
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
        """Send what was kept and a last message, waiting for the other side for a while.

        Raises:
            OSError: The other side has ended, or takes nothing.
        """
        self.socket.settimeout(seconds)
        self.socket.sendall(self._unsent + json.dumps(message).encode() + b"\n")
        self._unsent = b""

    def close(self) -> None:
        """End the connection."""
        self.socket.close()
