"""Downloads of a CSV list of URLs, from a web server that misbehaves on demand."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from factory.errors import (
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage.url_list.download_cache import DownloadLimits, Downloads
from factory.storage.url_list.web_client import WebLimits
from factory.testing.storage import keys
from tests.storage.web import PICTURE, Lists, Web, files_in, lists, only_key, quick_retries, web

__all__ = ["lists", "quick_retries", "web"]  # fixtures, used by their names


def test_downloads_once(lists: Lists, web: Web) -> None:
    storage = lists(web.url + "/a.png")
    key = only_key(storage)
    whole = PICTURE + b"/a.png"
    assert storage.read(key, 2, 3) == PICTURE[2:5]
    assert storage.read(key) == whole
    assert storage.read(key, 5) == whole[5:]
    assert storage.read(key, len(whole), 4) == b""
    assert web.requests == {"/a.png": 1}
    (info,) = storage.objects()
    assert info.size == storage.head(key).size == len(whole)
    storage.close()
    assert lists.on_table().read(key) == whole
    assert web.requests == {"/a.png": 1}


@pytest.mark.parametrize("base", ["", "/", "/deep", "/deep/"])
def test_relative_urls(lists: Lists, web: Web, base: str) -> None:
    storage = lists("ünï cödé/a b%20c.png", base_url=web.url + base)
    storage.read(only_key(storage))
    (path,) = web.requests
    wanted = base.rstrip("/") + "/%C3%BCn%C3%AF%20c%C3%B6d%C3%A9/a%20b%20c.png"
    assert path == wanted


def test_relative_urls_survive_another_port_but_not_another_host(lists: Lists, web: Web) -> None:
    storage = lists("a.png", base_url=web.url)
    key = only_key(storage)
    storage.read(key)
    assert lists.on_table(base_url="http://127.0.0.1:1").read(key) == PICTURE + b"/a.png"
    with pytest.raises(StorageUnavailableError):
        lists.on_table(base_url="http://127.0.0.2:1").read(key)


def test_many_readers_of_one_file_download_it_once(lists: Lists, web: Web) -> None:
    web.together = threading.Barrier(2)
    storage = lists(web.url + "/together")
    key = only_key(storage)
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(storage.read, key) for _ in range(8)]
        web.together.wait(10)
        assert {read.result() for read in reads} == {PICTURE + b"/together"}
    assert web.requests == {"/together": 1}


def test_many_readers_of_a_failing_file_ask_once(lists: Lists, web: Web) -> None:
    storage = lists(web.url + "/missing")
    key = only_key(storage)
    errors = []
    gate = threading.Barrier(4)

    def read() -> None:
        gate.wait(10)
        with pytest.raises(ObjectNotFoundError) as caught:
            storage.read(key)
        errors.append(caught.value)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(error) for error in errors}) == 4
    assert web.requests["/missing"] <= 4


def test_connections_are_bounded(lists: Lists, web: Web) -> None:
    web.together = threading.Barrier(3)  # three must come together, or nobody goes on
    storage = lists(*(f"{web.url}/together/{n}" for n in range(12)), connections=3)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(storage.read, keys(storage)))
    assert web.most == 3


@pytest.mark.parametrize(
    ("page", "kind", "said", "requests"),
    [
        ("missing", ObjectNotFoundError, "404", 1),
        ("forbidden", StorageError, "403", 1),
        ("html", StorageError, "got HTML instead of a picture", 1),
        ("empty", StorageError, "empty", 1),
        ("broken", StorageUnavailableError, "tried 3 times.*503", 3),
        ("busy", StorageUnavailableError, "429", 3),
        ("reset", StorageUnavailableError, "connection failed", 3),
        ("short", StorageUnavailableError, "connection failed", 3),
        ("endless", StorageError, r"larger than 1 MiB; raise storage\.max_file_mb", 1),
        ("huge", StorageError, r"larger than 1 MiB; raise storage\.max_file_mb", 1),
        ("loop", StorageError, r"redirects more than 2 times \(storage\.max_redirects\)", 3),
        ("away", StorageError, r"redirects to a 'file' URL", 1),
        ("nowhere", StorageError, "no valid URL", 1),
    ],
)
def test_failures(
    lists: Lists, web: Web, page: str, kind: type[StorageError], said: str, requests: int
) -> None:
    storage = lists(f"{web.url}/{page}", max_file_mb=1, max_redirects=2)
    with pytest.raises(StorageError, match=said) as caught:
        storage.read(only_key(storage))
    assert type(caught.value) is kind
    assert f"{web.url}/{page} (row 1 of list.csv)" in str(caught.value)
    assert web.requests.total() == requests
    assert not files_in(lists.folder / "cache")


@pytest.mark.parametrize("page", ["silent", "drip"])
def test_slow_servers(lists: Lists, web: Web, page: str) -> None:
    storage = lists(f"{web.url}/{page}", timeout_s=0.2)
    with pytest.raises(StorageUnavailableError, match=r"within storage\.timeout_s=0\.2"):
        storage.read(only_key(storage))
    assert web.requests.total() == 3
    assert not files_in(lists.folder / "cache")


def test_server_that_is_down(lists: Lists) -> None:
    storage = lists("http://127.0.0.1:1/a.png")
    with pytest.raises(StorageUnavailableError, match="connection failed"):
        storage.read(only_key(storage))


def test_passing_failures_pass(lists: Lists, web: Web) -> None:
    storage = lists(f"{web.url}/flaky")
    assert storage.read(only_key(storage)) == PICTURE + b"/flaky"
    assert web.requests.total() == 3


def test_redirects(lists: Lists, web: Web) -> None:
    storage = lists(f"{web.url}/moved")
    assert storage.read(only_key(storage)) == PICTURE + b"/b.png"


def test_another_process(lists: Lists, web: Web) -> None:
    storage = lists(web.url + "/a.png", web.url + "/b.png")
    first, second = (info.key for info in storage.objects())
    storage.read(first)
    for method, key in (("fork", first), ("fork", second), ("spawn", first)):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            assert pool.submit(storage.read, key).result(30).startswith(PICTURE)
    assert web.requests == {"/a.png": 1, "/b.png": 1}


# The cache's limit

KB = 1024


async def ten_kilobytes(store: Downloads, url: str, where: str) -> bytes:
    return b"x" * 10 * KB


def downloads(folder: Path, limit: int) -> Downloads:
    return Downloads(DownloadLimits(str(folder), 2**20, limit), WebLimits(10.0, 0, 4))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in files_in(folder)}


class Clock:
    """Gives files ages, so that tests need not wait."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 1_000

    def touch(self, name: str) -> None:
        self.now += 1
        os.utime(self.folder / name, (self.now, self.now))


def test_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = Clock(tmp_path), downloads(tmp_path, 45 * KB)
    monkeypatch.setattr(Downloads, "_download", ten_kilobytes)
    for name in ("a", "b", "c", "d"):
        store.read(name, "", "", 0, None)
        clock.touch(name)
    store.read("a", "", "", 0, 4)  # from the folder, which makes it the youngest
    store.read("e", "", "", 0, None)  # 50 KiB: over the limit, so down to 90 % of it
    assert names_in(tmp_path) == {"a", "c", "d", "e"}
    store.read("f", "", "", 0, None)
    assert names_in(tmp_path) == {"a", "d", "e", "f"}


def test_a_file_being_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = Clock(tmp_path), downloads(tmp_path, 25 * KB)
    monkeypatch.setattr(Downloads, "_download", ten_kilobytes)
    for name in ("a", "b"):
        store.read(name, "", "", 0, None)
        clock.touch(name)
    with store._held("a"):
        store.read("c", "", "", 0, None)
    assert names_in(tmp_path) == {"a", "c"}


def test_files_of_other_processes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Downloads, "_download", ten_kilobytes)
    mine, theirs = downloads(tmp_path, 35 * KB), downloads(tmp_path, 35 * KB)
    clock = Clock(tmp_path)
    for store, name in ((mine, "a"), (theirs, "b"), (mine, "c"), (theirs, "d"), (mine, "e")):
        store.read(name, "", "", 0, None)
        clock.touch(name)
    assert names_in(tmp_path) == {"c", "d", "e"}


def test_a_file_larger_than_the_cache_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Downloads, "_download", ten_kilobytes)
    store = downloads(tmp_path, KB)
    assert len(store.read("a", "", "", 0, None)) == 10 * KB
    assert len(store.read("b", "", "", 0, None)) == 10 * KB
    assert names_in(tmp_path) == {"b"}


def test_full_disk_while_caching(lists: Lists, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = lists(web.url + "/a.png")
    key = only_key(storage)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            storage.read(key)
    assert not files_in(lists.folder / "cache")
    assert storage.read(key) == PICTURE + b"/a.png"
