"""Patterns mean what they mean in a shell and in .gitignore."""

import fnmatch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.globs import expression, matching, relative, with_suffix

KEYS = ["a.jpg", "b.png", "raw/a.jpg", "raw/deep/c.jpg", "sets/1/a.jpg", "sets/1/x/a.jpg",
        "we[i]rd.jpg", "new\nline.jpg", "rawer/a.jpg", "émoji 🐈.jpg"]  # fmt: skip


def found(*patterns: str) -> list[str]:
    marked = matching(pa.array(KEYS, pa.large_string()), patterns)
    return [key for key, yes in zip(KEYS, marked.tolist(), strict=True) if yes]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("*.png",), ["b.png"]),
        (("a.jpg",), ["a.jpg", "raw/a.jpg", "sets/1/a.jpg", "sets/1/x/a.jpg", "rawer/a.jpg"]),
        (("/a.jpg",), ["a.jpg"]),
        (("raw/*",), ["raw/a.jpg"]),
        (("raw/**",), ["raw/a.jpg", "raw/deep/c.jpg"]),
        (("raw/",), ["raw/a.jpg", "raw/deep/c.jpg"]),
        (("sets/*/a.jpg",), ["sets/1/a.jpg"]),
        (("sets/**/a.jpg",), ["sets/1/a.jpg", "sets/1/x/a.jpg"]),
        (("**/c.jpg", "b.*"), ["b.png", "raw/deep/c.jpg"]),
        (("?.png",), ["b.png"]),
        (("[bc].*",), ["b.png", "raw/deep/c.jpg"]),
        (("[!b].jpg",), ["a.jpg", "raw/a.jpg", "raw/deep/c.jpg", "sets/1/a.jpg", "sets/1/x/a.jpg",
                         "rawer/a.jpg"]),
        (("we[[]i]rd.jpg",), ["we[i]rd.jpg"]),
        (("new*",), ["new\nline.jpg"]),
        (("*🐈*",), ["émoji 🐈.jpg"]),
        ((), []),
    ],
)  # fmt: skip
def test_patterns(patterns: tuple[str, ...], expected: list[str]) -> None:
    assert found(*patterns) == expected


@pytest.mark.parametrize("pattern", ["", "/", "  ", "[ab", "x[!"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        expression(pattern)


@given(st.text("ab*?.", min_size=1, max_size=6), st.lists(st.text("ab.", min_size=1, max_size=5)))
def test_names_match_as_in_a_shell(pattern: str, names: list[str]) -> None:
    if "**" in pattern:
        return
    marked = matching(pa.array(names, pa.large_string()), [pattern]).tolist()
    assert marked == [fnmatch.fnmatchcase(name, pattern) for name in names]


def test_suffixes_in_any_case_after_a_letter() -> None:
    keys = ["a.JPG", "b.jpeg", ".jpg", "d/.jpg", "c.jpgx", "e.tar.jpg", "fjpg"]
    marked = with_suffix(pa.array(keys, pa.large_string()), (".jpg", ".jpeg"))
    assert marked.tolist() == [True, True, False, False, False, True, False]


def test_keys_lose_the_folder_they_are_below() -> None:
    keys = pa.array(["src/a/b.png", "src.png", "other/c.png"], pa.large_string())
    assert relative(keys, "src").to_pylist() == ["a/b.png", "src.png", "other/c.png"]
    assert relative(keys, "").to_pylist() == keys.to_pylist()
