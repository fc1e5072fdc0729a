"""Shuffles by bijection: one to one, uniform, and different for every key."""

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from factory.sampling.permutation import (
    TABLE_LIMIT,
    Permutation,
    derive_key,
    images_by_row,
    random_words,
)
from tests.support.examples import examples

# Keys are fixed, so a test that passes always passes; one in a thousand fair shuffles of
# another set of keys would fail.
IMPLAUSIBLE = 1e-3


def plausible(observed: np.ndarray, expected: float) -> bool:
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return bool(chi2.sf(statistic, observed.size - 1) > IMPLAUSIBLE)


def shuffles(n: int, count: int) -> np.ndarray:
    everything = np.arange(n)
    return np.stack([Permutation(n, derive_key("test", key))(everything) for key in range(count)])


def test_every_size_up_to_3000_is_a_bijection() -> None:
    for n in range(1, 3001):
        images = Permutation(n, derive_key(n))(np.arange(n))
        assert np.array_equal(np.sort(images), np.arange(n)), n


@settings(max_examples=25, deadline=None)
@given(st.integers(TABLE_LIMIT - 2, 60_000), st.integers(0, 2**64 - 1))
def test_sizes_beyond_the_table_are_bijections(n: int, key: int) -> None:
    images = Permutation(n, key)(np.arange(n))
    assert np.array_equal(np.sort(images), np.arange(n))


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(1, 2**60), st.integers(0, 2**64 - 1), st.data())
def test_scalar_vector_and_inverse_agree(n: int, key: int, data: st.DataObject) -> None:
    shuffle = Permutation(n, key)
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    images = shuffle(indices)
    assert images.dtype == np.int64
    assert images.min() >= 0
    assert images.max() < n
    assert [shuffle[index] for index in indices.tolist()] == images.tolist()
    assert shuffle.inverse(images).tolist() == indices.tolist()


def test_shape_is_kept_and_nothing_is_changed_in_place() -> None:
    indices = np.arange(12).reshape(3, 4)
    for n in (12, 10**6):
        assert Permutation(n, 1)(indices).shape == (3, 4)
        assert np.array_equal(indices, np.arange(12).reshape(3, 4))
    assert Permutation(5, 1)(np.array([], dtype=np.int64)).size == 0


@pytest.mark.parametrize("n", [5, 10**6])
@pytest.mark.parametrize("wrong", [-1, "n"])
def test_an_index_outside_is_refused(n: int, wrong: int | str) -> None:
    index = n if wrong == "n" else -1
    shuffle = Permutation(n, 3)
    with pytest.raises(IndexError, match="outside"):
        shuffle[index]
    with pytest.raises(IndexError, match="outside"):
        shuffle(np.array([0, index]))
    with pytest.raises(IndexError, match="outside"):
        shuffle.inverse(np.array([index]))


def test_a_negative_size_is_refused_and_an_empty_one_is_empty() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Permutation(-1, 0)
    assert len(Permutation(0, 7)) == 0


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_tiny_shuffles_take_every_order_equally_often(n: int) -> None:
    orders = dict.fromkeys(permutations(range(n)), 0)
    for row in shuffles(n, 60 * len(orders)).tolist():
        orders[tuple(row)] += 1
    assert plausible(np.array(list(orders.values())), 60)


@pytest.mark.parametrize("n", [7, 20, 50, TABLE_LIMIT + 1])
def test_every_index_lands_everywhere_equally_often(n: int) -> None:
    count = 20_000 if n <= 50 else 1500
    rows = shuffles(n, count)
    for index in {0, 1, n // 2, n - 2, n - 1}:
        bins = min(n, 50)
        landed = np.bincount(rows[:, index] * bins // n, minlength=bins)
        sizes = np.bincount(np.arange(n) * bins // n, minlength=bins)
        assert plausible(landed * (n / bins) / sizes, count / bins), index


@pytest.mark.parametrize("n", [13, 50, TABLE_LIMIT + 1, 5000])
def test_neighbours_do_not_stay_neighbours(n: int) -> None:
    count = 4000 if n <= 50 else 400
    rows = shuffles(n, count)
    # The network works on rows of about sqrt(n): neighbours across them must part as well.
    for lag in {1, 2, int(n**0.5), int(n**0.5) + 1}:
        gaps = np.bincount(((rows[:, lag:] - rows[:, :-lag]) % n).ravel(), minlength=n)[1:]
        assert plausible(gaps, count * (n - lag) / (n - 1)), lag


def test_a_shuffle_has_one_fixed_point_on_average() -> None:
    for n in (50, TABLE_LIMIT + 1):
        fixed = (shuffles(n, 1000) == np.arange(n)).sum(axis=1)
        # Both the mean and the variance of the count are 1; 0.15 is five standard errors.
        assert abs(fixed.mean() - 1) < 0.15
        assert abs(fixed.var() - 1) < 0.35


@pytest.mark.parametrize("n", [50, TABLE_LIMIT + 1, 10**9])
def test_keys_that_differ_in_one_bit_give_unrelated_shuffles(n: int) -> None:
    indices = np.arange(min(n, 1000))
    base = Permutation(n, 12345)(indices)
    for bit in range(64):
        other = Permutation(n, 12345 ^ (1 << bit))(indices)
        # One image in n agrees by chance: at most 50 x 1/50 here, 8 leaves room for luck.
        assert (base == other).sum() <= 8, bit


def test_keys_tell_their_parts_apart() -> None:
    keys = {
        derive_key(1, 23), derive_key(12, 3), derive_key("1", 23), derive_key(123),
        derive_key("a", "b"), derive_key("ab"), derive_key("a;", "b"), derive_key(-1, 23),
    }  # fmt: skip
    assert len(keys) == 8
    assert all(0 <= key < 2**64 for key in keys)


def test_values_are_the_same_for_ever() -> None:
    assert derive_key(7, "photos", "128x96") == 0x82727F614326557A
    assert random_words(5, 2, 42).tolist() == [701532786141963250, 16015981125662989062]
    assert Permutation(10, 99)(np.arange(10)).tolist() == [2, 4, 5, 6, 1, 0, 9, 7, 8, 3]
    assert Permutation(10**8, 99)(np.arange(4)).tolist() == [27858009, 93940012, 74797277, 17807254]


def test_another_process_shuffles_alike() -> None:
    code = (
        "import numpy as np; from factory.sampling.permutation import *; "
        "print(Permutation(10**7, derive_key(3, 'é', 1))(np.arange(5)).tolist())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(
        Permutation(10**7, derive_key(3, "é", 1))(np.arange(5)).tolist()
    )


def test_random_words_do_not_depend_on_where_a_stretch_starts() -> None:
    assert random_words(0, 100, 5)[40:].tolist() == random_words(40, 60, 5).tolist()


def test_rows_of_images_are_those_of_each_permutation() -> None:
    sizes = (1, 7, TABLE_LIMIT, TABLE_LIMIT + 1, TABLE_LIMIT + 130, 10**6, 10**10)
    made = [Permutation(size, key) for key in range(40) for size in sizes]
    random = np.random.default_rng(1)
    indices = np.array([random.integers(0, each.n, 33) for each in made])
    found = images_by_row(made, indices)
    assert found.dtype == np.int64
    for row, each in enumerate(made):
        assert found[row].tolist() == each(indices[row]).tolist()
