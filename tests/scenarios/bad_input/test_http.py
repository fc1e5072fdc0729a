"""URLs that give no picture cost their own row, with the reason; the others are trained on."""

import errno
import io
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from factory import FactoryDataModule
from factory.errors import EmptyBackendError, StorageError
from factory.storage import retry
from factory.storage.local import LocalStorage
from tests.scenarios.bad_input.building import batches, built, pinned, refused
from tests.support.pictures import colour


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 80), colour(number)).save(out, "PNG")
    return out.getvalue()


class Web(ThreadingHTTPServer):
    """Serves pictures at /N.png, and trouble at other paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.over = threading.Event()
        self.asked: Counter[str] = Counter()
        self.mended = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that hang up."""


class Page(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = self.path[1:].partition(".")[0]
        self.server.asked[name] += 1
        if self.server.mended or name.isdigit():
            self.answer(200, png(int(name) if name.isdigit() else 99))
        else:
            getattr(self, name)()

    def answer(self, status: int, body: bytes = b"", kind: str = "image/png") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self) -> None:
        self.answer(404)

    def page(self) -> None:
        self.answer(200, b"<html>log in first</html>", "text/html")

    def disguised(self) -> None:
        self.answer(200, b"<html>log in first</html>")

    def half(self) -> None:
        self.answer(200, png(7)[:30])

    def silent(self) -> None:
        self.server.over.wait(30)

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(bytes(65536))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def module(root: Path, web: Web, *names: str) -> FactoryDataModule:
    """Return a data module on a list of URLs."""
    lines = [f"{name}.png,caption of {name}" for name in names]
    (root / "urls.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    return built(
        root,
        *pinned("web", storage="csv", caption="csv"),
        "data.backends.web.storage.table=urls.csv",
        f"data.backends.web.storage.base_url=http://127.0.0.1:{web.server_port}",
        "data.backends.web.storage.timeout_s=0.3",
        "data.backends.web.storage.max_file_mb=0.25",
    )


TROUBLE = {
    "missing": "not readable: {} the server says 404, there is no such file",
    "page": "not readable: {} got HTML instead of a picture",
    "disguised": "not a picture: it starts with b'<html>",
    "half": "truncated header",
    "silent": "not readable: {}tried 3 times{}no whole answer within storage.timeout_s=0.3; "
    "storage.max_attempts=3 allows no more; check the server",
    "endless": "not readable: {} is larger than 0.25 MiB; raise storage.max_file_mb to allow it",
}


def errors(data: FactoryDataModule) -> dict[str, str]:
    """Return the error of each dropped row by its file's name."""
    rows = data.sources["web"].catalog.facts.rows()
    return {Path(fact.key).stem: fact.error for fact in rows if fact.error is not None}


def test_each_trouble_costs_its_row_and_no_other(tmp_path: Path, web: Web) -> None:
    data = module(tmp_path, web, "1", *TROUBLE, "2", "3")
    captions = {caption for batch in batches(data) for caption in batch.captions}
    assert captions == {f"caption of {n}" for n in (1, 2, 3)}
    found = errors(data)
    assert set(found) == set(TROUBLE)
    for name, template in TROUBLE.items():
        for part in template.split("{}"):
            assert part.strip() in found[name]
        if "{}" in template:
            assert f"/{name}.png (row " in found[name]
            assert "of urls.csv)" in found[name]
    data.close()


def test_what_may_pass_is_tried_again_and_what_was_measured_is_not(
    tmp_path: Path, web: Web
) -> None:
    names = ("1", "missing", "disguised", "2")
    first = module(tmp_path, web, *names)
    batches(first)
    first.close()
    web.mended = True
    web.asked.clear()
    second = module(tmp_path, web, *names)
    captions = {caption for batch in batches(second) for caption in batch.captions}
    assert captions == {f"caption of {name}" for name in ("1", "missing", "2")}
    assert dict(web.asked) == {"missing": 1}
    assert set(errors(second)) == {"disguised"}
    second.close()


def test_a_disk_full_of_downloads_ends_the_run_and_drops_nothing(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(tmp_path, web, "1", "2", "3")
    real = LocalStorage.write

    def write(self: LocalStorage, key: str, body: bytes) -> None:
        if body and "downloads" in self.root:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise StorageError(f"cannot write {self.root}/{key}: no space left") from cause
        real(self, key, body)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", write)
        with refused(StorageError, "downloads/", "no space left", "while measuring '"):
            data.prepare_data()
    assert sum(len(batch.keys) for batch in batches(data)) >= 3
    assert errors(data) == {}
    data.close()


def test_nothing_that_answers_says_why(tmp_path: Path, web: Web) -> None:
    data = module(tmp_path, web, "missing", "page")
    with refused(
        EmptyBackendError,
        "backend 'web': all 2 samples are dropped: 2 not readable; mend such files as",
        ".png (row ",
    ):
        data.prepare_data()
    data.close()
