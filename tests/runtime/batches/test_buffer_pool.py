"""Memory of batches is used again, and never while somebody looks at it."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factory.runtime.batches.buffer_pool import SMALL, BufferPool, Kind, MemoryBlock

LARGE = (16, 4, 64, 64)  # half a MiB of fp16


def where(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.float32])
def test_a_tensor_is_as_asked_for(dtype: torch.dtype) -> None:
    memory = BufferPool()
    for shape in [(2, 3), LARGE, (0, 5), ()]:
        made = memory.tensor(shape, dtype=dtype)
        assert tuple(made.shape) == shape
        assert made.dtype is dtype
        assert made.is_contiguous()


def test_what_is_let_go_is_used_again() -> None:
    memory = BufferPool()
    first = memory.tensor(LARGE, dtype=torch.float16)
    place = where(first)
    del first
    assert where(memory.tensor(LARGE, dtype=torch.float16)) == place


def test_the_last_view_of_a_tensor_keeps_its_memory() -> None:
    memory = BufferPool()
    kept = memory.tensor(LARGE, dtype=torch.float16).fill_(1)[3, 2].view(-1)[5:9]
    for _ in range(3):
        memory.tensor(LARGE, dtype=torch.float16).fill_(2)
    assert kept.tolist() == [1, 1, 1, 1]
    array = memory.tensor(LARGE, dtype=torch.float16).fill_(3).numpy()[0]
    memory.tensor(LARGE, dtype=torch.float16).fill_(4)
    assert np.unique(array).tolist() == [3]


def test_memory_that_is_refused_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = BufferPool()

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(memory, "_new", refuse)
    with pytest.raises(MemoryError):
        memory.tensor(LARGE, dtype=torch.float16)
    assert memory.nbytes == 0


def test_no_more_is_kept_than_was_in_use_at_once() -> None:
    memory = BufferPool()
    size = 1
    for edge in range(100, 400, 7):
        tensors = [memory.tensor((edge, edge, 4), dtype=torch.uint8) for _ in range(3)]
        size = sum(tensor.nbytes for tensor in tensors)
        del tensors
    # An eighth for rounding up.
    assert memory.nbytes <= size * 9 / 8


def test_what_is_a_little_larger_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that batches of two sizes do not drive out each other's memory."""
    memory, made = BufferPool(), []
    new = memory._new

    def note(kind: Kind) -> MemoryBlock:
        made.append(kind[0])
        return new(kind)

    monkeypatch.setattr(memory, "_new", note)
    for number in range(20):
        size = (2**21, 15 * 2**17)[number % 2]
        held = [memory.tensor((size,), dtype=torch.uint8) for _ in range(3)]
        del held
    assert made == [2**21] * 3
    memory.tensor((2**20,), dtype=torch.uint8)
    assert made == [*[2**21] * 3, 2**20]  # what is twice as large will not


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(20_000, 400_000)), max_size=40))
def test_tensors_that_live_at_once_share_nothing(actions: list[tuple[int, int]]) -> None:
    memory = BufferPool()
    alive: dict[int, torch.Tensor] = {}
    for number, (slot, size) in enumerate(actions):
        alive.pop(slot, None)
        alive[slot] = memory.tensor((size,), dtype=torch.uint8).fill_(number % 251)
        alive[slot].number = number % 251  # type: ignore[attr-defined]
        for tensor in alive.values():
            assert int(tensor[0]) == int(tensor[-1]) == tensor.number  # type: ignore[attr-defined]


def test_several_threads_may_ask() -> None:
    memory = BufferPool()
    wrong = []

    def work(number: int) -> None:
        for _ in range(200):
            made = memory.tensor((1 << 17,), dtype=torch.uint8).fill_(number)
            if int(made.min()) != number or int(made.max()) != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shape", [(SMALL - 1,), (SMALL,), (1, SMALL + 1, 1), (0, 9), (5, SMALL)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64])
def test_tensors_are_what_was_asked_for_however_large(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    memory = BufferPool()
    made = memory.tensor(list(shape), dtype=dtype)
    assert (tuple(made.shape), made.dtype, made.device.type) == (shape, dtype, "cpu")
    assert made.is_contiguous()
    made.zero_()  # all of it is there
    other = memory.tensor(shape, dtype=dtype)
    other.fill_(1)
    assert not made.any()
