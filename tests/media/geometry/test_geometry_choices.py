"""Which ratio is chosen, where the cut is placed, and that targets alone agree with the whole."""

import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from factory.media.crop import fit
from factory.media.geometry.aspect_ratio import AspectBuckets
from factory.media.geometry.geometry import Geometry, Targets
from tests.media.geometries import RATIOS, geometries, numbers, sizes
from tests.support.examples import examples

WEIGHTED = (
    {"aspect": 0.5, "weight": 0.1},
    {"aspect": 1, "weight": 0},
    {"aspect": 2, "weight": 0.9},
)


def assert_agree(geometry: Geometry, width: Any, height: Any, *chance: Any) -> None:
    whole, alone = (
        getattr(geometry, name)(width, height, *chance) for name in ("decide", "targets")
    )
    for field in dataclasses.fields(Targets):
        one, other = getattr(whole, field.name), getattr(alone, field.name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other), field.name


@settings(max_examples=examples(100), deadline=None)
@given(geometries(), sizes, st.integers(0, 99))
def test_targets_alone_are_those_of_the_whole_decision(
    geometry: Geometry, sizes: list[tuple[int, int]], seed: int
) -> None:
    width, height = np.array(sizes).T
    assert_agree(geometry, width, height, *numbers(len(sizes), seed))


@pytest.mark.parametrize("aspect", ["preserve", "square", "closest", "random"])
@pytest.mark.parametrize("kind", ["pixel", "pixel_area"])
def test_many_rows_with_wild_ones_among_them(aspect: str, kind: str) -> None:
    rng = np.random.default_rng(7)
    rows = 30_000  # some chunks, of which each may take another way to the same result
    width, height = np.exp(rng.uniform(np.log(64), np.log(8000), (2, rows))).astype(np.int32)
    wild = rng.integers(0, rows, 40)
    width[wild[:20]], height[wild[20:]] = rng.integers(-2, 2**31 - 1, (2, 20))
    geometry = Geometry(
        512,
        kind,
        crop_aspect=aspect,
        crop_style="face",
        crop_aspect_buckets=RATIOS,
        max_upscale_threshold=0.5 if aspect == "random" else None,
        minimum_image_size=100,
        maximum_image_size=2000,
        target_downsample_size=1000,
        maximum_aspect_ratio=2.5,
    )
    uniform, focus = numbers(rows, 1)
    assert_agree(geometry, width, height, uniform, focus)
    whole = geometry.decide(width, height, uniform, focus)
    assert len(np.unique(whole.reason)) > 2
    some = np.concatenate([wild, rng.integers(0, rows, 200)])
    for row in some.tolist():
        one = slice(row, row + 1)
        alone = geometry.decide(width[one], height[one], uniform[one], focus[one])
        for field in dataclasses.fields(whole):
            got, expected = getattr(alone, field.name), getattr(whole, field.name)[one]
            assert np.array_equal(got, expected), (field.name, width[row], height[row])


def test_targets_need_numbers_only_for_a_random_aspect() -> None:
    edges = np.array([640]), np.array([480])
    assert Geometry(512, crop_style="random").targets(*edges).reason == 0
    with pytest.raises(ValueError, match="need uniform numbers"):
        Geometry(512, crop_aspect="random", crop_aspect_buckets=(1.0,)).targets(*edges)


def test_a_random_choice_follows_its_weights() -> None:
    geometry = Geometry(512, "pixel", crop_aspect="random", crop_aspect_buckets=WEIGHTED)
    assert geometry.crop_aspect_buckets == (0.5, 1.0, 2.0)
    assert geometry.crop_aspect_weights == (0.1, 0.0, 0.9)
    rows = 20_000
    chosen = geometry.targets(np.full(rows, 900), np.full(rows, 900), numbers(rows, 3)[0])
    counts = np.array([(chosen.aspect == ratio).sum() for ratio in (0.5, 2.0)])
    assert counts.sum() == rows  # a weight of 0 is never chosen
    asked = np.array([0.1, 0.9]) * rows
    assert chi2.sf(((counts - asked) ** 2 / asked).sum(), 1) > 1e-6


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.data(),
)
def test_a_draw_takes_each_ratio_for_its_share_of_numbers(
    shares: list[int], data: st.DataObject
) -> None:
    weights = tuple(share / sum(shares) for share in shares)
    available = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6)))[: len(shares)]
    buckets = AspectBuckets((1.0,) * len(shares), weights)
    grid = (np.arange(1000) + 0.5) / 1000
    drawn = buckets.drawn(grid, np.tile(available, (1000, 1)))
    left = np.array(shares) * available
    if not left.any():
        assert (drawn == len(shares)).all()
        return
    counts = np.bincount(drawn, minlength=len(shares))
    assert np.abs(counts / 1000 - left / left.sum()).max() <= 0.001
    assert (np.diff(drawn) >= 0).all()
    last = buckets.drawn(np.array([np.nextafter(1.0, 0.0)]), available[None])
    assert left[last[0]] > 0


def test_without_weights_all_ratios_left_are_alike() -> None:
    buckets = AspectBuckets((0.5, 1.0, 2.0))
    grid = (np.arange(900) + 0.5) / 900
    assert np.bincount(buckets.drawn(grid)).tolist() == [300, 300, 300]
    left = np.tile([True, False, True], (900, 1))
    assert np.bincount(buckets.drawn(grid, left)).tolist() == [450, 0, 450]


def test_the_largest_enlargement_is_of_the_target_that_is_trained() -> None:
    # 0.5 MP means squares of 768 px, though its square root is 707.
    geometry = Geometry(
        0.5, "area", crop_aspect="random", crop_aspect_buckets=(1, 2), max_upscale_threshold=0.0
    )
    edges = np.array([767, 768, 1500]), np.array([767, 768, 700])
    assert geometry.available(*edges).tolist() == [[False, False], [True, False], [False, True]]


@pytest.mark.parametrize("style", ["center", "centre"])
def test_both_spellings_of_the_middle(style: str) -> None:
    geometry = Geometry(512, crop_aspect="square", crop_style=style)
    assert geometry == Geometry(512, crop_aspect="square")
    shapes = geometry.decide(np.array([1000]), np.array([2000]))
    assert shapes.crop.tolist() == [[256, 0]]


def test_settings_survive_replacing_hashing_and_pickling() -> None:
    geometry = Geometry(
        512,
        crop_aspect="random",
        crop_aspect_buckets=WEIGHTED,
        aspect_sizes={"0.5": [384, 768]},
        maximum_canvas=0.3,
    )
    geometry.targets(np.array([5]), np.array([5]), np.zeros((1, 3)))
    assert dataclasses.replace(geometry) == geometry
    assert pickle.loads(pickle.dumps(geometry)) == geometry
    assert hash(dataclasses.replace(geometry)) == hash(geometry)


FACE = Geometry(512, crop_aspect="square", crop_style="face")


@pytest.mark.parametrize(
    ("x", "y", "crop"),
    [
        (0.5, 0.5, [0, 256]),
        (0.4, 0.9, [0, 154]),  # 0.4 of 1024 is 409.6, less half of 512
        (0.1, 0.5, [0, 0]),
        (0.99, 0.5, [0, 512]),
        (-3.0, 9.0, [0, 0]),
    ],
)
def test_a_cut_is_centred_on_the_focus_as_far_as_it_fits(
    x: float, y: float, crop: list[int]
) -> None:
    assert FACE.uses_focus
    focus = np.array([[x, y]], dtype=np.float32)
    shapes = FACE.decide(np.array([2000]), np.array([1000]), np.full((1, 3), 0.77), focus)
    assert shapes.intermediary.tolist() == [[1024, 512]]
    assert shapes.crop.tolist() == [crop]


def test_without_a_focus_the_cut_is_random() -> None:
    chance = numbers(50, 1)[0]
    edges = np.full(50, 2000), np.full(50, 1000)
    as_random = dataclasses.replace(FACE, crop_style="random")
    expected = as_random.decide(*edges, chance).crop
    assert not as_random.uses_focus
    assert FACE.uses_random
    half = np.full((50, 2), [0.5, np.nan], dtype=np.float32)
    for focus in (None, np.full((50, 2), np.nan, dtype=np.float32), half):
        assert np.array_equal(FACE.decide(*edges, chance, focus).crop, expected)
    # And where the style does not ask for one, it changes nothing.
    middle = np.full((50, 2), 0.5, dtype=np.float32)
    assert np.array_equal(as_random.decide(*edges, chance, middle).crop, expected)


@pytest.mark.parametrize("style", ["center", "random", "corner", "face"])
def test_the_recorded_cut_is_the_one_that_makes_the_pixels(style: str) -> None:
    # A picture as large as its intermediary is not resampled: each pixel says where it was.
    rows, columns = np.mgrid[:640, :960]
    picture = np.stack([rows >> 3, columns >> 3, rows % 8 * 8 + columns % 8], axis=2)
    geometry = Geometry(640, "pixel", crop_aspect="square", crop_style=style)
    uniform, focus = numbers(8, 5)
    shapes = geometry.decide(np.full(8, 960), np.full(8, 640), uniform, focus)
    assert shapes.intermediary.tolist() == [[960, 640]] * 8
    for crop, target in zip(shapes.crop.tolist(), shapes.target.tolist(), strict=True):
        got = fit(picture.astype(np.uint8), (960, 640), tuple(crop), tuple(target)).astype(int)
        first = got[0, 0]
        assert [first[0] * 8 + first[2] // 8, first[1] * 8 + first[2] % 8] == crop
    places = len({tuple(crop) for crop in shapes.crop.tolist()})
    assert places > 1 if style in ("random", "face") else places == 1


def test_a_focus_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"focus must have shape \(1, 2\), got \(2,\)"):
        FACE.decide(np.array([1]), np.array([1]), np.zeros((1, 3)), np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"crop_aspect_buckets": [{"aspect": 1, "weight": 0.5}, {"aspect": 2, "weight": 0.4}]},
            "crop_aspect_buckets has weights that must sum to 1, they sum to 0.9",
        ),
        (
            {"crop_aspect_buckets": [{"aspect": 1, "weight": 1}, 2.0]},
            "must give every ratio a weight, or none",
        ),
        (
            {"crop_aspect_buckets": [{"aspect_bucket": 1.0, "weight": 1}]},
            "must be numbers, or {aspect: RATIO, weight: SHARE}; got {'aspect_bucket': 1.0",
        ),
        (
            {"crop_aspect_buckets": [{"aspect": 0, "weight": 1}]},
            "ratios width/height above 0, got 0",
        ),
        (
            {"crop_aspect_buckets": [{"aspect": 1, "weight": -1}]},
            "numbers from 0, got -1",
        ),
        ({"crop_aspect_buckets": [{"aspect": 1, "weight": True}]}, "from 0, got True"),
        ({"crop_aspect_buckets": ["1.0"]}, "above 0, got '1.0'"),
        ({"crop_aspect_buckets": (1, 2), "crop_aspect_weights": (1.0,)}, "from 0, got None"),
        ({"max_upscale_threshold": -0.1}, "must be a number from 0 or null, got -0.1"),
        (
            {"crop_aspect": "closest", "max_upscale_threshold": 0.2},
            "max_upscale_threshold=0.2 counts with crop_aspect=random only, got",
        ),
    ],
)
def test_wrong_choices_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    usual = {"resolution": 512, "crop_aspect": "random", "crop_aspect_buckets": (1, 2)}
    with pytest.raises(ValueError, match=re.escape(words)):
        Geometry(**(usual | changes))  # type: ignore[arg-type]


def test_weights_may_be_a_millionth_off() -> None:
    thirds = tuple({"aspect": ratio, "weight": 0.3333333} for ratio in (1, 2, 3))
    assert Geometry(512, crop_aspect_buckets=thirds).crop_aspect_weights == (0.3333333,) * 3
