"""Is the order of rows as good as drawn at random? Fixed seeds: a failure is a change.

Bounds are those that one in a million fair shuffles would cross.
"""

from functools import cache

import numpy as np
import pytest
from scipy.stats import chi2, norm

from factory.sampling.passes import Passes
from factory.sampling.permutation import TABLE_LIMIT
from tests.sampling.cases import backend

RARE = 1e-6
# A table of random keys (small), and the network above its limit (large).
SMALL, LARGE = 24, TABLE_LIMIT + 904


@cache
def orders(rows: int, count: int, name: str = "a", passes: int = 1, seed: int = 1) -> np.ndarray:
    """Return the row order of some epochs, [count * passes, rows]."""
    size = 1 if rows == SMALL else 100
    made = Passes(backend(name, (rows,), repeats=passes - 1), size, "fill", seed)
    return np.array(
        [
            np.concatenate(
                [made.batch(epoch, at * made.per_pass + n).rows for n in range(made.per_pass)]
            )
            for epoch in range(count)
            for at in range(passes)
        ]
    )


def assert_plausible(statistic: float, freedom: int) -> None:
    assert RARE < chi2.sf(statistic, freedom) < 1 - RARE


def assert_as_many(found: int, expected: float) -> None:
    """A count of rare coincidences, which is nearly Poisson."""
    assert abs(found - expected) < norm.isf(RARE) * np.sqrt(expected)


def test_every_row_comes_at_every_place_equally_often() -> None:
    found = orders(SMALL, 2000)
    table = np.zeros((SMALL, SMALL))
    for place in range(SMALL):
        table[place] = np.bincount(found[:, place], minlength=SMALL)
    expected = len(found) / SMALL
    assert_plausible(((table - expected) ** 2 / expected).sum(), (SMALL - 1) ** 2)


def test_rows_of_a_large_bucket_come_at_every_place_equally_often() -> None:
    found = orders(LARGE, 100)
    parts = LARGE // 50
    table = np.zeros((50, 50))
    for place in range(50):
        block = found[:, place * parts : (place + 1) * parts] // parts
        table[place] = np.bincount(block.ravel(), minlength=50)
    expected = table.sum() / 2500
    # Rows come without replacement, which makes counts steadier than independent draws are.
    assert_plausible(((table - expected) ** 2 / expected).sum() / (1 - 1 / 50), 49 * 49)


@pytest.mark.parametrize(("rows", "count"), [(SMALL, 2000), (LARGE, 100)])
def test_neighbours_do_not_stay_together(rows: int, count: int) -> None:
    steps = np.diff(orders(rows, count), axis=1)
    for distance in (1, -1, 2, 7):
        pairs = (rows - abs(distance)) * (rows - 1) / (rows * (rows - 1))
        assert_as_many(int((steps == distance).sum()), pairs * count)


@pytest.mark.parametrize(("rows", "count"), [(SMALL, 2000), (LARGE, 100)])
def test_epochs_passes_backends_and_seeds_are_independent(rows: int, count: int) -> None:
    first = orders(rows, count)
    twice = orders(rows, count // 2, passes=2)
    pairs = {
        "epochs": (first[1:], first[:-1]),
        "passes": (twice[1::2], twice[::2]),
        "backends": (first, orders(rows, count, name="b")),
        "seeds": (first, orders(rows, count, seed=2)),
    }
    for one, other in pairs.values():
        # A row at the same place in both: one a shuffle, by chance; and so for its follower.
        assert_as_many(int((one == other).sum()), len(one))
        assert_as_many(int((one[:, 1:] == other[:, :-1]).sum()), len(one) * (rows - 1) / rows)


def test_batches_of_buckets_are_spread_over_the_pass() -> None:
    sizes = (120, 60, 30)
    made = Passes(backend("a", sizes), 2, "fill", 1)
    table = np.zeros((3, 7))
    for epoch in range(300):
        for number in range(made.per_pass):
            bucket = made.backend.buckets.index(made.batch(epoch, number).bucket)
            table[bucket, number * 7 // made.per_pass] += 1
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, 2 * 6) > RARE
