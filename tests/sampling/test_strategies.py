"""From probabilities to weights."""

import pickle

import pytest

from factory.sampling.strategies import AutoWeighting, MixtureEntry, UniformWeighting

ENTRIES = [MixtureEntry("a", 0.5, 100), MixtureEntry("b", 2.0, 300), MixtureEntry("c", 1.0, 600)]


def test_uniform_takes_the_probability_whatever_the_length() -> None:
    assert UniformWeighting().weights(ENTRIES).tolist() == [0.5, 2.0, 1.0]


def test_auto_multiplies_by_the_share_of_the_length() -> None:
    assert AutoWeighting().weights(ENTRIES).tolist() == pytest.approx([0.05, 0.6, 0.6])


def test_auto_of_nothing_is_zero() -> None:
    empty = [MixtureEntry("a", 1.0, 0), MixtureEntry("b", 1.0, 0)]
    assert AutoWeighting().weights(empty).tolist() == [0, 0]


def test_strategies_compare_print_and_pickle() -> None:
    assert AutoWeighting() == pickle.loads(pickle.dumps(AutoWeighting()))
    assert repr(UniformWeighting()) == "UniformWeighting()"
