"""Conditioning pictures are matched by path stem, and cut exactly as their sources are."""

import numpy as np
import pyarrow as pa

from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.crops import OwnCrops, PartnerCrops
from factory.catalog.decisions import Decisions, decide
from factory.catalog.facts import Fact, Facts
from factory.catalog.pairing import NO_SOURCE, OTHER_SHAPE, SPARE, pair
from factory.catalog.row_filters import RowFilter
from factory.media.geometry.geometry import Geometry

CROP = Geometry(64, alignment=16, crop_aspect="square", crop_style="random")


def facts(*rows: tuple[str, int, int] | tuple[str, int, int, str]) -> Facts:
    """Return facts of (key, width, height, error)."""
    return Facts.of([Fact(r[0], 1, "e", r[1], r[2], error=(*r, None)[3]) for r in rows], {})


def decided(source: Facts) -> Decisions:
    """Decide about a source with random crops."""
    return decide(source, CROP, FilenameCaptions(), name="a", seed=5)


def paired(source: Facts, partner: Facts) -> tuple[list[int], Decisions]:
    """Pair "src" with "cond"."""
    rows, _, made = pair(source, decided(source), "src", partner, "cond")
    return rows.tolist(), made


def test_partners_are_found_across_suffixes_and_orders() -> None:
    source = facts(("src/a.jpg", 96, 64), ("src/b.jpg", 64, 96), ("src/sub/a.jpg", 64, 64))
    partner = facts(("cond/a.png", 96, 64), ("cond/b.png", 64, 96), ("cond/sub/a.png", 64, 64))
    rows, made = paired(source, partner)
    assert rows == [0, 1, 2]
    assert made.kept == 3
    swapped = facts(("cond/a.png", 64, 64), ("cond/0.png", 9, 9))
    rows, _, _ = pair(facts(("src/a.jpg", 64, 64)), decided(facts(("src/a.jpg", 64, 64))), "src",
                   swapped, "cond")  # fmt: skip
    assert rows.tolist() == [1]


def test_partners_are_cut_exactly_as_their_sources() -> None:
    names = [f"{n:02d}" for n in range(20)]
    source = facts(*[(f"src/{name}.png", 640, 96) for name in names])
    # Half the size, and names that sort the same way but for one more in front.
    partner = facts(("cond/+.png", 320, 48), *[(f"cond/{n}.png", 320, 48) for n in names])
    made = decided(source)
    rows, of_partner, theirs = pair(source, made, "src", partner, "cond")
    assert rows.tolist() == list(range(1, 21))
    ours = OwnCrops(source, CROP, 5)
    here, there = ours.of(np.arange(20)), PartnerCrops(ours, of_partner).of(rows)
    assert len({tuple(cut) for cut in here.offset.tolist()}) > 5
    assert here.each() == there.each()
    assert [bucket.name for bucket in theirs.buckets] == [bucket.name for bucket in made.buckets]


def test_a_partner_without_a_source_is_dropped_with_the_reason() -> None:
    rows, made = paired(facts(("src/a.png", 64, 64)), facts(("cond/z.png", 64, 64)))
    assert rows == [-1]
    assert made.dropped() == {NO_SOURCE: 1}


def test_a_partner_of_a_dropped_source_is_dropped() -> None:
    source = facts(("src/a.png", 64, 64, "truncated: x"), ("src/b.png", 64, 64))
    rows, made = paired(source, facts(("cond/a.png", 64, 64), ("cond/b.png", 64, 64)))
    assert rows == [-1, 1]
    assert made.dropped() == {NO_SOURCE: 1}


def test_a_partner_of_another_shape_is_dropped() -> None:
    source = facts(("src/a.png", 640, 480), ("src/b.png", 640, 480))
    partner = facts(("cond/a.png", 480, 640), ("cond/b.png", 321, 240))
    rows, made = paired(source, partner)
    assert rows == [-1, 1]
    assert made.dropped() == {OTHER_SHAPE: 1}


def test_an_unreadable_partner_is_dropped_with_its_own_reason() -> None:
    rows, made = paired(facts(("src/a.png", 64, 64)), facts(("cond/a.png", 0, 0, "damaged: x")))
    assert rows == [-1]
    assert made.dropped() == {"damaged": 1}


def test_a_source_without_a_partner_is_dropped_and_names_where_it_is_missing() -> None:
    source = facts(("src/a.png", 64, 64), ("src/b.png", 64, 64), ("src/c.png", 0, 0, "damaged"))
    made = decided(source)
    rows, _, _ = pair(source, made, "src", facts(("cond/b.png", 64, 64)), "cond")
    left = made.without(rows < 0, "no partner in edges")
    assert left.order.tolist() == [1]
    assert left.dropped() == {"damaged": 1, "no partner in edges": 1}
    assert made.kept == 2  # the decisions given are left as they were


def test_of_several_sources_of_one_stem_a_kept_one_has_the_partner() -> None:
    source = facts(("src/a.jpg", 64, 64), ("src/a.png", 0, 0, "damaged: x"), ("src/a.webp", 64, 64))
    rows, made = paired(source, facts(("cond/a.png", 64, 64)))
    assert rows == [0, -1, -1]
    assert made.kept == 1


def test_a_duplicate_row_of_a_table_does_not_take_the_partner() -> None:
    rows = [Fact("src/a.png", 1, "e", 64, 64), Fact("src/a.png", 1, "e", error="duplicate row: a")]
    found, made = paired(Facts.of(rows, {}), facts(("cond/a.png", 64, 64)))
    assert found == [0, -1]
    assert made.order.tolist() == np.array([0]).tolist()


def test_of_several_partners_the_first_usable_one_counts() -> None:
    partner = facts(
        ("cond/a.jpg", 0, 0, "damaged: x"), ("cond/a.png", 64, 64), ("cond/a.webp", 64, 64)
    )
    rows, made = paired(facts(("src/a.png", 64, 64)), partner)
    assert rows == [1]
    assert made.order.tolist() == [1]
    assert made.dropped() == {"damaged": 1, SPARE: 1}


def test_partners_with_sizes_of_their_own_stay_in_their_buckets() -> None:
    source = facts(("src/a.png", 96, 64), ("src/b.png", 96, 64))
    partner = facts(
        ("cond/a.png", 64, 96), ("cond/b.jpg", 32, 32), ("cond/b.png", 64, 64), ("cond/c.png", 9, 9)
    )
    own = decide(partner, Geometry(64, alignment=16), FilenameCaptions(), name="cond")
    rows, _, made = pair(source, decided(source), "src", partner, "cond", own=own)
    assert rows.tolist() == [0, 1]
    assert [bucket.name for bucket in made.buckets] == ["48x80", "64x64"]
    assert made.order.tolist() == [0, 1]
    assert made.dropped() == {SPARE: 1, NO_SOURCE: 1}


def test_a_partner_that_fails_a_filter_is_dropped() -> None:
    table = facts(("cond/a.png", 64, 64), ("cond/b.png", 64, 64)).table
    partner = Facts.of_table(table.append_column("column.score", pa.array([0.1, 0.9])), {})
    source = facts(("src/a.png", 64, 64), ("src/b.png", 64, 64))
    wanted = (RowFilter("score", minimum=0.5),)
    rows, _, made = pair(source, decided(source), "src", partner, "cond", wanted)
    assert rows.tolist() == [-1, 1]
    assert made.dropped() == {"filter score": 1}
