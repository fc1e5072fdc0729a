"""Entries of a filter list: what they do, and what is said of bad ones."""

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.captions import edits
from factory.catalog.captions.edits import edit_problems, parse_edits, read_filters
from factory.catalog.captions.sources import FilenameCaptions, TextFileCaptions
from factory.errors import ConfigError, ObjectNotFoundError


def edited(text: str, *expressions: str) -> str:
    for edit in parse_edits(expressions, "entry"):
        text = edit(text)
    return text


@pytest.mark.parametrize(
    ("expression", "text", "expected"),
    [
        ("s/dog/cat/", "a dog and a dog", "a cat and a cat"),
        ("s/dog/cat", "a dog", "a cat"),
        ("s/dog//", "a dog", "a "),
        ("s/dog/", "a dog", "a "),
        (r"s/(\w+) (\w+)/\2 \1/", "one two", "two one"),
        (r"s/a\/b/c\/d/", "a/b", "c/d"),
        ("s/a/b/c/", "s/a/b/c/ a", " a"),
        ("s/a", "s/a a", " a"),
        (r"\p{Lu}", "A bC", " b"),
        ("[[]", "a[b", "ab"),
        ("ab", "aabb c", " c"),
        ("", "a", "a"),
    ],
)
def test_entries(expression: str, text: str, expected: str) -> None:
    assert edited(text, expression) == expected


def test_entries_are_applied_in_their_order() -> None:
    assert edited("a dog", "s/dog/cat/", "cat") == "a "
    assert edited("a dog", "cat", "s/dog/cat/") == "a cat"


def test_what_is_no_expression_is_removed_as_text_and_said_once(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="factory"):
        assert edited("a :-( b", ":-(") == "a  b"
        assert edited("c :-( d", ":-(") == "c  d"
    (record,) = caplog.records
    assert record.getMessage() == (
        "entry 1: ':-(' is no regular expression (missing ) at position 3); "
        "it is removed as plain text only"
    )


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("s/(dog/cat/", "no regular expression: missing )"),
        ("s//cat/", "nothing between its first two slashes"),
        (r"s/dog/\1/", "its replacement is wrong: no such group"),
        (r"s/dog/\g<name>/", "its replacement is wrong: unknown group"),
        (3, "must be a text, got 3"),
    ],
)
def test_bad_entries_are_named_by_number(expression: object, said: str) -> None:
    (problem,) = edit_problems(["fine", expression], "words.txt line")
    assert problem.startswith("words.txt line 2")
    assert repr(expression) in problem or expression == 3
    assert said in problem
    with pytest.raises(ConfigError, match="line 2"):
        parse_edits(["fine", expression], "words.txt line")  # type: ignore[list-item]


def test_an_expression_that_never_ends_stops_with_its_name(monkeypatch) -> None:
    monkeypatch.setattr(edits, "TIMEOUT_SECONDS", 0.05)
    (edit,) = parse_edits(["(a|aa)+$"], "entry")
    with pytest.raises(ConfigError, match=r"filter '\(a\|aa\)\+\$' takes over 0.05 s"):
        edit("a" * 60 + "!")


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab/s\\(.[x ", max_size=6), max_size=3), st.text("ab/sx. ("))
def test_any_entries_are_usable_or_named(expressions: list[str], text: str) -> None:
    problems = list(edit_problems(expressions, "entry"))
    if problems:
        assert all(problem.startswith("entry ") for problem in problems)
        return
    for edit in parse_edits(expressions, "entry"):
        after = edit(text)
        if edit.literal is not None and edit.literal not in text:
            assert after == text


@pytest.mark.parametrize(
    ("entry", "text", "result"),
    [
        ("s/dog/cat/g", "a dog, a dog", "a cat, a cat"),
        ("s/DOG/cat/i", "a Dog", "a cat"),
        ("s|a|b|", "banana", "bbnbnb"),
        ("s#/x#y#gi", "q/X", "qy"),
        (r"s|a\|b|c|", "a|b, a", "c, a"),
        ("s'mores", "s'mores", ""),
    ],
)
def test_signs_and_flags_of_sed(entry: str, text: str, result: str) -> None:
    (edit,) = parse_edits([entry], "filters entry")
    assert edit(text) == result


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="flag 'x' is none of g and i"):
        parse_edits(["s/a/b/gx"], "filters entry")


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
        FilenameCaptions(filters_file="words.csv")


def test_nothing_is_read_before_it_is_needed_and_then_once(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    captions = FilenameCaptions(filters=["big "], filters_file=str(file))
    with pytest.raises(ObjectNotFoundError, match=r"no filter file .*correct filters_file"):
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
