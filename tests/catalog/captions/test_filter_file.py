"""Filter files are read once, and what is wrong in them is named by file and line."""

import os
from pathlib import Path

import pytest

from factory.catalog.captions.filter_file import read_filters
from factory.catalog.captions.sources import FilenameCaptions, TextFileCaptions
from factory.errors import ConfigError, ObjectNotFoundError


def applied(path: Path, text: str) -> str:
    for edit in read_filters(str(path)):
        text = edit(text)
    return text


def test_lines_of_a_text_file_keep_their_blanks(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffcat \r\n\r\ns/dog/cow/\n".encode())
    assert applied(file, "a cat dog cats") == "a cow cats"


def test_entries_of_a_json_list(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text('["arafed ", "s/dog/cat/"]')
    assert applied(file, "arafed dog") == "cat"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.txt", b"fine\ns/(a/b/\n", r"w\.txt line 2: 's/\(a/b/' cannot be used: .* missing"),
        ("w.txt", b"s\xfc\xdf", "cannot be read as UTF-8 text: .* byte 0xfc in position 1"),
        ("w.json", b'["a",\n "b"', "w.json' is not JSON: .* line 2 column 5"),
        ("w.json", b'{"a": 1}', "holds no list but dict"),
        ("w.json", b'["a", 3]', "w.json entry 2 must be a text, got 3"),
        ("w.json", b'["s/(a/b/"]', "w.json entry 1: 's/"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_filters(str(tmp_path / name))


def test_another_suffix_is_refused_and_not_ignored() -> None:
    with pytest.raises(ValueError, match=r"\.txt \(one entry a line\) or \.json"):
        read_filters("words.csv")


def test_nothing_is_read_before_it_is_needed_and_then_once(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    captions = FilenameCaptions(filters=["big "], filters_file=str(file))
    with pytest.raises(ObjectNotFoundError, match=r"no filter file .*mend filters_file"):
        captions.captions("a_big_red_dog.png", ())
    file.write_text("red ")
    assert captions.captions("a_big_red_dog.png", ()) == ("a dog",)
    file.unlink()
    assert captions.captions("a_big_red_cat.png", ()) == ("a cat",)


def test_entries_of_the_option_come_before_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cat")
    path = str(tmp_path / "words.txt")
    captions = TextFileCaptions(filters=["s/dog/cat/"], filters_file=path)
    assert captions.captions("k", ["a dog"]) == ("a",)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.txt", "folder.txt"):
        with pytest.raises(ConfigError, match=f"{name}' is no file"):
            read_filters(str(tmp_path / name))
