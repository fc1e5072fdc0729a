"""Rows are found by key, and keys that look like one."""

from hypothesis import given
from hypothesis import strategies as st

from factory.catalog import key_search
from factory.catalog.facts import Fact, Facts

KEYS = ["a/1.png", "a/10.png", "a/2.png", "b/ä.png", "b/z.png", "b/日本.png"]


def facts(keys: list[str]) -> Facts:
    return Facts.of([Fact(key, 1, "e") for key in keys], {})


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1), min_size=1)))
def test_every_key_is_found_and_no_other(keys) -> None:
    known = facts(sorted(keys))
    for key in keys:
        row = key_search.row_of(known, key)
        assert row is not None
        assert known.key(row) == key
        assert key_search.row_of(known, key + "\x01x") is None or key + "\x01x" in keys


def test_a_key_that_stands_there_twice_is_its_first_row() -> None:
    known = facts(["a", "b", "b", "b", "c"])
    assert [key_search.row_of(known, key) for key in "abc"] == [0, 1, 4]
    assert key_search.row_of(known, "b\x001") is None


def test_near_keys_end_with_it_or_look_like_it() -> None:
    assert key_search.near(facts(KEYS), "z.png")[0] == "b/z.png"
    assert "a/10.png" in key_search.near(facts(KEYS), "a/11.png")
    assert key_search.near(facts(KEYS), "nothing of the kind at all") == []


def test_in_large_catalogs_the_neighbours_are_compared(monkeypatch) -> None:
    monkeypatch.setattr(key_search, "COMPARED", 10)
    known = facts([f"sets/{n:05d}.png" for n in range(3000)])
    assert key_search.near(known, "sets/01234.pgn")[0] in {"sets/01234.png", "sets/01233.png"}
