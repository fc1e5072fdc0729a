"""Rows come from whichever shards they lie in, whatever they are made of, in the order asked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.cache.format.safetensors_file import DTYPES
from factory.cache.format.shard import ShardBuilder, TensorShard, layout_of, matrices_of
from factory.cache.gather.gather_rows import BadRowsError, gather_rows, new_tensor

ROWS = 7


def shard_of(number: int, fields: dict[str, torch.Tensor]) -> TensorShard:
    layout = layout_of(fields)
    builder = ShardBuilder(layout, ROWS)
    builder.append(matrices_of(layout, fields))
    data = np.frombuffer(bytes(builder.finish()), np.uint8)
    return TensorShard(data, f"shard {number}", layout, ROWS)


@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, ROWS - 1)), min_size=1, max_size=9),
    shape=st.lists(st.integers(1, 5), max_size=3),
    dtype=st.sampled_from(list(DTYPES.values())),
)
def test_rows_come_from_several_shards_in_the_order_asked_for(
    places: list[tuple[int, int]], shape: list[int], dtype: torch.dtype
) -> None:
    count = ROWS * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    stored = [
        torch.from_numpy(np.arange(count) * (151 + n) % 251).to(torch.uint8) for n in range(3)
    ]
    rows = [each.view(dtype).view(ROWS, *shape) for each in stored]
    shards = [shard_of(n, {"one": each, "mask": each[:, None]}) for n, each in enumerate(rows)]

    found = gather_rows(
        [shards[which] for which, _ in places], [row for _, row in places], None, None, new_tensor
    )

    for name in ("one", "mask"):
        assert found[name].dtype == dtype
        wanted = [rows[which][row].reshape(-1).view(torch.uint8).tolist() for which, row in places]
        given = found[name].reshape(len(places), -1).view(torch.uint8).tolist()
        assert given == wanted


def test_a_row_beyond_its_shard_is_refused() -> None:
    shard = shard_of(0, {"one": torch.zeros(ROWS, 2)})
    with pytest.raises(BadRowsError, match="beyond its 7") as caught:
        gather_rows([shard, shard], [0, ROWS], None, None, new_tensor)
    assert caught.value.places == [1]


def test_the_number_of_threads_stays_as_it_was_set() -> None:
    before = torch.get_num_threads()
    shard = shard_of(0, {"one": torch.zeros(ROWS, 2**17)})
    gather_rows([shard] * 4, [0, 1, 2, 3], None, None, new_tensor)
    assert torch.get_num_threads() == before


def test_rows_wider_than_opencv_counts_are_gathered_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("factory.cache.gather.gather_rows._OPENCV_COLUMNS", 7)
    stored = torch.arange(2 * ROWS, dtype=torch.float32).view(ROWS, 2)
    shard = shard_of(0, {"one": stored})
    found = gather_rows([shard] * 3, [5, 0, 6], None, None, new_tensor)
    assert torch.equal(found["one"], stored[[5, 0, 6]])
