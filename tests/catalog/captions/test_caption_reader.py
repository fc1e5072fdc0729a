"""Raw caption texts are found beside their samples, each read once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from factory.catalog.captions.caption_reader import texts_of
from factory.catalog.captions.sources import ColumnCaptions, TextFileCaptions
from factory.catalog.facts import Fact, Facts
from factory.catalog.scan.scan import Scan
from factory.errors import StorageUnavailableError, TableError
from factory.storage.url_list.url_list_storage import UrlListStorage
from tests.catalog.fakes import ENGINE, Watched


@dataclass(frozen=True)
class Text:
    """The raw caption of one sample."""

    words: tuple[str, ...] | None
    etag: str | None
    error: str | None


def read(storage: Watched, facts: dict[str, Fact], *, reuse: bool = True) -> dict[str, Text]:
    """Read the sidecars of some samples; leave out those without one."""
    known = Facts.of(facts.values(), {"from": "here"})
    scan = Scan("pics", storage, "", TextFileCaptions(), known)
    origin = {"from": "here" if reuse else "elsewhere"}
    keys = known.table["key"]
    columns = texts_of(scan, ENGINE, storage.listing(), keys, origin)
    rows = zip(keys.to_pylist(), *(column.to_pylist() for column in columns), strict=True)
    return {
        key: Text(None if words is None else tuple(words), etag, error)
        for key, words, etag, error in rows
        if etag is not None
    }


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_text("second")
    return Watched(str(tmp_path))


def test_each_folder_has_its_own(storage: Watched) -> None:
    facts = {key: Fact(key, 1, "e") for key in ("a.png", "sub/a.png", "b.png")}
    texts = read(storage, facts)
    assert {key: text.words for key, text in texts.items()} == {
        "a.png": ("first",),
        "sub/a.png": ("second",),
    }
    assert all(text.etag for text in texts.values())


def test_samples_of_one_stem_share_one_read(storage: Watched) -> None:
    facts = {key: Fact(key, 1, "e") for key in ("a.png", "a.jpg")}
    assert {text.words for text in read(storage, facts).values()} == {("first",)}
    assert dict(storage.reads) == {"a.txt": 1}


def test_known_texts_are_reused_only_from_the_same_source(storage: Watched) -> None:
    etag = storage.head("a.txt").etag
    facts = {"a.png": Fact("a.png", 1, "e", text=("kept",), text_etag=etag)}
    assert read(storage, facts)["a.png"].words == ("kept",)
    assert storage.taken() == []
    assert read(storage, facts, reuse=False)["a.png"].words == ("first",)
    stale = {"a.png": Fact("a.png", 1, "e", text=("kept",), text_etag="another")}
    assert read(storage, stale)["a.png"].words == ("first",)


def test_a_byte_order_mark_is_no_text(storage: Watched, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert read(storage, {"a.png": Fact("a.png", 1, "e")})["a.png"].words == ("marked",)


def test_utf16_is_named_in_the_advice(storage: Watched, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("wide".encode("utf-16"))
    text = read(storage, {"a.png": Fact("a.png", 1, "e")})["a.png"]
    assert text.words is None
    assert "iconv -f UTF-16 -t UTF-8" in (text.error or "")


def test_a_storage_that_fails_names_the_file(storage: Watched) -> None:
    storage.broken["a.txt"] = StorageUnavailableError("down")
    with pytest.raises(StorageUnavailableError, match="down") as caught:
        read(storage, {"a.png": Fact("a.png", 1, "e")})
    assert caught.value.__notes__ == ["while reading the caption file 'a.txt'"]


def test_columns_of_a_table_go_to_their_keys(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("url,a,b\nhttp://h/1.png,one,\nhttp://h/2.png,two,zwei\n")
    urls = UrlListStorage(table="u.csv", table_storage=Watched(str(tmp_path)))
    keys = urls.listing()["key"]

    def texts(*columns: str) -> list[list[str]]:
        scan = Scan("pics", urls, "", ColumnCaptions(columns=columns))
        found: list[list[str]] = texts_of(scan, ENGINE, urls.listing(), keys, {})[0].to_pylist()
        names = [key.rpartition("/")[2] for key in keys.to_pylist()]
        return [text for _, text in sorted(zip(names, found, strict=True))]

    assert texts("b", "a") == [["", "one"], ["zwei", "two"]]
    assert texts("b") == [[""], ["zwei"]]
    with pytest.raises(TableError, match="no column 'c'; it has: url, a, b"):
        texts("c")
