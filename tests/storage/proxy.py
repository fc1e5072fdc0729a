"""A proxy in front of a real server, which does to answers what networks and servers do."""

import hashlib
import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# Of headers that belong to one connection, and are not passed on.
_HOP = frozenset(("connection", "keep-alive", "transfer-encoding"))
# Longer than any test waits; a fault that holds on ends when the proxy does.
_FOR_EVER_S = 60.0


@dataclass
class Answer:
    """What the server behind the proxy said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Page(BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def pass_on(self) -> None:
        """Ask the server behind, or do what the fault says instead."""
        size = int(self.headers.get("Content-Length") or 0)
        self.asked = self.rfile.read(size)
        fault = self.server.begun(self.command, self.path)
        try:
            (fault or honest)(self)
        finally:
            self.server.ended()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = pass_on  # noqa: N815 - the library's names

    def answer(self) -> Answer:
        """Return what the server behind answers; asks it once."""
        upstream = http.client.HTTPConnection(self.server.host, timeout=20)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            upstream.request(self.command, self.path, self.asked or None, headers)
            said = upstream.getresponse()
            kept = [(name, value) for name, value in said.getheaders() if name.lower() not in _HOP]
            return Answer(said.status, kept, said.read())
        finally:
            upstream.close()

    def begin(self, answer: Answer) -> None:
        """Send the answer's head."""
        self.send_response_only(answer.status)
        names = {name.lower() for name, _ in answer.headers}
        for name, value in answer.headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def part(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.command != "HEAD":
            self.wfile.write(data)
            self.wfile.flush()

    def hang_up(self, *, hard: bool = False) -> None:
        """End the connection; hard by a reset, which loses what is on its way."""
        self.close_connection = True
        if hard:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.wfile = _Nowhere()  # type: ignore[assignment]
        with suppress(OSError):
            if not hard:
                self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class _Nowhere:
    closed = True

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


Fault = Callable[[Page], None]


def honest(page: Page) -> None:
    """Pass the answer on as it is."""
    answer = page.answer()
    page.begin(answer)
    page.part(answer.body)


def hang(page: Page) -> None:
    """Never answer."""
    page.server.over.wait(_FOR_EVER_S)
    page.hang_up()


def hang_in_body(page: Page) -> None:
    """Send half of the body, and then nothing."""
    answer = page.answer()
    page.begin(answer)
    page.part(answer.body[: len(answer.body) // 2])
    page.server.over.wait(_FOR_EVER_S)
    page.hang_up()


def says(status: int, **headers: str) -> Fault:
    """Answer with a status instead of asking."""

    def fault(page: Page) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        page.begin(Answer(status, named, b""))

    return fault


def reset(page: Page) -> None:
    """Break the connection instead of answering."""
    page.hang_up(hard=True)


def reset_in_body(page: Page) -> None:
    """Break the connection in the midst of the body."""
    answer = page.answer()
    page.begin(answer)
    page.part(answer.body[: len(answer.body) // 2])
    page.hang_up(hard=True)


def truncated(page: Page) -> None:
    """Announce the whole body, send half of it, and close in good order."""
    answer = page.answer()
    page.begin(answer)
    page.part(answer.body[: len(answer.body) // 2])
    page.hang_up()


def trickling(page: Page) -> None:
    """Send a byte now and then: often enough for a limit between bytes."""
    answer = page.answer()
    page.begin(answer)
    with suppress(OSError):
        for place in range(len(answer.body)):
            page.part(answer.body[place : place + 1])
            if page.server.over.wait(0.05):
                break
    page.hang_up()


def wrong_bytes(page: Page) -> None:
    """Flip a bit in the middle of the body."""
    answer = page.answer()
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2] ^= 1
    page.begin(answer)
    page.part(bytes(body))


# What another try may better, by name.
PASSING: dict[str, Fault] = {
    "hang": hang,
    "hang in body": hang_in_body,
    "503": says(503),
    "429": says(429, Retry_After="0"),
    "500": says(500),
    "reset": reset,
    "reset in body": reset_in_body,
    "truncated": truncated,
}


def held(until: threading.Event) -> Fault:
    """Answer once an event comes."""

    def fault(page: Page) -> None:
        until.wait(_FOR_EVER_S)
        honest(page)

    return fault


@dataclass
class Script:
    """Which requests meet which fault.

    Attributes:
        always: Met by every request.
        first: Met by the first requests, one after another.
        share: Part of all requests that meets `faulty`; which ones follows from the path and
            how often it was asked for, whatever the order.
        faulty: What those meet.
        key: Only requests whose path holds this count.
        methods: Only these count.
    """

    always: Fault | None = None
    first: list[Fault] = field(default_factory=list)
    share: float = 0.0
    faulty: Fault = honest
    key: str = ""
    methods: tuple[str, ...] = ("GET", "HEAD")

    def choose(self, method: str, path: str, number: int) -> Fault | None:
        """Return the fault of a request, the `number`-th of its path."""
        if self.key not in path or method not in self.methods:
            return None
        if self.first:
            return self.first.pop(0)
        if self.always is not None:
            return self.always
        digest = hashlib.blake2b(f"{path} {number}".encode(), digest_size=4).digest()
        return self.faulty if int.from_bytes(digest) / 2**32 < self.share else None


class Proxy(ThreadingHTTPServer):
    """Stands before a server and does what its script says."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.host = urlsplit(upstream).netloc
        self.script = Script()
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def begun(self, method: str, path: str) -> Fault | None:
        """Count a request, and return its fault."""
        with self.lock:
            self.requests[path] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            return self.script.choose(method, path, self.requests[path])

    def ended(self) -> None:
        """Note that a request is answered."""
        with self.lock:
            self.now -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client goes away in the middle."""


def proxied(upstream: str) -> Iterator[Proxy]:
    """Run a proxy for the length of a fixture."""
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    yield proxy
    proxy.over.set()
    proxy.shutdown()
    thread.join()
    proxy.server_close()
