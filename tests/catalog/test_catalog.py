"""A catalog answers row by row, and its identity tells what is trained on."""

from dataclasses import replace

import pytest

from factory.catalog.captions import Captions, FilenameCaptions, InstanceCaptions, TextFileCaptions
from factory.catalog.catalog import Catalog
from factory.catalog.cuts import OwnCuts
from factory.catalog.decisions import decide
from factory.catalog.facts import Fact, Facts
from factory.media.geometry import Geometry

GEOMETRY = Geometry(64, alignment=16)
ROWS = [
    Fact("b.png", 1, "e1", 96, 64, text=("one\ntwo\n",)),
    Fact("a.png", 1, "e0", 64, 96, text=("zero",)),
    Fact("c.png", 1, "e2", 80, 80, error="damaged: x", text=("three",)),
]


def catalog(rows: list[Fact], captions: Captions | None = None) -> Catalog:
    """Return the catalog of some rows."""
    facts, captions = Facts.of(rows, {}), captions or TextFileCaptions()
    made = decide(facts, GEOMETRY, captions, name="a")
    return Catalog(facts, made, captions, OwnCuts(facts, GEOMETRY))


def test_rows_are_sorted_by_key_and_kept_ones_are_counted() -> None:
    made = catalog(ROWS)
    assert len(made) == 2
    assert [made.facts.key(row) for row in made.decisions.order.tolist()] == ["a.png", "b.png"]


def test_a_cut_is_plain_numbers() -> None:
    cut = catalog(ROWS).cut(1)
    assert (cut.target, cut.intermediary, cut.crop) == ((80, 48), (80, 53), (2, 0))
    assert {type(number) for pair in (cut.target, cut.crop) for number in pair} == {int}


def test_texts_are_captions_of_the_strategy() -> None:
    made = catalog(ROWS)
    assert made.texts(1) == ("one", "two")
    assert list(made.all_texts()) == ["zero", "one", "two"]
    assert catalog(ROWS, FilenameCaptions()).texts(1) == ("b",)
    assert catalog(ROWS, InstanceCaptions("sks")).texts(1) == ("sks",)


def test_a_caption_is_a_function_of_seed_epoch_and_row() -> None:
    made = catalog(ROWS)
    chosen = [made.caption(1, seed=1, epoch=epoch) for epoch in range(40)]
    assert set(chosen) == {"one", "two"}
    assert chosen == [made.caption(1, seed=1, epoch=epoch) for epoch in range(40)]


def test_equal_samples_have_one_identity() -> None:
    assert catalog(ROWS).identity == catalog(ROWS[::-1]).identity
    assert len(catalog(ROWS).identity) == 32


@pytest.mark.parametrize(
    "rows",
    [
        [replace(ROWS[0], key="b2.png"), *ROWS[1:]],
        [replace(ROWS[0], etag="new"), *ROWS[1:]],
        ROWS[1:],
        [*ROWS[:2], replace(ROWS[2], error=None, width=80, height=80)],
    ],
    ids=["renamed", "changed", "removed", "mended"],
)
def test_other_samples_have_another_identity(rows: list[Fact]) -> None:
    assert catalog(rows).identity != catalog(ROWS).identity


def test_what_is_dropped_has_no_part_in_the_identity() -> None:
    other = [*ROWS[:2], replace(ROWS[2], etag="new", error="truncated: y")]
    assert catalog(other).identity == catalog(ROWS).identity
