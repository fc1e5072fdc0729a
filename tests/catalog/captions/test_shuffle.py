"""Variants of a caption with its tags in other orders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.captions.shuffle import SEPARATORS, Shuffle, shuffle_of

SHUFFLES = st.builds(
    Shuffle,
    count=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    split_on=st.sampled_from(sorted(SEPARATORS)),
    position_start=st.integers(0, 4),
    include_original=st.booleans(),
)


def tags(caption: str, shuffle: Shuffle) -> list[str]:
    cut = SEPARATORS[shuffle.split_on][0]
    return [tag.strip() for tag in caption.split(cut) if tag.strip()]


@given(SHUFFLES, st.text(alphabet="abcé ,.", max_size=30))
def test_variants_are_orders_of_the_same_tags(shuffle: Shuffle, caption: str) -> None:
    variants = shuffle.variants(caption)
    own, fixed = tags(caption, shuffle), shuffle.position_start
    assert 1 <= len(variants) <= shuffle.count + shuffle.include_original
    assert len(set(variants)) == len(variants)
    for variant in variants:
        assert sorted(tags(variant, shuffle)) == sorted(own)
        assert tags(variant, shuffle)[:fixed] == own[:fixed]
    if shuffle.include_original or len(own) - fixed < 2:
        assert variants[0] == caption
    assert shuffle.variants(caption) == variants


def test_fixed_tags_stay_in_front() -> None:
    shuffle = Shuffle(count=20, position_start=2)
    starts = {variant[:4] for variant in shuffle.variants("a, b, c, d, e")}
    assert starts == {"a, b"}


def test_more_variants_only_add_to_fewer() -> None:
    few, many = (Shuffle(count=n, seed=3).variants("a, b, c, d, e, f") for n in (3, 6))
    assert many[: len(few)] == few
    assert len(many) > len(few)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "shuffle.count must be at least 1, got 0"),
        ({"count": True}, "shuffle.count must be of type int, got True"),
        ({"count": 2.0}, "shuffle.count must be of type int, got 2.0"),
        ({"count": "2"}, "shuffle.count must be of type int, got '2'"),
        ({"seed": None}, "shuffle.seed must be of type int, got None"),
        ({"position_start": -1}, "shuffle.position_start must be at least 0, got -1"),
        ({"include_original": "no"}, "shuffle.include_original must be of type bool, got 'no'"),
        (
            {"split_on": "semicolon"},
            "must be one of comma, space, period, got 'semicolon'",
        ),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Shuffle(**options)  # type: ignore[arg-type]


def test_a_count_of_zero_means_no_shuffling_in_a_config() -> None:
    assert shuffle_of(0, seed=3) is None
    assert shuffle_of(2, seed=3) == Shuffle(count=2, seed=3)
