"""Names that Hydra, file systems and overrides can carry."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.importers.simpletuner.dataset_names import (
    MAX_LENGTH,
    RESERVED,
    check_name,
    file_names,
    option_name,
    safe_name,
    safe_names,
)
from factory.importers.simpletuner.problem import ImportRefusedError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("photos", "photos"),
        ("my-set_2", "my-set_2"),
        ("../../etc/passwd", "etc-passwd"),
        ("/abs", "abs"),
        ("a b/c", "a-b-c"),
        ("1024", "set-1024"),
        ("фото", "unnamed"),
        ("..", "unnamed"),
        ("base", "base-set"),
        ("-x", "x"),
    ],
)
def test_ids_become_names(text: str, name: str) -> None:
    assert safe_name(text) == name


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), unique=True, max_size=12))
def test_names_are_safe_and_differ_in_more_than_case(ids: list[str]) -> None:
    names = safe_names(ids)
    assert list(names) == ids
    assert len({name.lower() for name in names.values()}) == len(ids)
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name)
        assert len(name) <= MAX_LENGTH + len("set--set-99")
        assert name.lower() not in RESERVED


def test_an_id_that_is_a_name_keeps_it_whatever_comes_before() -> None:
    assert safe_names(["a b", "a-b", "A-B"]) == {"a b": "a-b-2", "a-b": "a-b", "A-B": "A-B-3"}


@pytest.mark.parametrize(
    "name", ["a/b", "..", "", "1a", "base", "a" * 81, "a.b", "-a", "multi", "Single"]
)
def test_names_of_the_option_are_refused_rather_than_changed(name: str) -> None:
    with pytest.raises(ImportRefusedError, match="--name"):
        check_name(name)


def test_files_do_not_take_the_names_of_the_projects_own_options() -> None:
    assert option_name("multi.json") == "multi-json"
    assert option_name("multi") == "multi-imported"
    files = file_names(["photos", "a", "old-photos", "OLD-photos-2"], "old")
    assert files == {
        "a": "a", "old-photos": "old-photos", "OLD-photos-2": "OLD-photos-2",
        "photos": "old-photos-3",
    }  # fmt: skip
