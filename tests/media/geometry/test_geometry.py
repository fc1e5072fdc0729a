"""The vectorised geometry against plain Python, and what holds for every picture."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.media.geometry.aspect_ratio import aspect_label, round_decimals, round_to_multiple
from factory.media.geometry.geometry import REASONS, Geometry
from factory.media.geometry.target_size import SQUASH
from tests.media import reference
from tests.media.geometries import RATIOS, edges, geometries, numbers, sizes
from tests.support.examples import examples


@settings(max_examples=examples(400), deadline=None)
@given(geometries(), sizes, st.integers(0, 99))
def test_every_kept_picture_is_covered_aligned_and_in_proportion(
    geometry: Geometry, sizes: list[tuple[int, int]], seed: int
) -> None:
    width, height = np.array(sizes).T
    shapes = geometry.decide(width, height, *numbers(len(sizes), seed))
    assert set(np.unique(shapes.reason)) <= {0, REASONS.index("geometry_error")}
    kept = shapes.reason == 0
    assert not shapes.target[~kept].any()
    target, between, crop = shapes.target[kept], shapes.intermediary[kept], shapes.crop[kept]
    assert (target % geometry.alignment == 0).all()
    assert (target > 0).all()
    assert (between >= target).all()
    assert (crop >= 0).all()
    assert (crop[:, ::-1] + target <= between).all()
    for size, (wide, tall) in zip(np.array(sizes)[kept].tolist(), between.tolist(), strict=True):
        squashed = wide == tall and max(size) <= SQUASH * min(size)
        # Some common scale gives both edges when rounded down, so neither is a pixel off.
        low = max(wide / size[0], tall / size[1])
        high = min((wide + 1) / size[0], (tall + 1) / size[1])
        assert squashed or low <= high * (1 + 1e-12)


@settings(max_examples=examples(400), deadline=None)
@given(geometries(), sizes)
def test_the_vectorised_geometry_equals_plain_python(
    geometry: Geometry, sizes: list[tuple[int, int]]
) -> None:
    if geometry.crop_aspect == "random":
        geometry = dataclasses.replace(geometry, crop_aspect="closest")
    width, height = np.array(sizes).T
    shapes = geometry.decide(width, height, np.full((len(sizes), 3), 0.5))
    for row, size in enumerate(sizes):
        expected = reference.decide(geometry, size)
        if expected is None:
            assert REASONS[shapes.reason[row]] == "geometry_error"
            continue
        got = (
            tuple(shapes.target[row].tolist()),
            tuple(shapes.intermediary[row].tolist()),
            shapes.aspect[row],
        )
        assert got == expected, size


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.tuples(edges, edges), min_size=1, max_size=200), st.integers(0, 6))
def test_labels_round_as_python_does(sizes: list[tuple[int, int]], decimals: int) -> None:
    width, height = np.array(sizes).T
    expected = [round(w / h, decimals) for w, h in sizes]
    assert aspect_label(width, height, decimals).tolist() == expected


def test_labels_round_as_python_does_at_every_near_tie() -> None:
    # (2k + 1) / 200 is where two decimals tie, or nearly do.
    odd = np.arange(1, 20_000, 2)
    for factor in (1, 3, 7):
        height = 200 * factor
        expected = [round(width / height, 2) for width in (odd * factor).tolist()]
        got = aspect_label(odd * factor, np.full(len(odd), height), 2)
        assert got.tolist() == expected


def test_numpy_alone_would_round_a_tie_wrongly() -> None:
    value = np.array([2.675])
    assert round_decimals(value, 2).tolist() == [round(2.675, 2)] == [2.67]
    assert np.round(value, 2).tolist() == [2.68]


@given(st.floats(0, 1e6), st.sampled_from([1, 8, 64, 100]))
def test_multiples_round_halves_to_even_and_never_to_zero(value: float, multiple: int) -> None:
    expected = max(round(value / multiple) * multiple, multiple)
    assert round_to_multiple(np.array([value]), multiple).tolist() == [expected]


def test_many_rows_give_what_each_row_gives_alone() -> None:
    rng = np.random.default_rng(3)
    width, height = rng.integers(1, 5000, (2, 20_000))
    uniform = rng.random((20_000, 3))
    geometry = Geometry(
        0.5, "area", crop_aspect="random", crop_style="random", crop_aspect_buckets=RATIOS
    )
    together = geometry.decide(width, height, uniform)
    order = rng.permutation(20_000)
    shuffled = geometry.decide(width[order], height[order], uniform[order])
    for field in dataclasses.fields(together):
        values = getattr(together, field.name)
        assert np.array_equal(values[order], getattr(shuffled, field.name)), field.name


def test_dtypes_and_shapes() -> None:
    shapes = Geometry(512).decide(np.array([640, 5], dtype=np.int32), np.array([480, 9000]))
    assert shapes.target.dtype == shapes.intermediary.dtype == shapes.crop.dtype == np.int32
    assert shapes.target.shape == (2, 2)
    assert shapes.reason.dtype == np.uint8
    assert shapes.aspect.dtype == np.float64
    assert len(Geometry(512).decide(np.array([], dtype=int), np.array([], dtype=int)).reason) == 0


def test_random_aspects_are_used_evenly_and_offsets_reach_both_ends() -> None:
    rng = np.random.default_rng(5)
    rows = 4000
    geometry = Geometry(
        512, crop_aspect="random", crop_style="random", crop_aspect_buckets=(0.5, 1.0, 2.0)
    )
    assert geometry.uses_random
    shapes = geometry.decide(np.full(rows, 800), np.full(rows, 600), rng.random((rows, 3)))
    _, counts = np.unique(shapes.target, axis=0, return_counts=True)
    assert len(counts) == 3
    assert counts.min() > rows / 4
    spare = shapes.intermediary - shapes.target
    wide = spare[:, 0] == spare[:, 0].max()
    assert shapes.crop[wide, 1].min() == 0
    assert shapes.crop[wide, 1].max() >= spare[:, 0].max() * 0.98
    last = np.full((1, 3), np.nextafter(1.0, 0.0))
    edge = geometry.decide(np.array([800]), np.array([600]), last)
    assert (edge.crop[:, ::-1] + edge.target == edge.intermediary).all()


@pytest.mark.parametrize(
    ("kind", "least", "aspect", "size", "kept"),
    [
        ("pixel", 512, "preserve", (512, 900), True),
        ("pixel", 512, "preserve", (511, 900), False),
        ("pixel_area", 512, "preserve", (1024, 256), True),
        ("pixel_area", 512, "preserve", (1023, 256), False),
        ("pixel_area", 512, "square", (1024, 256), False),
        ("area", 0.25, "preserve", (500, 500), True),
        ("area", 0.25, "preserve", (500, 499), False),
        ("area", 0.25, "square", (501, 499), False),
    ],
)
def test_minimum_image_size(
    kind: str, least: float, aspect: str, size: tuple[int, int], kept: bool
) -> None:
    resolution = 1.0 if kind == "area" else 512
    geometry = Geometry(resolution, kind, crop_aspect=aspect, minimum_image_size=least)
    reason = geometry.decide(np.array([size[0]]), np.array([size[1]])).reason[0]
    assert REASONS[reason] == ("kept" if kept else "minimum_image_size")


def test_aspect_limits_hold_for_the_label_and_include_their_bounds() -> None:
    geometry = Geometry(512, "pixel", minimum_aspect_ratio=0.5, maximum_aspect_ratio=2.0)
    shapes = geometry.decide(np.array([1024, 512, 1200, 512]), np.array([512, 1024, 512, 1200]))
    assert [REASONS[code] for code in shapes.reason] == [
        "kept",
        "kept",
        "maximum_aspect_ratio",
        "minimum_aspect_ratio",
    ]
    square = dataclasses.replace(geometry, crop_aspect="square")
    assert not square.decide(np.array([9000]), np.array([300])).reason.any()


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-3, 5), (2**40, 5), (1, 2**31), (1, 300)])
def test_sizes_without_a_target_are_dropped_never_raised(size: tuple[int, int]) -> None:
    shapes = Geometry(1024).decide(np.array([size[0], 640]), np.array([size[1], 480]))
    assert [REASONS[code] for code in shapes.reason] == ["geometry_error", "kept"]
    assert not shapes.target[0].any()


def test_an_intermediary_beyond_32_bits_is_dropped() -> None:
    geometry = Geometry(4096, "pixel", crop_aspect="square")
    shapes = geometry.decide(np.array([1]), np.array([2**31 - 1]))
    assert REASONS[shapes.reason[0]] == "geometry_error"


def test_one_target_for_all_of_a_bucket_whatever_the_scan_order() -> None:
    # One label, two targets in the old map, and whichever came first won.
    geometry = Geometry(0.25, "area", alignment=8)
    shapes = geometry.decide(np.array([1080, 1120]), np.array([2000, 2000]))
    assert shapes.aspect.tolist() == [0.55, 0.55]
    assert shapes.target.tolist() == [[368, 672], [368, 664]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 0}, "resolution must be a number above 0, got 0"),
        ({"resolution": float("nan")}, "resolution"),
        ({"resolution": "512"}, "resolution"),
        ({"resolution": 512.5}, "whole edge in px with resolution_type=pixel_area, got 512.5"),
        ({"resolution_type": "edge"}, "resolution_type must be one of pixel, area, pixel_area"),
        ({"resolution": 1e30}, "check resolution_type"),
        ({"alignment": 0}, "alignment"),
        ({"alignment": 8.0}, "alignment"),
        ({"aspect_rounding": 7}, "aspect_rounding must be a whole number from -1 to 6"),
        ({"crop_aspect": "face"}, "crop_aspect must be one of"),
        ({"crop_style": "middle"}, "crop_style must be one of center, centre, random, corner"),
        ({"crop_aspect": "closest"}, "crop_aspect_buckets must not be empty"),
        ({"crop_aspect": "random"}, "crop_aspect_buckets must not be empty"),
        ({"crop_aspect_buckets": (1.0, -2)}, "above 0, got -2"),
        ({"crop_aspect_buckets": (True,)}, "got True"),
        ({"minimum_image_size": -1}, "minimum_image_size"),
        (
            {"resolution": 1.0, "resolution_type": "area", "minimum_image_size": 512},
            "resolution_type=pixel_area",
        ),
        ({"minimum_aspect_ratio": 0}, "minimum_aspect_ratio"),
        (
            {"minimum_aspect_ratio": 2.0, "maximum_aspect_ratio": 1.0},
            "minimum_aspect_ratio=2 must not be above maximum_aspect_ratio=1",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Geometry(**({"resolution": 512} | changes))  # type: ignore[arg-type]


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"crop_style.*; resolution.*; alignment"):
        Geometry(-1, crop_style="x", alignment=-8)


def test_whole_numbers_are_fine_as_buckets() -> None:
    geometry = Geometry(512, crop_aspect="closest", crop_aspect_buckets=(1, 2))
    assert geometry.crop_aspect_buckets == (1.0, 2.0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width has 2 rows, height has 1"):
        Geometry(512).decide(np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match="need uniform numbers"):
        Geometry(512, crop_style="random").decide(np.array([1]), np.array([1]))
    with pytest.raises(ValueError, match=r"shape \(1, 3\), got \(1, 2\)"):
        Geometry(512).decide(np.array([1]), np.array([1]), np.zeros((1, 2)))
