"""A catalog answers row by row, and its identity tells what is trained on."""

from dataclasses import replace

import pytest

from factory.catalog.captions.shuffle import Shuffle
from factory.catalog.captions.sources import (
    Captions,
    FilenameCaptions,
    InstanceCaptions,
    TextFileCaptions,
)
from factory.catalog.catalog import Catalog
from factory.catalog.crops import OwnCrops
from factory.catalog.decisions import decide
from factory.catalog.facts import Fact, Facts
from factory.media.geometry.geometry import Geometry

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
    return Catalog(facts, made, captions, OwnCrops(facts, GEOMETRY))


def test_rows_are_sorted_by_key_and_kept_ones_are_counted() -> None:
    made = catalog(ROWS)
    assert len(made) == 2
    assert [made.facts.key(row) for row in made.decisions.order.tolist()] == ["a.png", "b.png"]


def test_a_cut_is_plain_numbers() -> None:
    cut = catalog(ROWS).crop(1)
    assert (cut.target, cut.intermediary, cut.offset) == ((80, 48), (80, 53), (2, 0))
    assert {type(number) for pair in (cut.target, cut.offset) for number in pair} == {int}


def test_texts_are_captions_of_the_strategy() -> None:
    made = catalog(ROWS)
    assert made.texts(1) == ("one", "two")
    assert list(made.all_texts()) == ["zero", "one", "two"]
    assert catalog(ROWS, FilenameCaptions()).texts(1) == ("b",)
    assert catalog(ROWS, InstanceCaptions("sks")).texts(1) == ("sks",)


def test_a_caption_is_a_function_of_seed_epoch_and_key() -> None:
    made = catalog(ROWS)
    chosen = [made.caption(1, seed=1, epoch=epoch) for epoch in range(40)]
    assert set(chosen) == {"one", "two"}
    assert chosen == [made.caption(1, seed=1, epoch=epoch) for epoch in range(40)]


def test_another_file_changes_no_other_samples_captions() -> None:
    captions = TextFileCaptions(dropout=0.3)
    before = catalog(ROWS, captions)
    after = catalog([Fact("0.png", 1, "e", 64, 64, text=("a\nb",)), *ROWS], captions)
    for row in range(len(ROWS) - 1):
        assert after.facts.key(row + 1) == before.facts.key(row)
        for epoch in range(40):
            drawn = before.caption(row, seed=3, epoch=epoch)
            assert after.caption(row + 1, seed=3, epoch=epoch) == drawn


def test_dropped_captions_are_empty_and_the_others_stay() -> None:
    every, some = catalog(ROWS), catalog(ROWS, TextFileCaptions(dropout=0.5, prepend="sks"))
    kept = [every.caption(1, seed=1, epoch=epoch) for epoch in range(60)]
    drawn = [some.caption(1, seed=1, epoch=epoch) for epoch in range(60)]
    assert all(text in ("", f"sks {was}") for text, was in zip(drawn, kept, strict=True))
    assert 15 < drawn.count("") < 45
    assert set(some.all_texts()) == {"sks zero", "sks one", "sks two"}


def test_every_caption_that_can_be_drawn_is_listed() -> None:
    rows = [Fact("a.png", 1, "e", 64, 64, text=("a, b, c, d\ne, arafed f",))]
    captions = TextFileCaptions(filters=["arafed "], shuffle=Shuffle(count=4), prepend="sks")
    made = catalog(rows, captions)
    drawn = {made.caption(0, seed=seed, epoch=epoch) for seed in range(20) for epoch in range(20)}
    assert drawn == set(made.all_texts())
    assert {"sks a, b, c, d", "sks e, f", "sks f, e"} <= drawn


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
