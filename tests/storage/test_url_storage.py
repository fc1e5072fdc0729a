"""A CSV list of URLs as a storage, against a web server that misbehaves on demand."""

import logging
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest

from factory.errors import (
    MediaError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    TableError,
    UnsafeKeyError,
)
from factory.records import UNKNOWN_SIZE
from factory.storage import LocalStorage, MemoryStorage, UrlListStorage, download
from factory.storage.download import Downloads, Limits

from .contract import keys

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
    monkeypatch.setattr(download, "BACKOFF_S", 0.001)


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
        settings = {"cache_dir": str(self.folder / "cache"), **settings}
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


# The table


def test_keys_do_not_depend_on_where_the_server_is(lists: Lists) -> None:
    first = keys(lists("a.png", "a.jpg", "b/a.png", base_url="http://127.0.0.1:1"))
    second = keys(lists("a.png", "a.jpg", "b/a.png", base_url="http://elsewhere:2/x"))
    assert first == second
    assert len(first) == 3
    assert sorted(key.split("/")[1] for key in first) == ["a.jpg", "a.png", "a.png"]
    assert all(len(key.split("/")[0]) == 16 for key in first)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a%20red%20fox.jpg?size=2#top", "a red fox.jpg"),
        ("http://h/x/../..%2F..%2Fpasswd", "_.._passwd"),
        ("http://h/%00%0A.png", "_.png"),
        ("http://h/", "file"),
        ("http://h", "file"),
        ("http://h/日本.png", "日本.png"),
        ("http://h/" + "x" * 300 + ".jpeg", "x" * 60 + ".jpeg"),
        ("http://h/...", "file"),
        ("http://[bad/a.png", "file"),
        ("", "file"),
    ],
)
def test_file_names(lists: Lists, url: str, name: str) -> None:
    key = only_key(lists(f'"{url}"'))
    assert key.split("/", 1)[1] == name
    assert lists.on_table().exists(key)


def test_objects_need_no_server(lists: Lists) -> None:
    storage = lists("http://127.0.0.1:1/a.png", "http://127.0.0.1:1/b.png")
    infos = list(storage.objects())
    assert [info.size for info in infos] == [UNKNOWN_SIZE] * 2
    assert infos[0].etag != infos[1].etag
    assert list(storage.objects()) == infos
    assert [storage.head(info.key) for info in infos] == infos


def test_prefix(lists: Lists) -> None:
    storage = lists("http://h/a.png", "http://h/b.png")
    key = min(keys(storage))
    assert keys(storage, key.split("/")[0]) == {key}
    with pytest.raises(ObjectNotFoundError, match="nowhere"):
        list(storage.objects("nowhere"))


def test_last_of_several_rows_wins(lists: Lists, caplog: pytest.LogCaptureFixture) -> None:
    table = "url,caption\nhttp://h/a,first\nhttp://h/b,other\nhttp://h/a,last\n"
    (lists.folder / "list.csv").write_text(table)
    storage = lists.on_table()
    with caplog.at_level(logging.WARNING):
        assert storage.duplicate_rows() == 1
    assert "1 rows repeat" in caplog.text
    rows = storage.rows(["caption"]).to_pydict()
    assert rows["caption"] == ["other", "last"]
    assert rows["key"] == [info.key for info in storage.objects()]


def test_rows_keep_texts_as_they_are(lists: Lists) -> None:
    table = '\ufeffurl,caption,n\nhttp://h/a,"one, two",007\nhttp://h/b,NA,\nhttp://h/c\n'
    (lists.folder / "list.csv").write_text(table, "utf-8")
    rows = lists.on_table().rows(["caption", "n", "url"]).to_pydict()
    assert rows["caption"] == ["one, two", "NA", ""]
    assert rows["n"] == ["007", "", ""]
    assert rows["url"] == ["http://h/a", "http://h/b", "http://h/c"]


def test_missing_table(lists: Lists) -> None:
    storage = lists.on_table()
    for call in (storage.check, lambda: list(storage.objects()), lambda: storage.read("a")):
        with pytest.raises(ObjectNotFoundError, match=r"list\.csv.*storage\.table"):
            call()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"url\n", "no rows"),
        (b"link,caption\nhttp://h/a,b\n", r"no column 'url'; it has: link, caption"),
        (b"urls\nhttp://h/a\n", "did you mean 'urls'"),
        (b"url\nhttp://h/\xff\n", "UTF-8"),
        (b"url,caption\nhttp://h/a,b,c\n", "more cells than its header"),
        (b'url\n"http://h/a\n', "no CSV table"),
    ],
)
def test_bad_tables(lists: Lists, data: bytes, said: str) -> None:
    (lists.folder / "list.csv").write_bytes(data)
    storage = lists.on_table()
    for call in (storage.check, lambda: list(storage.objects()), lambda: storage.rows([])):
        with pytest.raises(TableError, match=said):
            call()


def test_missing_columns(lists: Lists) -> None:
    (lists.folder / "list.csv").write_text("url,caption,key\nhttp://h/a,b,c\n")
    with pytest.raises(TableError, match=r"caption, key; did you mean 'caption'\?"):
        lists.on_table().rows(["captoin"])
    with pytest.raises(TableError, match="'key' is taken"):
        lists.on_table().rows(["key"])


@pytest.mark.parametrize(
    ("value", "base_url"),
    [
        ("not a url", None),
        ("a.png", None),
        ("file:///etc/passwd", None),
        ("file:///etc/passwd", "http://h"),
        ("C:\\pictures\\a.png", "http://h"),
        ("http://", None),
        ("http://h:port/a", None),
        ("http://[bad/a.png", None),
    ],
)
def test_rows_that_are_no_url(lists: Lists, value: str, base_url: str | None) -> None:
    storage = lists("http://h/fine", value, base_url=base_url)
    infos = list(storage.objects())
    assert len(infos) == 2
    with pytest.raises(StorageError, match=r"row 2 of list\.csv.*no http\(s\) URL") as caught:
        storage.read(infos[1].key)
    assert repr(value) in str(caught.value)
    assert not isinstance(caught.value, MediaError)


def test_changed_table_is_read_again(lists: Lists) -> None:
    storage = lists("http://h/a")
    assert len(keys(storage)) == 1
    assert lists("http://h/a", "http://h/b") == storage
    assert len(keys(storage)) == 2
    assert storage.rows([]).num_rows == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"max_file_mb": 0}, {"max_cache_gb": -1}, {"timeout_s": 0}, {"connections": 0},
        {"max_redirects": -1}, {"base_url": "ftp://h"}, {"base_url": "h"},
    ],
)  # fmt: skip
def test_impossible_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="storage." + next(iter(settings))):
        UrlListStorage("t", MemoryStorage(), **settings)  # type: ignore[arg-type]


def test_base_url_holds_no_secret() -> None:
    with pytest.raises(ValueError, match=r"storage\.base_url") as caught:
        UrlListStorage("t", MemoryStorage(), base_url="http://me:hunter2@h")
    assert "hunter2" not in str(caught.value)


def test_errors_show_no_secret(lists: Lists) -> None:
    storage = lists("http://me:hunter2@127.0.0.1:1/a.png?signature=hunter3", "x?hunter4")
    for info in storage.objects():
        with pytest.raises(StorageError) as caught:
            storage.read(info.key)
        assert "hunter" not in str(caught.value)


def test_read_only(lists: Lists) -> None:
    storage = lists("http://h/a")
    with pytest.raises(StorageError, match="read-only"):
        storage.write("a", b"x")
    with pytest.raises(StorageError, match="read-only"):
        storage.delete("a")
    with pytest.raises(StorageError, match="read-only"):
        storage.check(write=True)
    storage.check()


def test_is_a_value(lists: Lists, web: Web) -> None:
    storage = lists(web.url + "/a.png")
    storage.read(only_key(storage))
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert hash(copy) == hash(storage)
    assert copy.identity == f"urls+file://{lists.folder}/list.csv"
    assert "list.csv" in repr(storage)


@pytest.mark.parametrize("key", ["", "../x", "/a"])
def test_unsafe_keys(lists: Lists, key: str) -> None:
    storage = lists("http://h/a")
    for call in (storage.read, storage.head):
        with pytest.raises(UnsafeKeyError):
            call(key)


def test_unknown_keys(lists: Lists) -> None:
    storage = lists("http://h/a")
    for call in (storage.read, storage.head):
        with pytest.raises(ObjectNotFoundError, match="nobody"):
            call("nobody/knows")
    assert not storage.exists("nobody/knows")


# Downloads


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
        ("broken", StorageUnavailableError, "503, 3 times", 3),
        ("busy", StorageUnavailableError, "429", 3),
        ("reset", StorageUnavailableError, "connection failed", None),
        ("short", StorageUnavailableError, "connection failed", 3),
        ("endless", StorageError, r"larger than 1 MiB; raise storage\.max_file_mb", 1),
        ("huge", StorageError, r"larger than 1 MiB; raise storage\.max_file_mb", 1),
        ("loop", StorageError, r"redirects more than 2 times \(storage\.max_redirects\)", 3),
        ("away", StorageError, r"redirects to a 'file' URL", 1),
        ("nowhere", StorageError, "no valid URL", 1),
    ],
)
def test_failures(
    lists: Lists, web: Web, page: str, kind: type[StorageError], said: str, requests: int | None
) -> None:
    storage = lists(f"{web.url}/{page}", max_file_mb=1, max_redirects=2)
    with pytest.raises(StorageError, match=said) as caught:
        storage.read(only_key(storage))
    assert type(caught.value) is kind
    assert f"{web.url}/{page} (row 1 of list.csv)" in str(caught.value)
    if requests is not None:  # the client itself asks again after some resets
        assert web.requests.total() == requests
    assert not files_in(lists.folder / "cache")


@pytest.mark.parametrize("page", ["silent", "drip"])
def test_slow_servers(lists: Lists, web: Web, page: str) -> None:
    storage = lists(f"{web.url}/{page}", timeout_s=0.2)
    with pytest.raises(StorageUnavailableError, match=r"within 0\.2 s.*storage\.timeout_s"):
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


def downloads(folder: Path, limit: int) -> Downloads:
    return Downloads(Limits(str(folder), 2**20, limit, 10.0, 0, 4))


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
    monkeypatch.setattr(Downloads, "_download", lambda self, url, where: b"x" * 10 * KB)
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
    monkeypatch.setattr(Downloads, "_download", lambda self, url, where: b"x" * 10 * KB)
    for name in ("a", "b"):
        store.read(name, "", "", 0, None)
        clock.touch(name)
    with store._held("a"):
        store.read("c", "", "", 0, None)
    assert names_in(tmp_path) == {"a", "c"}


def test_files_of_other_processes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Downloads, "_download", lambda self, url, where: b"x" * 10 * KB)
    mine, theirs = downloads(tmp_path, 35 * KB), downloads(tmp_path, 35 * KB)
    clock = Clock(tmp_path)
    for store, name in ((mine, "a"), (theirs, "b"), (mine, "c"), (theirs, "d"), (mine, "e")):
        store.read(name, "", "", 0, None)
        clock.touch(name)
    assert names_in(tmp_path) == {"c", "d", "e"}


def test_a_file_larger_than_the_cache_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Downloads, "_download", lambda self, url, where: b"x" * 10 * KB)
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
