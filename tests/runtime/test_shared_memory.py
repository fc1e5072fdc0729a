"""Batches taken apart, written to memory that two processes share, and put together again."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from factory.runtime.packing import pack, unpack
from factory.runtime.segments import Leases, Segment, Segments

DTYPES = [np.uint8, np.int16, np.int32, np.int64, np.float16, np.float32, np.float64, np.bool_]
TENSORS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
).map(torch.from_numpy)  # fmt: skip
VALUES = st.recursive(
    st.one_of(TENSORS, st.text(), st.integers(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one.nan_to_num(1), two.nan_to_num(1))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and all(map(same, one, two)) and len(one) == len(two)
    return bool(one == two)


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor.float()


def through(value: Any) -> Any:
    packed = pack(value)
    memory = np.zeros(max(1, packed.nbytes), np.uint8)
    packed.write(memory)
    return unpack(memory, packed.tensor_bytes, packed.nbytes)


@given(value=VALUES)
def test_whatever_holds_tensors_arrives_as_it_was(value: Any) -> None:
    assert same(value, through(value))


def test_strides_and_kinds_of_numbers_of_its_own() -> None:
    value = {
        "turned": torch.arange(12).reshape(3, 4).t(),
        "part": torch.arange(12)[3:9:2],
        "expanded": torch.ones(1).expand(5),
        "bfloat16": torch.randn(3).bfloat16(),
        "float8": torch.randn(3).to(torch.float8_e4m3fn),
        "complex": torch.randn(2, dtype=torch.complex64),
        "trained": torch.nn.Parameter(torch.ones(2)).detach(),
        "sparse": torch.eye(3).to_sparse(),
    }
    again = through(value)
    for name, tensor in value.items():
        if name != "sparse":
            assert torch.equal(comparable(tensor), comparable(again[name])), name
            assert again[name].dtype == tensor.dtype
            assert again[name].is_contiguous()
    assert torch.equal(again["sparse"].to_dense(), torch.eye(3))


def test_tensors_are_views_and_aligned() -> None:
    packed = pack([torch.ones(3), torch.ones(5, dtype=torch.float64)])
    memory = np.zeros(packed.nbytes, np.uint8)
    packed.write(memory)
    first, second = unpack(memory, packed.tensor_bytes, packed.nbytes)
    assert first.data_ptr() == memory.ctypes.data
    assert second.data_ptr() == memory.ctypes.data + 64
    memory[:] = 0
    assert first.sum() == second.sum() == 0


def hand_over(segment: Segment) -> None:
    for file in segment.hand_over():
        os.close(file)


@pytest.fixture(params=["in memory", "a file without a name"])
def segments(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Segments:
    if request.param != "in memory":
        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Segments()


def test_what_one_side_writes_the_other_reads(segments: Segments, tmp_path: Path) -> None:
    segment, leases = segments.take(10), Leases()
    segment.memory[:3] = b"abc"
    (file,) = segment.hand_over()
    assert segment.hand_over() == []
    leases.add(segment.number, file)
    lease = leases.lend(segment.number)
    assert bytes(lease[:3]) == b"abc"
    segment.memory[:3] = b"xyz"
    assert bytes(lease[:3]) == b"xyz"
    assert list(tmp_path.iterdir()) == []


def test_a_lease_ends_with_the_last_view(segments: Segments) -> None:
    segment, leases = segments.take(10), Leases()
    leases.add(segment.number, *segment.hand_over())
    lease = leases.lend(segment.number)
    tensor = torch.frombuffer(lease, dtype=torch.uint8)
    part = tensor[2:4].view(torch.int16)
    del lease, tensor
    gc.collect()
    assert leases.take_released() == []
    del part
    gc.collect()
    assert leases.take_released() == [segment.number]
    assert leases.take_released() == []


def test_the_smallest_that_is_large_enough_is_taken(segments: Segments) -> None:
    small, large = segments.take(1000), segments.take(10**6)
    for segment in (large, small):
        hand_over(segment)
        segments.give_back(segment.number)
    assert segments.take(500) is small
    assert segments.take(500) is large
    segments.give_back(small.number)
    third = segments.take(10**5)  # in the place of the small one
    assert third not in (small, large)
    assert segments.retired() == [small.number]
    assert segments.retired() == []
    hand_over(third)
