"""A web server that misbehaves on demand, and storages of URLs on it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from factory.storage import LocalStorage, UrlListStorage, retry

PICTURE = bytes(range(256)) * 8


class Web(ThreadingHTTPServer):
    """Counts requests and knows how many run at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.now = self.most = 0
        self.over = threading.Event()
        self.together: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing when a client goes away in the middle."""


class Page(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        web, path = self.server, self.path
        with web.lock:
            web.requests[path] += 1
            web.now += 1
            web.most = max(web.most, web.now)
        try:
            getattr(self, "page_" + path.split("/")[1].split(".")[0].split("?")[0], self.plain)()
        finally:
            with web.lock:
                web.now -= 1

    def answer(self, status: int, body: bytes = b"", kind: str = "image/png", **more: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def plain(self) -> None:
        self.answer(200, PICTURE + self.path.encode())

    def page_together(self) -> None:
        assert self.server.together is not None
        self.server.together.wait(10)
        self.plain()

    def page_missing(self) -> None:
        self.answer(404)

    def page_forbidden(self) -> None:
        self.answer(403)

    def page_html(self) -> None:
        self.answer(200, b"<html>sorry</html>", "text/html; charset=utf-8")

    def page_empty(self) -> None:
        self.answer(200)

    def page_flaky(self) -> None:
        if self.server.requests[self.path] < 3:
            self.answer(500)
        else:
            self.plain()

    def page_broken(self) -> None:
        self.answer(503)

    def page_busy(self) -> None:
        self.answer(429)

    def page_reset(self) -> None:
        self.connection.close()

    def page_short(self) -> None:
        self.answer(200, b"half", **{"Content-Length": "999"})

    def page_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(b"x" * 65536)

    def page_huge(self) -> None:
        self.answer(200, b"x", **{"Content-Length": str(10**12)})

    def page_silent(self) -> None:
        self.server.over.wait(20)

    def page_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.wait(0.05):
            self.wfile.write(b"x")

    def page_loop(self) -> None:
        self.answer(302, Location="/loop")

    def page_away(self) -> None:
        self.answer(302, Location="file:///etc/passwd")

    def page_nowhere(self) -> None:
        self.answer(302, Location="http://[bad")

    def page_hop(self) -> None:
        self.answer(302, Location=unquote(self.path.partition("?")[2]))

    def page_headers(self) -> None:
        self.answer(200, json.dumps({k.lower(): v for k, v in self.headers.items()}).encode())

    def page_moved(self) -> None:
        self.answer(301, Location="b.png")


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)


class Lists:
    """Makes storages of URLs and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[UrlListStorage] = []

    def __call__(self, *urls: str, **settings: object) -> UrlListStorage:
        (self.folder / "list.csv").write_text("\n".join(["url", *urls]) + "\n", "utf-8")
        return self.on_table(**settings)

    def on_table(self, **settings: object) -> UrlListStorage:
        tables = LocalStorage(str(self.folder))
        settings = {
            "cache_dir": str(self.folder / "cache"),
            "private_hosts": ["127.0.0.1"],
            **settings,
        }
        storage = UrlListStorage("list.csv", tables, **settings)  # type: ignore[arg-type]
        self.made.append(storage)
        return storage


@pytest.fixture
def lists(tmp_path: Path) -> Iterator[Lists]:
    made = Lists(tmp_path)
    yield made
    for storage in made.made:
        storage.close()


def only_key(storage: UrlListStorage) -> str:
    (info,) = storage.objects()
    return info.key


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
