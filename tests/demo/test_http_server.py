"""The demo's HTTP server: its folder and nothing else, in whole or in ranges, until closed."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from factory.demo.http_server import HttpServer
from factory.errors import ObjectNotFoundError, StorageUnavailableError

BODY = bytes(range(256)) * 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    root = tmp_path / "root"
    (root / "pictures").mkdir(parents=True)
    (root / "pictures" / "a b é.jpg").write_bytes(BODY)
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.html").write_text("<p>page")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "inside.jpg").symlink_to(root / "pictures" / "a b é.jpg")
    with HttpServer(root) as running:
        yield running


def fetch(
    server: HttpServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


PICTURE = "/pictures/a%20b%20%C3%A9.jpg"


def test_get_and_head(server: HttpServer) -> None:
    status, headers, body = fetch(server, PICTURE)
    assert (status, body) == (200, BODY)
    assert headers["Content-Type"] == "image/jpeg"
    assert headers["Accept-Ranges"] == "bytes"
    status, headers, body = fetch(server, PICTURE, "HEAD")
    assert (status, body) == (200, b"")
    assert headers["Content-Length"] == str(len(BODY))
    assert fetch(server, "/page.html")[1]["Content-Type"].startswith("text/html")
    assert fetch(server, "/empty.jpg")[::2] == (200, b"")
    assert fetch(server, "/inside.jpg")[0] == 200


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=1000-", 1000, 1024), ("bytes=-24", 1000, 1024),
     ("bytes=1000-9999", 1000, 1024), ("bytes=-9999", 0, 1024), ("bytes=7-7", 7, 8)],
)  # fmt: skip
def test_a_range_is_answered_with_just_that(
    server: HttpServer, asked: str, start: int, stop: int
) -> None:
    status, headers, body = fetch(server, PICTURE, Range=asked)
    assert (status, body) == (206, BODY[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/1024"
    assert headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(server: HttpServer, asked: str) -> None:
    status, headers, body = fetch(server, PICTURE, Range=asked)
    assert (status, body) == (416, b"")
    assert headers["Content-Range"] == "bytes */1024"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=9-5", "bytes=-", "items=0-1", "x"])
def test_a_range_that_is_none_gets_the_whole(server: HttpServer, asked: str) -> None:
    assert fetch(server, PICTURE, Range=asked)[::2] == (200, BODY)


@pytest.mark.parametrize(
    "path",
    ["/", "/pictures", "/pictures/", "/absent.jpg", "/../secret.txt", "/%2e%2e/secret.txt",
     "/pictures/../../secret.txt", "/..%2fsecret.txt", "/link.txt", "/../root-beside/secret.txt",
     "//secret.txt", "/a%00b", "/" + "x" * 5000],
)  # fmt: skip
def test_nothing_outside_and_no_listing(server: HttpServer, path: str) -> None:
    status, _, body = fetch(server, path)
    assert status == 404
    assert b"secret" not in body.replace(b"secret.txt", b"")


def test_other_methods_are_refused(server: HttpServer) -> None:
    assert fetch(server, PICTURE, "PUT")[0] == 501
    assert fetch(server, PICTURE, "DELETE")[0] == 501


def test_it_listens_on_loopback_only(server: HttpServer) -> None:
    assert urlsplit(server.url).hostname == "127.0.0.1"
    assert server.url.endswith("/")


def test_many_clients_at_once(server: HttpServer) -> None:
    results: list[bytes] = []
    clients = [
        threading.Thread(target=lambda: results.append(fetch(server, PICTURE)[2]))
        for _ in range(20)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert results == [BODY] * 20


def test_close_leaves_no_thread_though_clients_stay_connected(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    server = HttpServer(tmp_path).start()
    address = urlsplit(server.url)
    silent = socket.create_connection((address.hostname, address.port), timeout=5)
    kept = http.client.HTTPConnection(address.netloc, timeout=5)
    kept.request("GET", "/absent")
    kept.getresponse().read()
    server.close()
    server.close()
    assert set(threading.enumerate()) == before
    assert silent.recv(1) == b""
    silent.close()
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=5)


def test_it_can_be_started_again_and_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    server = HttpServer(tmp_path)
    for _ in range(2):
        with server:
            assert server.start() is server
            assert fetch(server, "/a.txt")[2] == b"a"
            assert server.url in repr(server)


def test_what_is_not_running_has_no_address(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailableError, match="start"):
        _ = HttpServer(tmp_path).url
    assert "url" not in repr(HttpServer(tmp_path))


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match="absent"):
        HttpServer(tmp_path / "absent").start()
