"""How does a batch cross to another process: tensors as bytes in shared memory, the rest beside.

Whatever holds tensors may be packed (dataclasses, dicts, lists). The pickles stay between two
processes of one run; none is ever read from data.
"""

import io
import math
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # loaded where there are tensors, for it takes a second
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Of every tensor's first byte: a cache line, and the most that vector instructions ask for.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Packed:
    """A value taken apart.

    Attributes:
        tensors: Its tensors, each with the offset it belongs at, bytes.
        rest: Everything else, with the tensors' places.
        tensor_bytes: Bytes the tensors take, alignment included.
    """

    tensors: "list[tuple[int, torch.Tensor]]"
    rest: bytes
    tensor_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in all."""
        return self.tensor_bytes + len(self.rest)

    def write(self, memory: Any) -> None:
        """Copy all of it to the beginning of a writable buffer: the one copy that is made."""
        if self.tensors:
            import torch
        for offset, tensor in self.tensors:
            count = tensor.numel()
            place = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=offset)
            place.view(tensor.shape).copy_(tensor)
        end = self.tensor_bytes
        memoryview(memory)[end : end + len(self.rest)] = self.rest


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, torch.Tensor]] = []
        self.end = 0

    def persistent_id(self, value: Any) -> tuple[str, tuple[int, ...], int] | None:
        kind = type(value)
        if kind.__name__ != "Tensor" or kind.__module__ != "torch" or value.is_sparse:
            return None
        tensor = value.detach()
        offset = self.end
        if tensor.numel():
            self.tensors.append((offset, tensor))
            self.end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, rest: bytes, memory: "NDArray[np.uint8]") -> None:
        super().__init__(io.BytesIO(rest))
        self._memory = memory

    def persistent_load(self, pid: tuple[str, tuple[int, ...], int]) -> "torch.Tensor":
        import torch

        name, shape, offset = pid
        dtype: torch.dtype = getattr(torch, name)
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset)
        return flat.view(shape)


def pack(value: Any) -> Packed:
    """Take a value apart; nothing is copied yet.

    Raises:
        Exception: Something in it cannot be pickled.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return Packed(pickler.tensors, file.getvalue(), pickler.end)


def unpack(memory: "NDArray[np.uint8]", tensor_bytes: int, nbytes: int) -> Any:
    """Put a value together again; its tensors are views of the memory, and keep it alive."""
    return _Unpickler(memory[tensor_bytes:nbytes].tobytes(), memory).load()
