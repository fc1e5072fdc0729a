"""Packing of a batch for another process: large tensors stay in memory that both see.

What was made there already is not copied. Small tensors and everything else are sent along.
Whatever holds tensors may be packed (dataclasses, dicts, lists). The pickles stay between two
processes of one run; none is ever read from data.
"""

import io
import math
import pickle
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # loaded where there are tensors, for it takes a second
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from factory.runtime.prefetch.worker.shared_buffers import SharedBlock, SharedBufferPool

# Of every tensor's first byte: a cache line, and the most that vector instructions ask for.
_ALIGNMENT = 64
# Smaller tensors go with the rest, bytes; larger ones are quicker copied to shared memory.
_SMALL = 2**12
# A tensor's type and shape, then its bytes; or the number of a segment, None for the one that is
# made for tensors which lay in none, and the offset there.
TensorPlace: TypeAlias = (
    tuple[str, tuple[int, ...], bytearray] | tuple[str, tuple[int, ...], int | None, int]
)


class PackedBatch(NamedTuple):
    """A value taken apart; itself of a kind that can be sent.

    Attributes:
        rest: What is no large tensor, with the tensors' places.
        blocks: Numbers of the segments that tensors lie in.
        made: Number of the one that was made for those that lay in none, if there are such.
        tensor_bytes: Bytes the tensors take, alignment included.
    """

    rest: bytes
    blocks: tuple[int, ...]
    made: int | None
    tensor_bytes: int


class _Pickler(pickle.Pickler):
    """Takes tensors out of a value; lends segments that some lie in."""

    def __init__(self, file: io.BytesIO, memory: "Callable[[], SharedBufferPool]") -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._memory = memory
        # Where torch was never loaded, nothing is a tensor.
        self._tensor = getattr(sys.modules.get("torch"), "Tensor", None)
        self.lent: dict[int, SharedBlock] = {}  # by the address of the storage
        self.loose: list[tuple[int, torch.Tensor]] = []  # each with its offset
        self.loose_bytes, self.nbytes = 0, 0

    def reducer_override(self, value: Any) -> Any:
        # Not a `persistent_id`, which is asked for every name and caption, too.
        if type(value) is not self._tensor or value.is_sparse:
            return NotImplemented
        return _place, self._set_aside(value)

    def _set_aside(self, value: "torch.Tensor") -> TensorPlace:
        name, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        nbytes = -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes += nbytes
        if nbytes < _SMALL:
            return name, shape, _bytes(value)
        block = self._segment(value)
        if block is not None:
            return name, shape, block.number, value.data_ptr() - block.address
        offset = self.loose_bytes
        self.loose.append((offset, value.detach()))
        self.loose_bytes += nbytes
        return name, shape, None, offset

    def _segment(self, tensor: "torch.Tensor") -> "SharedBlock | None":
        """Return the segment a tensor lies in as a whole, lent with this value."""
        if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
            return None  # the bytes there are not its own as they should arrive
        address = tensor.untyped_storage().data_ptr()
        if address not in self.lent:
            block = self._memory().lend(tensor)
            if block is None:
                return None
            self.lent[address] = block
        return self.lent[address]


def _bytes(tensor: "torch.Tensor") -> bytearray:
    try:
        return bytearray(tensor.numpy().tobytes())
    except (TypeError, RuntimeError):  # of a type that numpy has not, or with a gradient
        import torch

        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)
        return bytearray(flat.view(torch.uint8).numpy().tobytes())


def _place(name: str, shape: tuple[int, ...], *where: Any) -> Any:
    """Stand for a tensor in a pickle; who reads it knows the memory."""
    raise pickle.UnpicklingError(f"a tensor {name}{shape} at {where}, read without its memory")


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: PackedBatch, blocks: "Mapping[int, NDArray[np.uint8]]") -> None:
        super().__init__(io.BytesIO(packed.rest))
        # Not a method: it is remembered in here, and would keep leases until cycles are collected.
        self._put_back = partial(_put_back, blocks, packed.made)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, _place.__name__):
            return self._put_back
        return super().find_class(module, name)


def _put_back(
    blocks: "Mapping[int, NDArray[np.uint8]]",
    made: int | None,
    name: str,
    shape: tuple[int, ...],
    where: bytearray | int | None,
    offset: int = 0,
) -> "torch.Tensor":
    """Return the tensor of a place."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    if isinstance(where, bytearray):
        return torch.frombuffer(where, dtype=dtype).view(shape)
    memory = blocks[made if where is None else where]  # type: ignore[index]
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


def pack(value: Any, memory: "Callable[[], SharedBufferPool]") -> PackedBatch:
    """Take a value apart; what of it lies in shared memory is lent, the rest copied once.

    Args:
        value: What holds tensors, or is one.
        memory: Returns the memory that is shared; not asked where there are no tensors.

    Raises:
        Exception: Something in it cannot be pickled; or there is no memory left.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, memory)
    try:
        pickler.dump(value)
        made = _set_down(pickler, memory()) if pickler.loose else None
    except BaseException:
        for block in pickler.lent.values():
            memory().give_back(block.number)
        raise
    blocks = [block.number for block in pickler.lent.values()]
    if made is not None:
        blocks.append(made)
    return PackedBatch(file.getvalue(), tuple(blocks), made, pickler.nbytes)


def _set_down(pickler: _Pickler, memory: "SharedBufferPool") -> int:
    """Copy tensors that lie in no segment to one, the only copy there is; return its number."""
    import torch

    whole = memory.room(pickler.loose_bytes)
    for offset, tensor in pickler.loose:
        count = tensor.numel()
        place = torch.frombuffer(whole.numpy(), dtype=tensor.dtype, count=count, offset=offset)
        place.view(tensor.shape).copy_(tensor)
    block = memory.lend(whole)
    assert block is not None  # noqa: S101 - nobody else has it
    return block.number


def unpack(packed: PackedBatch, blocks: "Mapping[int, NDArray[np.uint8]]") -> Any:
    """Put a value together again; its tensors are views of memory, and keep it alive.

    Args:
        packed: The value taken apart.
        blocks: The bytes of its segments, by their numbers.
    """
    return _Unpickler(packed, blocks).load()
