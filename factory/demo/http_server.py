"""HTTP server of a folder on loopback, for the demo's CSV of URLs."""

import re
import socket
import threading
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self

from factory.errors import ObjectNotFoundError, StorageUnavailableError

# How often the accept loop looks whether it should end, so the longest that close() waits for it.
POLL_SECONDS = 0.05
# A client that connects and then says nothing holds its thread no longer than this.
IDLE_SECONDS = 30
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte asked for; None means serve the whole.

    Several ranges, and headers that are no byte range, are ignored, as RFC 9110 allows.

    Raises:
        ValueError: The range begins behind the end.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size - int(last), 0), size - 1
        if int(last) == 0:
            raise ValueError(header)
    else:
        start, end = int(first), min(int(last or size), size - 1)
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise ValueError(header)
    return start, end


class _Responder(SimpleHTTPRequestHandler):
    """Answers GET and HEAD for the files below one folder, and nothing else."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: "_Server"

    def log_message(self, *_: Any) -> None:
        """Stay quiet: the client's own progress says what was fetched."""

    def list_directory(self, path: Any) -> None:
        """Refuse to list a folder."""
        del path
        self.send_error(HTTPStatus.NOT_FOUND)

    def send_head(self) -> BytesIO | BinaryIO | None:
        """Send the head of the answer and return its body, if there is one."""
        path = Path(self.translate_path(self.path))
        data = self.server.read(path)
        if data is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        try:
            span = _parse_range(self.headers.get("Range", ""), len(data))
        except ValueError:
            self._refuse_range(len(data))
            return None
        self._send_headers(path, data, span)
        return BytesIO(data if span is None else data[span[0] : span[1] + 1])

    def _send_headers(self, path: Path, data: bytes, span: tuple[int, int] | None) -> None:
        if span is None:
            self.send_response(HTTPStatus.OK)
            length = len(data)
        else:
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1]}/{len(data)}")
            length = span[1] - span[0] + 1
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def _refuse_range(self, size: int) -> None:
        self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        self.send_header("Content-Range", f"bytes */{size}")
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    """A threaded server that remembers its connections, so that it can close them."""

    # Joined by server_close: no thread outlives the server.
    daemon_threads = False
    # Room for a client that opens its whole pool at once.
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Responder)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Noted before its thread exists: hang_up misses no connection that was accepted.
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        _Responder(request, client_address, self, directory=str(self.root))

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def read(self, path: Path) -> bytes | None:
        """Return a file's bytes, or None where there is none that may be served."""
        try:
            # Resolved, so that neither '..' nor a symbolic link leads out of the folder.
            real = path.resolve()
            return real.read_bytes() if real.is_relative_to(self.root) else None
        except (OSError, ValueError):
            return None  # absent, a folder, unreadable, or no name a file can have

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet about clients that hang up in the middle of an answer."""

    def hang_up(self) -> None:
        """End every connection, so that the threads serving them return."""
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster


class HttpServer:
    """Serves the files below a folder on 127.0.0.1, at a port the system chooses.

    Answers GET and HEAD, with single byte ranges; anything outside the folder, and the
    listing of a folder, is a 404. Use it in a `with` block, or call `start` and `close`.
    """

    def __init__(self, directory: Path) -> None:
        """Remember the folder; nothing is opened before `start`."""
        self.directory = directory
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        """Show the folder, and the address while serving."""
        where = f", url={self.url!r}" if self._server else ""
        return f"HttpServer({str(self.directory)!r}{where})"

    @property
    def url(self) -> str:
        """The address of the folder, with a trailing '/'.

        Raises:
            StorageUnavailableError: The server is not running.
        """
        if self._server is None:
            raise StorageUnavailableError("the demo's HTTP server is not running; call start()")
        return f"http://127.0.0.1:{self._server.server_port}/"

    def start(self) -> Self:
        """Begin to serve; starting twice is no error.

        Raises:
            ObjectNotFoundError: The folder does not exist.
        """
        if self._server is not None:
            return self
        if not self.directory.is_dir():
            raise ObjectNotFoundError(f"no folder {str(self.directory)!r} to serve over HTTP")
        self._server = _Server(self.directory.resolve())
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": POLL_SECONDS},
            name="factory-http",
            # So that a run that forgets close() is not held up by it.
            daemon=True,
        )
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, hang up on every client and join all threads; safe to repeat."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
