"""Rows come from wherever they lie, whatever they are made of."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.cache.gather import kernel
from factory.cache.gather.kernel import copy_rows

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int16, torch.uint8, torch.bool,
]  # fmt: skip


def memory(nbytes: int, shift: int) -> Any:
    """Return bytes, each unlike those near it, that begin so far off a word."""
    room = np.empty(nbytes + 8 + shift, np.uint8)
    start = -room.ctypes.data % 8 + shift
    found = room[start : start + nbytes]
    found[:] = np.arange(nbytes) * 151 % 251
    return found


@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=9),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(DTYPES),
    shifts=st.lists(st.integers(0, 9), min_size=3, max_size=3),
)
def test_rows_come_from_several_memories_in_the_order_asked_for(
    places: list[tuple[int, int]], shape: list[int], dtype: torch.dtype, shifts: list[int]
) -> None:
    out = torch.zeros((len(places), *shape), dtype=torch.uint8).to(dtype)
    stride = out.nbytes // len(places)
    memories = [memory(7 * stride, shift) for shift in shifts]
    addresses = [memories[which].ctypes.data + row * stride for which, row in places]

    copy_rows(addresses, out)

    wanted = [memories[which].reshape(7, stride)[row] for which, row in places]
    given = out.view(len(places), -1).view(torch.uint8).numpy()
    assert given.reshape(len(places), stride).tolist() == [row.tolist() for row in wanted]


def test_rows_too_far_apart_for_one_call_are_copied_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(kernel, "_MOST", 2**30)
    monkeypatch.setattr(torch, "index_select", lambda *given, **named: calls.append(given))
    rows, out = memory(7 * 24, 0).reshape(7, 24), torch.empty((3, 6), dtype=torch.float32)

    copy_rows([rows[n].ctypes.data for n in (5, 0, 5)], out)

    assert not calls
    assert out.view(torch.uint8).tolist() == [rows[n].tolist() for n in (5, 0, 5)]


def test_views_of_memory_are_made_once_for_each_length_of_row() -> None:
    rows = memory(50 * 64, 0).reshape(50, 64)
    kernel._everywhere.cache_clear()
    for first in range(40):
        copy_rows([rows[first].ctypes.data, rows[49].ctypes.data], torch.empty((2, 8)).double())
    # Memory may lie across the border of two such views.
    assert kernel._everywhere.cache_info().misses <= 2


def test_no_other_thread_is_waited_for_and_the_setting_stays() -> None:
    seen = []
    real = torch.index_select

    def look(*given: Any, **named: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return real(*given, **named)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "index_select", look)
            copy_rows([memory(64, 0).ctypes.data], torch.empty((1, 8)).double())
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
