"""A CSV list of URLs as a storage, against a web server that misbehaves on demand."""

import logging
import pickle

import pytest

from factory.errors import (
    MediaError,
    ObjectNotFoundError,
    StorageError,
    TableError,
    UnsafeKeyError,
)
from factory.records import UNKNOWN_SIZE
from factory.storage import MemoryStorage, UrlListStorage
from factory.testing.storage import keys
from tests.storage.web import Lists, Web, lists, only_key, quick_retries, web

__all__ = ["lists", "quick_retries", "web"]  # fixtures, used by their names


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
        {"max_attempts": 0}, {"deadline_s": 0}, {"max_redirects": -1},
        {"base_url": "ftp://h"}, {"base_url": "h"},
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
