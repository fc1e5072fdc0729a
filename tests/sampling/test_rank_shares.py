"""Sharing a global batch among ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.rank_shares import RankLayout, check_division, pad, share


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_shares_join_to_the_batch_in_order(ranks: int, micros: int, size: int) -> None:
    rows = np.arange(100, 100 + ranks * micros * size)
    parts = [
        share(rows, rank, ranks, micro, micros) for rank in range(ranks) for micro in range(micros)
    ]
    assert {len(part) for part in parts} == {size}
    assert np.array_equal(np.concatenate(parts), rows)


def test_a_rank_gets_a_contiguous_part() -> None:
    assert share(np.arange(12), 1, 2).tolist() == [6, 7, 8, 9, 10, 11]
    assert share(np.arange(12), 1, 2, 2, 3).tolist() == [10, 11]


def test_an_unequal_division_names_the_numbers_that_work() -> None:
    with pytest.raises(
        PlanError, match=r"batch of 12 .* 5 ranks x 1 .* one of 1, 2, 3, 4, 6, 12\."
    ):
        share(np.arange(12), 0, 5)
    with pytest.raises(PlanError, match=r"4 ranks x 2 micro-batches = 8"):
        check_division(12, 4, 2)
    with pytest.raises(PlanError, match="short_batch=short"):
        check_division(3, 4)
    check_division(12, 3, 2)


@pytest.mark.parametrize("place", [(2, 2, 0, 1), (-1, 2, 0, 1), (0, 2, 3, 3)])
def test_a_rank_outside_is_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(PlanError, match="count from 0"):
        share(np.arange(12), *place)


@given(st.integers(1, 20), st.integers(1, 8))
def test_padding_repeats_the_last_row_and_says_so(size: int, multiple: int) -> None:
    rows, valid = pad(np.arange(size), multiple)
    assert len(rows) % multiple == 0
    assert len(rows) - size < multiple
    assert rows[valid].tolist() == list(range(size))
    assert set(rows[~valid].tolist()) <= {size - 1}


def test_padding_to_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="1 or more"):
        pad(np.arange(3), 0)


def test_an_unequal_division_says_whose_batch_it_is_and_who_shares_it() -> None:
    with pytest.raises(PlanError, match=r"^backend 'a': .* by 4 groups of 2 ranks x 1 .* = 4; "):
        check_division(6, 4, owner="backend 'a': ", whom="groups of 2 ranks")


def test_consecutive_ranks_form_a_block() -> None:
    layouts = [RankLayout(rank, 6, 1, context_parallel=2) for rank in range(6)]
    assert [layout.replica for layout in layouts] == [0, 0, 1, 1, 2, 2]
    assert {layout.replicas for layout in layouts} == {3}


@pytest.mark.parametrize("size", [0, 3, 8])
def test_blocks_must_come_out_even(size: int) -> None:
    with pytest.raises(PlanError, match=f"context_parallel={size} must divide .* 4: .* 1, 2, 4"):
        RankLayout(0, 4, 1, context_parallel=size)
