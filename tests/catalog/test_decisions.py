"""Every row is kept or has one reason, and what is kept lies in exactly one bucket."""

import json
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.captions.sources import FilenameCaptions, InstanceCaptions, TextFileCaptions
from factory.catalog.crops import OwnCrops
from factory.catalog.decisions import (
    KEPT,
    NO_CAPTION,
    OVER_LIMIT,
    Reasons,
    decide,
)
from factory.catalog.facts import Fact, Facts
from factory.catalog.row_filters import RowFilter
from factory.media.geometry.geometry import REASONS, Geometry
from tests.catalog.fakes import facts_of

SMALL = Geometry(64, alignment=16)
RANDOM = Geometry(64, alignment=16, crop_style="random", crop_aspect="square")
ASPECTS = Geometry(
    64, alignment=16, crop_style="random", crop_aspect="random",
    crop_aspect_buckets=(0.5, 1.0, 2.0),
)  # fmt: skip

edges = st.integers(0, 4000)
facts_lists = st.lists(
    st.builds(
        Fact,
        key=st.text("abcdef/._ä", min_size=1, max_size=8),
        size=st.just(1),
        etag=st.just("e"),
        width=edges,
        height=edges,
        error=st.none() | st.sampled_from(["truncated: at 3", "empty file"]),
        text=st.none() | st.sampled_from([(), ("",), ("a cat",)]),
        text_error=st.none() | st.just("caption not UTF-8: byte 3"),
    ),
    max_size=20,
    unique_by=lambda fact: fact.key,
)
geometries = st.sampled_from(
    [
        SMALL,
        RANDOM,
        ASPECTS,
        Geometry(64, "pixel", alignment=8, minimum_image_size=50),
        Geometry(0.05, "area", 16, minimum_aspect_ratio=0.5, maximum_aspect_ratio=2),
    ]
)


@settings(deadline=None)
@given(facts_lists, geometries, st.none() | st.integers(1, 5), st.integers(-2, 2**40))
def test_each_row_is_kept_or_has_one_reason(
    rows: list[Fact], geometry: Geometry, limit: int | None, seed: int
) -> None:
    facts = Facts.of(rows, {})
    made = decide(facts, geometry, TextFileCaptions(), name="a", seed=seed, max_samples=limit)
    assert made.reasons[0] == KEPT
    assert len(set(made.reasons)) == len(made.reasons)
    assert ((made.reason >= 0) & (made.reason < len(made.reasons))).all()
    assert made.kept + sum(made.dropped().values()) == len(rows)
    assert limit is None or made.kept <= limit
    for fact, code in zip(facts.rows(), made.reason.tolist(), strict=True):
        said = made.reasons[code]
        if fact.error is not None:
            assert said == fact.error.partition(":")[0]
        elif fact.text_error is not None:
            assert said == "caption not UTF-8"
        else:
            assert said in {*REASONS, NO_CAPTION, OVER_LIMIT}
            assert code or "a cat" in (fact.text or ())


@settings(deadline=None)
@given(facts_lists, geometries)
def test_buckets_part_the_kept_rows(rows: list[Fact], geometry: Geometry) -> None:
    facts = Facts.of(rows, {})
    made = decide(facts, geometry, FilenameCaptions(), name="a")
    seen = [row for bucket in made.buckets for row in bucket.rows.tolist()]
    assert sorted(seen) == np.flatnonzero(made.reason == 0).tolist()
    assert seen == made.order.tolist()
    assert len({bucket.name for bucket in made.buckets}) == len(made.buckets)
    for bucket in made.buckets:
        assert len(bucket.rows)
        assert bucket.rows.tolist() == sorted(bucket.rows.tolist())
        found = OwnCrops(facts, geometry).of(bucket.rows)
        assert (found.target == [bucket.width, bucket.height]).all()
        spare = found.intermediary - found.target
        offset = found.offset[:, ::-1]
        assert ((offset >= 0) & (offset <= np.maximum(spare, 0))).all()


def test_buckets_of_known_sizes() -> None:
    made = decide(facts_of((96, 64), (64, 96), (192, 128)), SMALL, FilenameCaptions(), name="a")
    assert {bucket.name: bucket.rows.tolist() for bucket in made.buckets} == {
        "48x80": [1],
        "80x48": [0, 2],
    }
    assert made.dropped() == {}


def test_dropped_counts_the_commonest_reason_first() -> None:
    facts = facts_of((8, 8), (9, 9), (100, 100), errors={2: "truncated: x"})
    geometry = Geometry(64, alignment=16, minimum_image_size=50)
    made = decide(facts, geometry, FilenameCaptions(), name="a")
    assert list(made.dropped().items()) == [("minimum_image_size", 2), ("truncated", 1)]


def test_the_first_reason_counts() -> None:
    fact = Fact("a", 1, "e", 1, 1, error="truncated: x", text_error="caption not UTF-8")
    geometry = Geometry(64, alignment=16, minimum_image_size=50)
    made = decide(Facts.of([fact], {}), geometry, TextFileCaptions(), name="a", max_samples=1)
    assert made.dropped() == {"truncated": 1}


def test_rows_without_a_caption_are_dropped() -> None:
    facts = facts_of((64, 64))
    assert decide(facts, SMALL, TextFileCaptions(), name="a").dropped() == {NO_CAPTION: 1}
    assert decide(facts, SMALL, InstanceCaptions("x"), name="a").kept == 1


def golden(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return the cases about max_num_samples."""
    file = request.config.getoption("golden_dir") / "repeats_and_split.json"
    if not file.exists():
        pytest.skip(f"no {file.name} in the golden folder")
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    return [case for case in cases if case["kind"] == "max_num_samples"]


def test_max_samples_chooses_what_the_former_system_chose(request: pytest.FixtureRequest) -> None:
    cases = golden(request)
    assert cases
    for case in cases:
        inputs = case["inputs"]
        files = random.Random(1).sample(inputs["files"], len(inputs["files"]))
        facts = Facts.of([Fact(name, 1, "e", 64, 64) for name in files], {})
        made = decide(
            facts,
            SMALL,
            FilenameCaptions(),
            name=inputs["dataset_id"],
            max_samples=inputs["max_num_samples"],
        )
        chosen = {facts.key(row) for row in made.order.tolist()}
        assert chosen == set(case["expected"]["selected"]), case["id"]
        assert made.dropped().get(OVER_LIMIT, 0) == len(files) - len(chosen)


def test_max_samples_counts_usable_rows_only() -> None:
    facts = facts_of(*[(64, 64)] * 10, errors=dict.fromkeys(range(6), "truncated"))
    made = decide(facts, SMALL, FilenameCaptions(), name="a", max_samples=4)
    assert made.kept == 4
    assert OVER_LIMIT not in made.dropped()


def cuts(rows: list[Fact], seed: int, geometry: Geometry = RANDOM) -> dict[str, Any]:
    """Return the cut of each key."""
    facts = Facts.of(rows, {})
    found = OwnCrops(facts, geometry, seed).of(np.arange(len(facts)))
    made = decide(facts, geometry, FilenameCaptions(), name="a", seed=seed)
    for bucket in made.buckets:
        assert (found.target[bucket.rows] == [bucket.width, bucket.height]).all()
    return {facts.key(n): (*cut.target, *cut.offset) for n, cut in enumerate(found.each())}


WIDE = [Fact(f"{n:02d}.png", 1, "e", 640, 64) for n in range(30)]


@pytest.mark.parametrize("geometry", [RANDOM, ASPECTS])
def test_random_crops_depend_on_seed_and_key_alone(geometry: Geometry) -> None:
    every = cuts(WIDE, 3, geometry)
    assert len(set(every.values())) > 2
    assert cuts(WIDE[::-1], 3, geometry) == every
    assert cuts(WIDE[7:8], 3, geometry) == {"07.png": every["07.png"]}
    renamed = [Fact(f"other/{fact.key}", 1, "e", 640, 64) for fact in WIDE]
    assert list(cuts(renamed, 3, geometry).values()) != list(every.values())
    assert cuts(WIDE, 4, geometry) != every


def test_the_next_seed_draws_new_numbers() -> None:
    """Top and left of one seed are not those of another in other places."""
    tall = [Fact(f"{n:02d}.png", 1, "e", 64, 640) for n in range(30)]
    tops = [cut[2] for cut in cuts(tall, 5).values()]
    lefts = [[cut[3] for cut in cuts(WIDE, seed).values()] for seed in (3, 4, 5, 6)]
    # Both have the same room but for a few pixels, so equal numbers give nearly equal places.
    for other in lefts:
        assert max(abs(top - left) for top, left in zip(tops, other, strict=True)) > 50


def test_a_centred_crop_needs_no_seed() -> None:
    square = Geometry(64, alignment=16, crop_aspect="square")
    assert cuts(WIDE, 1, square) == cuts(WIDE, 2, square)


def test_a_mark_strikes_rows_that_are_still_kept() -> None:
    reasons = Reasons(4)
    reasons.mark_texts(pa.array([None, "a: one", None, "b"]))
    reasons.mark(np.array([True, True, False, False]), "c")
    reasons.mark_codes(np.array([1, 1, 2, 2]), ("kept", "d", "e"))
    assert [reasons.names[code] for code in reasons.code] == ["c", "a", "e", "b"]


def test_nothing_gives_no_buckets() -> None:
    made = decide(Facts.of([], {}), SMALL, FilenameCaptions(), name="a")
    assert (made.kept, made.buckets, made.offsets.tolist()) == (0, [], [0])


def test_parts_of_a_large_table_are_decided_like_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = facts_of(*[(64 + n * 7 % 200, 64 + n * 11 % 200) for n in range(300)],
                     errors={7: "truncated: x", 200: "truncated: y"})  # fmt: skip
    whole = decide(facts, RANDOM, FilenameCaptions(), name="a", seed=3)
    monkeypatch.setattr("factory.catalog.facts.CHUNK_ROWS", 64)
    parts = Facts.of_table(facts.table, {})
    assert parts.table["key"].num_chunks == 5
    made = decide(parts, RANDOM, FilenameCaptions(), name="a", seed=3)
    assert made.reason.tolist() == whole.reason.tolist()
    assert made.order.tolist() == whole.order.tolist()
    assert (made.shapes, made.reasons) == (whole.shapes, whole.reasons)
    rows = np.array([299, 3, 64, 63, 3])
    assert parts.take("width", rows).tolist() == facts.column("width")[rows].tolist()
    assert parts.texts("key", rows) == [facts.key(row) for row in rows.tolist()]
    assert parts.column("height").tolist() == facts.column("height").tolist()


def test_a_row_that_fails_a_filter_is_dropped() -> None:
    table = facts_of(*[(64, 64)] * 4).table.append_column(
        "column.score", pa.array([0.1, 0.9, None, 0.5])
    )
    facts = Facts.of_table(table, {})
    chosen = (RowFilter("score", minimum=0.5),)
    made = decide(facts, SMALL, FilenameCaptions(), name="a", filters=chosen)
    assert made.order.tolist() == [1, 3]
    assert made.dropped() == {"filter score": 2}


def test_rows_are_dropped_from_decisions_with_their_buckets() -> None:
    made = decide(facts_of((96, 64), (64, 96), (192, 128)), SMALL, FilenameCaptions(), name="a")
    left = made.without(np.array([False, True, False]), "gone")
    assert {bucket.name: bucket.rows.tolist() for bucket in left.buckets} == {"80x48": [0, 2]}
    assert left.dropped() == {"gone": 1}
    assert made.kept == 3


def test_reasons_that_find_no_code_are_counted_together() -> None:
    reasons = Reasons(300)
    reasons.mark_texts(pa.array([f"reason {n}: x" for n in range(300)]))
    assert (reasons.code > 0).all()
    assert len(reasons.names) == 256
    assert reasons.names[-1] == "other"
    assert (reasons.code == 255).sum() == 300 - 254
