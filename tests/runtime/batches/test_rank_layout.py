"""Blocks of ranks that share their samples."""

import pytest

from factory.errors import PlanError
from factory.runtime.batches.rank_layout import Layout


def test_consecutive_ranks_form_a_block() -> None:
    layouts = [Layout(rank, 6, 1, context_parallel=2) for rank in range(6)]
    assert [layout.replica for layout in layouts] == [0, 0, 1, 1, 2, 2]
    assert {layout.replicas for layout in layouts} == {3}


@pytest.mark.parametrize("size", [0, 3, 8])
def test_blocks_must_come_out_even(size: int) -> None:
    with pytest.raises(PlanError, match=f"context_parallel={size} must divide .* 4: .* 1, 2, 4"):
        Layout(0, 4, 1, context_parallel=size)
