"""Substitutes: every row of the bucket once, those to avoid last, by the key alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from factory.sampling.substitutes import candidates, substitute_key

buckets = st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True)


@given(buckets, st.integers(0, 2**64 - 1), st.sets(st.integers(0, 10_000), max_size=20))
def test_every_row_comes_once_and_those_to_avoid_come_last(rows, key, avoid):
    drawn = list(candidates(np.array(rows), key, avoid))
    assert sorted(drawn) == sorted(rows)
    put_off = [row in avoid for row in drawn]
    assert put_off == sorted(put_off)


@given(buckets, st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_avoiding_a_row_moves_no_other(rows, key, avoided):
    free = [row for row in candidates(np.array(rows), key) if row != avoided]
    kept = [row for row in candidates(np.array(rows), key, {avoided}) if row != avoided]
    assert free == kept


def test_every_place_has_an_order_of_its_own():
    order = np.arange(1000)
    keys = [
        substitute_key(seed, epoch, backend, number, place)
        for seed in (0, 1)
        for epoch in (0, 1)
        for backend in ("a", "b")
        for number in (0, 1)
        for place in (0, 1)
    ]
    assert len(set(keys)) == len(keys)
    firsts = {next(candidates(order, key)) for key in keys}
    assert len(firsts) > len(keys) // 2


def test_the_first_candidate_is_any_row_of_the_bucket():
    firsts = [next(candidates(np.arange(8), substitute_key(0, 0, "a", n, 0))) for n in range(4000)]
    counts = np.bincount(firsts, minlength=8)
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 24.3  # the 99.9th percentile with 7 degrees of freedom
