"""Batches taken apart, written to memory that two processes share, and put together again."""

import errno
import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from factory.runtime.prefetch.worker.packed_batch import pack, unpack
from factory.runtime.prefetch.worker.shared_buffers import MappedBlocks
from tests.runtime.crossing import Crossing

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
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.float()


@pytest.fixture
def crossing() -> Iterator[Crossing]:
    made = Crossing()
    yield made
    made.close()


@given(value=VALUES)
def test_whatever_holds_tensors_arrives_as_it_was(value: Any) -> None:
    assert same(value, Crossing().through(value))


@pytest.mark.parametrize("times", [1, 3000])  # sent along, and copied to shared memory
def test_strides_and_kinds_of_numbers_of_its_own(crossing: Crossing, times: int) -> None:
    value = {
        "turned": torch.arange(12 * times).reshape(3, -1).t(),
        "part": torch.arange(12 * times)[3:-3:2],
        "expanded": torch.ones(1).expand(5 * times),
        "bfloat16": torch.randn(3 * times).bfloat16(),
        "float8": torch.randn(3 * times).to(torch.float8_e4m3fn),
        "complex": torch.randn(2 * times, dtype=torch.complex64),
        "conjugated": torch.randn(2 * times, dtype=torch.complex64).conj(),
        "with a gradient": torch.ones(2 * times, requires_grad=True),
        "trained": torch.nn.Parameter(torch.ones(2)).detach(),
        "sparse": torch.eye(3).to_sparse(),
    }
    again = crossing.through(value)
    for name, tensor in value.items():
        if name != "sparse":
            assert torch.equal(comparable(tensor), comparable(again[name])), name
            assert again[name].dtype == tensor.dtype
            assert again[name].is_contiguous()
    assert torch.equal(again["sparse"].to_dense(), torch.eye(3))


FILES = Path("/proc/self/fd")
LARGE = (4, 64, 1024)  # half a MiB of fp16


def made_there(crossing: Crossing, number: float) -> torch.Tensor:
    """Return a tensor that was gathered where the reader sees it."""
    return crossing.memory.tensor(LARGE, dtype=torch.float16).fill_(number)


def test_what_was_made_in_shared_memory_is_not_copied(crossing: Crossing) -> None:
    made = made_there(crossing, 1)
    packed = crossing.send({"a": made, "part": made[2], "small": torch.ones(3)})
    there = crossing.receive(packed)
    made.fill_(2)  # only to see that it is the same memory
    assert packed.made is None
    assert len(packed.blocks) == crossing.mapped == 1
    assert (there["a"] == 2).all()
    assert there["a"].shape == LARGE
    assert torch.equal(there["part"], made[2])


def test_what_was_made_elsewhere_is_copied_once_all_to_one_segment(crossing: Crossing) -> None:
    value = [torch.full((n, 1000), float(n)) for n in range(3, 9)]
    packed = crossing.send(value)
    assert packed.blocks == (packed.made,)
    assert all(map(torch.equal, crossing.receive(packed), value))


def test_small_tensors_and_other_values_need_no_shared_memory() -> None:
    def none() -> Any:
        raise AssertionError("asked for")

    packed = pack({"rows": torch.arange(16), "keys": ["a"]}, none)
    assert packed.blocks == ()
    assert unpack(packed, {})["rows"].tolist() == list(range(16))


def test_tensors_are_aligned(crossing: Crossing) -> None:
    for made in crossing.through([torch.ones(2000 + n) for n in range(5)]):
        assert made.data_ptr() % 64 == 0


def test_memory_is_used_again_once_both_have_let_it_go(crossing: Crossing) -> None:
    first = made_there(crossing, 1)
    there = crossing.through(first)
    place = first.data_ptr()
    del first
    gc.collect()
    second = made_there(crossing, 2)  # the reader still looks at the first
    assert second.data_ptr() != place
    assert (there == 1).all()
    part = there[1, 2:3]
    del there
    assert crossing.tell() == []
    del part
    assert len(crossing.tell()) == 1
    assert made_there(crossing, 3).data_ptr() == place


def test_memory_is_not_used_again_while_the_writer_looks_at_it(crossing: Crossing) -> None:
    first = made_there(crossing, 1)
    assert crossing.through(first).shape == LARGE  # and is gone
    crossing.tell()
    assert made_there(crossing, 2).data_ptr() != first.data_ptr()
    assert (first == 1).all()


def test_a_view_that_is_not_its_bytes_is_copied(crossing: Crossing) -> None:
    made = crossing.memory.tensor((9000,), dtype=torch.complex64).fill_(1 + 2j)
    assert (crossing.through(made.conj()) == 1 - 2j).all()
    turned = made_there(crossing, 1).transpose(0, 2)
    turned[0] = 2
    assert torch.equal(crossing.through(turned), turned)


def test_a_tensor_that_is_sent_again_is_copied_for_the_second_reader(crossing: Crossing) -> None:
    kept = made_there(crossing, 1)
    one, two = crossing.through(kept), crossing.through(kept)
    one.fill_(5)  # the consumer's own
    assert (two == 1).all()


def test_what_cannot_be_packed_lends_nothing(crossing: Crossing) -> None:
    made = made_there(crossing, 1)
    place = made.data_ptr()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pack([made, lambda: 0], lambda: crossing.memory)
    del made
    gc.collect()
    assert made_there(crossing, 2).data_ptr() == place


def test_no_more_segments_are_kept_than_were_in_use_at_once(crossing: Crossing) -> None:
    """However batches differ in size; what is given up here is forgotten there."""
    for number in range(200):
        held = [
            crossing.through(crossing.memory.tensor((2**16 + 5000 * k,), dtype=torch.uint8))
            for k in (number % 13, number % 7, number % 29)
        ]
        del held
        crossing.tell()
    assert crossing.mapped <= 4
    assert crossing.memory.nbytes <= 3 * (2**16 + 5000 * 28) * 9 / 8


def test_a_lease_ends_with_the_last_view(crossing: Crossing) -> None:
    there = crossing.through(made_there(crossing, 1))
    part = there[2:4].view(torch.int16)
    del there
    gc.collect()
    assert crossing.tell() == []
    del part
    gc.collect()
    assert len(crossing.tell()) == 1
    assert crossing.tell() == []


def test_a_file_of_memory_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    crossing = Crossing()
    assert (crossing.through(made_there(crossing, 1)) == 1).all()
    assert list(tmp_path.iterdir()) == []


def test_without_room_nothing_is_counted_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    crossing, files = Crossing(), len(list(FILES.iterdir()))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        made_there(crossing, 1)
    assert crossing.memory.nbytes == 0
    assert len(list(FILES.iterdir())) == files


def test_descriptors_are_closed_though_memory_cannot_be_mapped() -> None:
    files = [os.memfd_create("empty") for _ in range(2)]  # of no byte
    with pytest.raises(ValueError, match="empty file"):
        MappedBlocks().add([1, 2], files)
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
