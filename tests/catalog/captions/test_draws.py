"""The draw among several captions, and which samples go without."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.catalog.captions.draws import choose, dropped

KEYS = [f"p/{n:05d}.png" for n in range(4000)]


@given(st.lists(st.text(), min_size=1), st.integers(), st.integers(), st.text())
def test_the_choice_depends_on_its_arguments_alone(
    captions: list[str], seed: int, epoch: int, key: str
) -> None:
    first = choose(captions, seed=seed, epoch=epoch, key=key)
    assert first in captions
    assert choose(tuple(captions), seed=seed, epoch=epoch, key=key) == first


def test_the_choice_is_even_over_keys_epochs_and_seeds() -> None:
    captions = ["a", "b", "c"]
    draws = {
        "key": [choose(captions, seed=1, epoch=1, key=key) for key in KEYS],
        "epoch": [choose(captions, seed=1, epoch=n, key="k") for n in range(4000)],
        "seed": [choose(captions, seed=n, epoch=1, key="k") for n in range(4000)],
    }
    for name, drawn in draws.items():
        # Six standard deviations around 1333.
        assert all(abs(count - 4000 / 3) < 180 for count in Counter(drawn).values()), name
    assert len({tuple(drawn) for drawn in draws.values()}) == 3


def test_draws_stay_the_same_between_versions() -> None:
    captions = [str(n) for n in range(1000)]
    drawn = [choose(captions, seed=7, epoch=e, key=k) for e, k in ((1, "a"), (1, "b"), (2, "a"))]
    assert drawn == ["282", "118", "685"]
    kept = "".join("-d"[dropped(0.5, seed=7, epoch=0, key=key)] for key in KEYS[:20])
    assert kept == "------d--d-----ddd--"


def test_there_must_be_something_to_choose_from() -> None:
    with pytest.raises(ValueError, match=r"'a\.png' has no caption to choose from"):
        choose((), seed=0, epoch=0, key="a.png")


def drops(probability: float, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return np.array([dropped(probability, seed=seed, epoch=epoch, key=key) for key in KEYS])


def test_as_many_are_dropped_as_asked() -> None:
    assert not drops(0.0).any()
    assert drops(1.0).all()
    for probability in (0.1, 0.5, 0.9):
        # Six standard deviations of 4000 draws.
        spread = 6 * (probability * (1 - probability) / 4000) ** 0.5
        assert abs(drops(probability).mean() - probability) < spread


def test_a_higher_probability_drops_more_of_the_same() -> None:
    assert (drops(0.5) >= drops(0.1)).all()


def test_other_epochs_and_seeds_drop_others() -> None:
    patterns = [drops(0.5, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for n, one in enumerate(patterns):
        for other in patterns[:n]:
            assert abs((one == other).mean() - 0.5) < 0.05


def test_dropout_and_choice_are_independent() -> None:
    lost = drops(0.5)
    first = np.array([choose("ab", seed=0, epoch=0, key=key) == "a" for key in KEYS])
    assert abs((lost == first).mean() - 0.5) < 0.05
