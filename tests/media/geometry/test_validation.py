"""What limits a target or an intermediary: downsampling, the canvas, forced sizes, bounds."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from factory.media.geometry.geometry import REASONS, Geometry, Shapes
from tests.media.geometries import ALIGNMENTS, geometries, numbers, sizes
from tests.support.examples import examples

Sizes = list[tuple[int, int]]


def decide(geometry: Geometry, *pictures: tuple[int, int], seed: int = 0) -> Shapes:
    width, height = np.array(pictures).T
    return geometry.decide(width, height, *numbers(len(pictures), seed))


def without(geometry: Geometry) -> Geometry:
    return dataclasses.replace(geometry, maximum_image_size=None, target_downsample_size=None)


@settings(max_examples=examples(100), deadline=None)
@given(geometries(), sizes, st.integers(0, 99))
def test_downsampling_never_enlarges_and_changes_no_target(
    geometry: Geometry, sizes: Sizes, seed: int
) -> None:
    assume(geometry.maximum_image_size is not None)
    got = decide(geometry, *sizes, seed=seed)
    plain = decide(without(geometry), *sizes, seed=seed)
    assert np.array_equal(got.target, plain.target)
    assert np.array_equal(got.reason, plain.reason)
    changed = (got.intermediary != plain.intermediary).any(axis=1)
    # Whatever it changed is larger than without it, and no larger than the picture.
    assert (got.intermediary[changed] >= plain.intermediary[changed]).all()
    assert (got.intermediary[changed] <= np.array(sizes)[changed]).all()


@pytest.mark.parametrize(
    ("kind", "resolution", "most", "wanted", "limit"),
    [
        ("pixel", 512, 1024, 768, (1024, 1024)),
        ("pixel_area", 512, 1024, 768, (1024, 1024)),
        ("area", 0.25, 1.0, 0.5, (1000, 1000)),
    ],
)
def test_only_what_is_above_the_maximum_is_downsampled(
    kind: str, resolution: float, most: float, wanted: float, limit: tuple[int, int]
) -> None:
    geometry = Geometry(
        resolution,
        kind,
        crop_aspect="square",
        maximum_image_size=most,
        target_downsample_size=wanted,
    )
    pictures = limit, (limit[0] + 1, limit[1]), (4000, 3000)
    got, plain = decide(geometry, *pictures), decide(without(geometry), *pictures)
    larger = (got.intermediary > plain.intermediary).any(axis=1)
    assert larger.tolist() == [False, True, True]
    assert got.intermediary[0].tolist() == plain.intermediary[0].tolist()


def test_a_large_picture_keeps_more_around_its_cut() -> None:
    geometry = Geometry(
        1024, crop_aspect="square", maximum_image_size=1536, target_downsample_size=1280
    )
    shapes = decide(geometry, (4000, 3000), (1400, 1100))
    # 1472 x 1104 is about 1280 squared; the smaller picture just covers its square.
    assert shapes.intermediary.tolist() == [[1472, 1104], [1303, 1024]]
    assert shapes.target.tolist() == [[1024, 1024], [1024, 1024]]
    assert shapes.crop.tolist() == [[40, 224], [0, 139]]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.sampled_from(ALIGNMENTS),
    st.sampled_from(["preserve", "square"]),
    st.integers(512, 1500),
    sizes,
)
def test_pixel_area_means_the_area_of_its_square_in_every_setting(
    alignment: int, aspect: str, edge: int, sizes: Sizes
) -> None:
    names = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
    edges = dict(zip(names, (edge // 2, edge + 300, edge + 100), strict=True))
    shared = {"alignment": alignment, "crop_aspect": aspect}
    by_edge = Geometry(edge, "pixel_area", **shared, **edges)  # type: ignore[arg-type]
    areas = {name: value**2 / 1e6 for name, value in edges.items()}
    by_area = Geometry(edge**2 / 1e6, "area", **shared, **areas)  # type: ignore[arg-type]
    # The square root of an area may come out a hair below its edge.
    assume(int((by_area.resolution * 1e6) ** 0.5) == edge)
    assume(int((areas["target_downsample_size"] * 1e6) ** 0.5) == edge + 100)
    one, other = decide(by_edge, *sizes), decide(by_area, *sizes)
    for field in dataclasses.fields(one):
        assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@settings(max_examples=examples(100), deadline=None)
@given(geometries(aspect_sizes={}), sizes, st.integers(0, 99), st.sampled_from([0.005, 0.1, 0.5]))
def test_no_target_is_above_the_canvas(
    geometry: Geometry, sizes: Sizes, seed: int, canvas: float
) -> None:
    free = dataclasses.replace(geometry, maximum_canvas=None)
    limited = dataclasses.replace(geometry, maximum_canvas=canvas)
    before, after = decide(free, *sizes, seed=seed), decide(limited, *sizes, seed=seed)
    areas = before.target.prod(axis=1, dtype=np.int64), after.target.prod(axis=1, dtype=np.int64)
    kept = after.reason == 0
    assert (areas[1] <= round(canvas * 1e6)).all()
    # A picture whose target fits anyway keeps it, unless a square's edge is the larger one.
    both = kept & (before.reason == 0)
    fits = both & (areas[0] <= round(canvas * 1e6)) & (before.aspect != 1.0)
    assert np.array_equal(before.target[fits], after.target[fits])
    assert (areas[1] <= areas[0])[both].all()


def test_forced_sizes_replace_a_bucket_whole() -> None:
    forced = {"0.75": [768, 1024], 1.0: (768, 768)}
    geometry = Geometry(1024, aspect_sizes=forced)
    assert geometry.aspect_sizes == ((0.75, (768, 1024)), (1.0, (768, 768)))
    pictures = (1500, 2000), (1510, 2000), (1000, 1000), (1000, 1004), (1600, 900)
    plain = decide(Geometry(1024), *pictures)
    assert plain.aspect.tolist()[:2] == [0.78, 0.78]
    geometry = Geometry(1024, aspect_sizes={0.78: (768, 1024), **forced})
    shapes = decide(geometry, *pictures)
    assert (
        shapes.target.tolist() == [[768, 1024]] * 2 + [[768, 768]] * 2 + plain.target[4:].tolist()
    )
    assert shapes.aspect.tolist()[:4] == [0.75, 0.75, 1.0, 1.0]
    assert shapes.intermediary.tolist()[:4] == [[768, 1024], [773, 1024], [768, 768], [768, 772]]


def test_limits_of_labels_hold_for_forced_sizes() -> None:
    geometry = Geometry(1024, aspect_sizes={0.78: (768, 1024)}, minimum_aspect_ratio=0.77)
    assert REASONS[decide(geometry, (1500, 2000)).reason[0]] == "minimum_aspect_ratio"
    assert (
        decide(dataclasses.replace(geometry, minimum_aspect_ratio=0.75), (1500, 2000)).reason == 0
    )


@settings(max_examples=examples(100), deadline=None)
@given(geometries(), sizes, st.integers(0, 99), st.floats(0.1, 4), st.floats(0.1, 4))
def test_a_stricter_limit_never_keeps_more(
    geometry: Geometry, sizes: Sizes, seed: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    unit = 1 if geometry.resolution_type == "area" else 1000
    for name, loose, strict in (
        ("minimum_image_size", low * unit, high * unit),
        ("minimum_aspect_ratio", low, high),
        ("maximum_aspect_ratio", high, low),
    ):
        kept = [
            decide(dataclasses.replace(geometry, **{name: value}), *sizes, seed=seed).reason == 0
            for value in (None, loose, strict)
        ]
        assert (kept[0] >= kept[1]).all()
        assert (kept[1] >= kept[2]).all()


@pytest.mark.parametrize("alignment", [8, 16, 32, 64])
@pytest.mark.parametrize("megapixels", [0.25, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3000), (2000, 2000), (1030, 1000)])
def test_squares_of_an_area_are_covered_in_proportion(
    alignment: int, megapixels: float, size: tuple[int, int]
) -> None:
    # Landscapes used to be smaller than their square, and portraits squashed into it.
    shapes = decide(Geometry(megapixels, "area", alignment, crop_aspect="square"), size)
    (wide, tall), target = shapes.intermediary[0].tolist(), shapes.target[0].tolist()
    assert target == [geometry_edge(megapixels)] * 2
    assert min(wide, tall) == target[0]
    assert abs(wide * size[1] - tall * size[0]) <= max(size) or max(size) <= 1.03 * min(size)


def geometry_edge(megapixels: float) -> int:
    return {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}[megapixels]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"maximum_image_size": 2048},
            "maximum_image_size=2048 needs target_downsample_size beside it",
        ),
        (
            {"target_downsample_size": 2048},
            "target_downsample_size=2048 needs maximum_image_size beside it",
        ),
        (
            {"maximum_image_size": 1024, "target_downsample_size": 1536},
            "target_downsample_size=1536 must not be above maximum_image_size=1024",
        ),
        (
            {"maximum_image_size": 2.0, "target_downsample_size": 1.5},
            "target_downsample_size=1.5 means px with resolution_type=pixel_area and must be at",
        ),
        (
            {
                "resolution": 1.0,
                "resolution_type": "area",
                "maximum_image_size": 20.0,
                "target_downsample_size": 1.5,
            },
            "maximum_image_size=20 means megapixels with resolution_type=area and must be below 20",
        ),
        ({"maximum_image_size": 0}, "maximum_image_size must be a number above 0 or null"),
        (
            {"maximum_canvas": 0.001},
            "below one square of alignment=64; set maximum_canvas=0.0040",
        ),
        ({"maximum_canvas": 1048576}, "maximum_canvas=1.04858e+06 means megapixels"),
        (
            {"aspect_sizes": {"0.75": [768, 1000]}},
            "[width, height] in multiples of alignment=64, got [768, 1000]",
        ),
        ({"aspect_sizes": {"0.75": [768]}}, "got [768]"),
        ({"aspect_sizes": {"0.75": [-64, 64]}}, "got [-64, 64]"),
        ({"aspect_sizes": {"0.75": 768}}, "got 768"),
        ({"aspect_sizes": {"0.755": [64, 64]}}, "the label '0.755'; labels are ratios"),
        ({"aspect_sizes": {"wide": [64, 64]}}, "of at most 2 decimals, such as 0.75"),
        ({"aspect_sizes": 7}, "aspect_sizes must map labels to [width, height], got 7"),
    ],
)
def test_wrong_limits_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Geometry(**({"resolution": 1024} | changes))  # type: ignore[arg-type]


def test_limits_that_fit_their_unit_are_accepted() -> None:
    area = Geometry(1.0, "area", maximum_image_size=19.9, target_downsample_size=1.5)
    assert area.maximum_image_size == 19.9
    assert Geometry(1024, maximum_image_size=6000, target_downsample_size=1280)
