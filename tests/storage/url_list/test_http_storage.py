"""Folders of web servers keep the contract, and lead nowhere else."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from factory.errors import ObjectNotFoundError, StorageError, StorageUnavailableError
from factory.storage import HttpStorage, LocalStorage, Storage
from factory.storage.http_storage import _names
from factory.testing.storage import keys
from tests.storage import proxy as faults
from tests.storage.conftest import free_ports
from tests.storage.proxy import Proxy, Script, proxied
from tests.storage.served import CoarseTimes, Served, serving
from tests.storage.web import quick_retries

__all__ = ["quick_retries"]  # a fixture, used by its name

DATA = os.urandom(200_000)


class Quiet(SimpleHTTPRequestHandler):
    """Python's own server: index pages, no ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=f"{tmp_path}/www"))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass(frozen=True)
class Filled(HttpStorage):
    """A storage whose files are put behind the server's back."""

    folder: str = ""

    def write(self, key: str, data: bytes | memoryview) -> None:  # type: ignore[override]
        """Put a file; its time is told in seconds, so that its size or name must differ, too."""
        LocalStorage(self.folder).write(key, data)

    def delete(self, key: str) -> None:  # type: ignore[override]
        """Remove a file."""
        LocalStorage(self.folder).delete(key)

    def check(self, *, write: bool = False) -> None:
        """Look at the folder only."""
        super().check()


class TestPythonsServer(CoarseTimes):
    @pytest.fixture
    def storage(self, plain: str, tmp_path: Path) -> Iterator[Storage]:
        storage = Filled(plain, folder=str(tmp_path / "www"))
        yield storage
        storage.close()


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with ranges and ETags."""
    folder = tmp_path_factory.mktemp("ranged")
    for name in ("a/whole.bin", "a/b c/ü#1?.jpg", "100%25.txt", "list.txt"):
        path = folder / "served" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DATA if name.endswith("bin") else name.encode())
    (folder / "served/list.txt").write_text("a/whole.bin\n\n./100%25.txt\na/absent.jpg\n../out\n")
    with serving("http", folder) as served:
        yield served


@pytest.fixture
def proxy(ranged: Served) -> Iterator[Proxy]:
    yield from proxied(f"http://127.0.0.1:{ranged.port}")


def test_reads_ranges_of_what_index_pages_show(proxy: Proxy) -> None:
    storage = HttpStorage(proxy.url + "/")
    assert keys(storage) == {"a/whole.bin", "a/b c/ü#1?.jpg", "100%25.txt", "list.txt"}
    assert keys(storage, "a/b c") == {"a/b c/ü#1?.jpg"}
    assert storage.head("a/whole.bin").size == len(DATA)
    assert storage.read("a/whole.bin", 1000, 50) == DATA[1000:1050]
    assert storage.read("a/whole.bin", len(DATA) - 3) == DATA[-3:]
    assert storage.read("a/whole.bin", len(DATA) + 3, 9) == b""
    assert storage.read("a/whole.bin") == DATA
    assert storage.identity == proxy.url
    storage.close()


def test_a_file_may_list_the_keys(proxy: Proxy) -> None:
    storage = HttpStorage(proxy.url, listing_file="list.txt")
    assert keys(storage) == {"a/whole.bin", "100%25.txt"}
    assert keys(storage, "a") == {"a/whole.bin"}
    storage.check()
    with pytest.raises(StorageError, match="read-only"):
        storage.check(write=True)
    storage.close()


PASSING = {
    "hang": faults.hang,
    "503": faults.says(503),
    "429": faults.says(429, Retry_After="0"),
    "reset": faults.reset,
    "reset in body": faults.reset_in_body,
    "truncated": faults.truncated,
    "trickling": faults.trickling,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_read_again(proxy: Proxy, name: str) -> None:
    slow = name in ("hang", "trickling")
    storage = HttpStorage(proxy.url, timeout_s=1 if slow else 10, max_attempts=2)
    proxy.script = Script(first=[PASSING[name]])
    assert storage.read("a/whole.bin", 0, 100_000) == DATA[:100_000]
    assert proxy.requests.total() == 2
    proxy.script = Script(always=PASSING[name])
    (found,) = storage.read_many([("a/whole.bin", 0, 100_000)])
    assert type(found) is StorageUnavailableError
    assert "tried 2 times" in str(found)
    storage.close()


class Away(SimpleHTTPRequestHandler):
    """A server that sends everybody to another address."""

    def do_GET(self) -> None:
        """Redirect."""
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/a.png")  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def test_private_addresses_are_refused_after_a_redirect() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Away) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        storage = HttpStorage(f"http://127.0.0.1:{server.server_port}")
        for call in (lambda: storage.read("a.png"), lambda: list(storage.objects())):
            with pytest.raises(StorageError, match=r"storage\.private_hosts=\['127\.0\.0\.2'\]"):
                call()
        storage.close()
        server.shutdown()
        thread.join()


NGINX_CONF = """
user root; daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {folder}/www; autoindex on; {more} }}
}}
"""
APACHE_CONF = """
ServerRoot {folder}
ServerName localhost
PidFile pid
ErrorLog log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule autoindex_module /usr/lib/apache2/modules/mod_autoindex.so
DocumentRoot {folder}/www
Options +Indexes
{more}
"""


@pytest.mark.parametrize(
    ("server", "conf", "more"),
    [
        (["nginx", "-c"], NGINX_CONF, ""),
        (["nginx", "-c"], NGINX_CONF, "autoindex_format json;"),
        (["apache2", "-DFOREGROUND", "-f"], APACHE_CONF, ""),
        (["apache2", "-DFOREGROUND", "-f"], APACHE_CONF, "IndexOptions FancyIndexing HTMLTable"),
    ],
)
def test_reads_folders_of_real_servers(
    tmp_path: Path, server: list[str], conf: str, more: str
) -> None:
    binary = shutil.which(server[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.skip(f"{server[0]} is not installed")
    files = {f"{name}.jpg": name.encode() for name in ("a b&c", "100%25", "é/x#y?", "n" * 90)}
    for name, data in files.items():
        (path := tmp_path / "www" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for folder in (tmp_path, tmp_path / "www", tmp_path / "www/é"):
        folder.chmod(0o755)  # workers may run as another user
    (port,) = free_ports(1)
    (tmp_path / "conf").write_text(conf.format(folder=tmp_path, port=port, more=more))
    with subprocess.Popen([binary, *server[1:], str(tmp_path / "conf")]) as running:
        try:
            # It may take a moment to listen, and that is tried again.
            storage = HttpStorage(f"http://127.0.0.1:{port}", max_attempts=200, deadline_s=20)
            assert {info.key: info.size for info in storage.objects()} == {
                name: len(data) for name, data in files.items()
            }
            assert {name: storage.read(name, 1, 99) for name in files} == {
                name: data[1:] for name, data in files.items()
            }
            storage.close()
        finally:
            running.terminate()


def test_refuses_what_is_no_folder() -> None:
    for url, told in (
        ("ftp://host/x", "must look like"),
        ("http://me:secret@host/x", "user or password"),
        ("http://host/x?list=1", "must be a folder"),
    ):
        with pytest.raises(ValueError, match=told):
            HttpStorage(url)


def test_a_missing_folder_is_told(proxy: Proxy) -> None:
    storage = HttpStorage(proxy.url + "/nowhere")
    with pytest.raises(ObjectNotFoundError, match=r"storage\.url"):
        storage.check()
    storage.close()


NGINX = """<html><head><title>Index of /p/</title></head><body><h1>Index of /p/</h1><hr><pre>
<a href="../">../</a>
<a href="sub%20folder/">sub folder/</a>            01-Jan-2026 10:00     -
<a href="%C3%BC.jpg">ü.jpg</a>                     01-Jan-2026 10:00  2048
</pre></body></html>"""
APACHE = """<table><tr><th><a href="?C=N;O=D">Name</a><a href="?C=M;O=A">Date</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><a href="/p/cats/">cats/</a></td><td><a href="a&amp;b.jpg">a&amp;b.jpg</a></td></tr>
<tr><td><a href="http://other.example/p/x.jpg">x</a><a href="/p/../etc/passwd">y</a></td></tr>
<tr><td><a href="mailto:root@localhost">me</a><a href="%2e%2e/out.jpg">z</a></td></tr></table>"""
JSON = """[{"name": "sub", "type": "directory", "mtime": "Thu, 01 Jan 2026 10:00:00 GMT"},
{"name": "a b.jpg", "type": "file", "size": 2048}, {"name": "../x", "type": "file"}]"""


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (NGINX, ["sub folder/", "ü.jpg"]),
        (APACHE, ["cats/", "a&b.jpg"]),
        (JSON, ["sub/", "a b.jpg"]),
    ],
)
def test_reads_the_pages_of_servers(page: str, names: list[str]) -> None:
    assert _names(page, "http://h/p/", is_json=page is JSON) == names
