"""Entries of a filter list: what they do, and what is said of bad ones."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.captions import edits
from factory.catalog.captions.edits import edit_problems, parse_edits
from factory.errors import ConfigError


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
