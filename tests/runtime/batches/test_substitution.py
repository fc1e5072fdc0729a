"""Every place of a batch is filled, by the plan's row or by the first candidate that will do."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from factory.backends.prepared import UnusableSample
from factory.runtime.batches.substitution import Substitute, TooManyUnusableError, fill

BUCKET = 40


def unusable(row: int) -> UnusableSample:
    return UnusableSample("photos", f"{row}.jpg", "decode", "truncated")


def order_of(index: int) -> list[int]:
    """Return the candidates of a place: an order of its own for each."""
    return np.random.default_rng(index).permutation(BUCKET).tolist()


class Reading:
    """Reads rows of which some are bad, and remembers what it was asked for."""

    def __init__(self, bad: set[int]) -> None:
        """Take the bad rows."""
        self.bad = bad
        self.asked: list[int] = []

    def __call__(self, rows: NDArray[np.int64]) -> Iterator[int | UnusableSample]:
        """Yield the row itself as its sample."""
        for row in rows.tolist():
            self.asked.append(row)
            yield unusable(row) if row in self.bad else row


def filled(
    rows: list[int],
    bad: set[int],
    known: dict[int, UnusableSample] | None = None,
    allowed: int = BUCKET,
) -> tuple[dict[int, int], list[Substitute], Reading]:
    """Fill places; return what came to each, what stands in, and what was read."""
    put: dict[int, int] = {}
    reading = Reading(bad)
    substitutes = fill(
        np.array(rows), lambda index: iter(order_of(index)), reading, put.__setitem__,
        {} if known is None else known, allowed,
    )  # fmt: skip
    return put, substitutes, reading


def wanted(index: int, row: int, bad: set[int]) -> int:
    return next(each for each in [row, *order_of(index)] if each not in bad)


rows_of_a_batch = st.lists(st.integers(0, BUCKET - 1), min_size=1, max_size=12)
bad_rows = st.sets(st.integers(0, BUCKET - 1), max_size=BUCKET - 1)


@given(rows_of_a_batch, bad_rows)
def test_each_place_gets_its_row_or_the_first_candidate_that_will_do(
    rows: list[int], bad: set[int]
) -> None:
    put, substitutes, _ = filled(rows, bad)
    assert put == {index: wanted(index, row, bad) for index, row in enumerate(rows)}
    assert [(each.index, each.row, each.used) for each in substitutes] == [
        (index, row, put[index]) for index, row in enumerate(rows) if row in bad
    ]
    assert all(each.why == unusable(each.row) for each in substitutes)


@given(rows_of_a_batch, bad_rows, st.data())
def test_what_was_known_before_changes_what_is_read_and_not_what_is_used(
    rows: list[int], bad: set[int], data: st.DataObject
) -> None:
    before = data.draw(st.sets(st.sampled_from(sorted(bad)))) if bad else set()
    put, substitutes, reading = filled(rows, bad, {row: unusable(row) for row in before})
    fresh, fresh_substitutes, _ = filled(rows, bad)
    assert (put, substitutes) == (fresh, fresh_substitutes)
    assert not before & set(reading.asked)


@given(rows_of_a_batch, bad_rows, st.data())
def test_parts_filled_alone_agree_with_the_whole(
    rows: list[int], bad: set[int], data: st.DataObject
) -> None:
    """A rank that has some of the places finds what the others would have found."""
    cut = data.draw(st.integers(0, len(rows)))
    whole, _, _ = filled(rows, bad)
    put: dict[int, int] = {}
    for first, part in ((0, rows[:cut]), (cut, rows[cut:])):
        fill(
            np.array(part, dtype=np.int64),
            lambda index, first=first: iter(order_of(first + index)),
            Reading(bad),
            lambda index, row, first=first: put.__setitem__(first + index, row),
            {}, BUCKET,
        )  # fmt: skip
    assert put == whole


def test_it_is_given_up_where_too_many_are_met() -> None:
    first = order_of(0)
    bad = {5, *first[:3]} - {first[3]}
    with pytest.raises(TooManyUnusableError) as caught:
        filled([5], bad, allowed=len(bad) - 1)
    assert set(caught.value.met) == bad
    assert filled([5], bad, allowed=len(bad))[0] == {0: first[3]}


def test_it_is_given_up_where_none_is_left() -> None:
    with pytest.raises(TooManyUnusableError) as caught:
        filled([0, 1], set(range(BUCKET)), allowed=BUCKET * 2)
    assert set(caught.value.met) == set(range(BUCKET))


def test_an_error_of_the_storage_passes_through() -> None:
    def broken(rows: NDArray[np.int64]) -> Iterator[int]:
        raise ConnectionError("down")
        yield 0

    with pytest.raises(ConnectionError, match="down"):
        fill(np.array([1]), lambda _: iter(()), broken, lambda *_: None, {}, 1)
