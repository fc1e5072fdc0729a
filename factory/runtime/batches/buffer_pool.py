"""A pool of buffers for the large tensors of batches.

Fresh memory is given out page by page as it is touched, which takes as long again as copying a
batch into it. What a batch no longer needs is therefore used by a later one.
"""

import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch

from factory.cache.format.safetensors_file import Bytes

# Bytes of a block, and whether it is page-locked.
Kind: TypeAlias = tuple[int, bool]
# Smaller tensors come from the allocator's own stock, which is as quick.
SMALL = 2**16
# Sizes are rounded up by at most an eighth, so that batches of captions that differ by a token
# use each other's memory.
_STEPS = 8
# Unused memory is taken for what is smaller, but not for what is less than two thirds of it: so
# much may be in use without need.
_WIDE = 3 / 2
# Shapes whose bytes are known: those of all buckets and lengths of captions of a run.
_KEPT = 4096


@dataclass(eq=False)
class MemoryBlock:
    """A piece of memory.

    Attributes:
        kind: Its bytes, and whether it is page-locked.
        data: The bytes.
        holders: How many hold it, each of which releases it on its own.
    """

    kind: Kind
    data: Bytes
    holders: int = 0


class BufferPool:
    """Gives out tensors, and takes their memory back when the last view of them is gone.

    It keeps no more unused memory than was in use at once. Safe to ask from several threads.

    Attributes:
        pin: Whether memory is page-locked, so that a CUDA device copies from it by itself. Then
            whoever copies must hold the tensors until the copy is over.
    """

    def __init__(self, *, pin: bool = False) -> None:
        """Begin with none."""
        self.pin = pin
        self._lock = threading.Lock()
        self._free: OrderedDict[Kind, list[MemoryBlock]] = OrderedDict()
        self._unused, self._used, self._most = 0, 0, 0
        self._leased: dict[int, tuple[weakref.ref[Bytes], MemoryBlock]] = {}
        self._returned: deque[MemoryBlock] = deque()

    def tensor(self, shape: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor on the CPU, with anything in it."""
        shape = tuple(shape)
        size, in_bytes = _measured(shape, dtype, SMALL)
        if not size:
            return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=self.pin)
        block = self._take((size, self.pin))
        # Of its shape at once: each further view costs as much as finding the block.
        lease: Bytes = np.ndarray(in_bytes, np.uint8, block.data)
        watch = weakref.ref(lease, self._note)
        self._leased[id(watch)] = watch, block
        return torch.from_numpy(lease).view(dtype)

    def _note(self, watch: "weakref.ref[Bytes]") -> None:
        """Note that a tensor is gone, and no more: this may run in the midst of anything."""
        _, block = self._leased.pop(id(watch))
        self._returned.append(block)

    @property
    def nbytes(self) -> int:
        """Bytes held, in use or not."""
        with self._lock:
            self._collect()
            return self._used + self._unused

    def _take(self, kind: Kind) -> MemoryBlock:
        with self._lock:
            self._collect()
            block = self._fitting(kind)
            if block is not None:
                self._unused -= block.kind[0]
                self._begin_use(block)
        if block is None:
            block = self._new(kind)  # may take a while, or fail
            with self._lock:
                self._begin_use(block)
                self._trim()
        return block

    def _fitting(self, kind: Kind) -> MemoryBlock | None:
        """Take the smallest unused block that will do."""
        size, pin = kind
        blocks = self._free.get(kind)
        if not blocks:
            wide = [
                other for other, some in self._free.items()
                if some and other[1] == pin and size <= other[0] <= size * _WIDE
            ]  # fmt: skip
            blocks = self._free[min(wide)] if wide else None
        return blocks.pop() if blocks else None

    def _begin_use(self, block: MemoryBlock) -> None:
        block.holders = 1
        self._used += block.kind[0]
        self._most = max(self._most, self._used)

    def _new(self, kind: Kind) -> MemoryBlock:
        """Return a block that was not there before."""
        size, pin = kind
        if pin:
            return MemoryBlock(kind, torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy())
        return MemoryBlock(kind, np.empty(size, dtype=np.uint8))

    def _gone(self, block: MemoryBlock) -> None:
        """Free a block that nobody holds, and that is one too many."""

    def _collect(self) -> None:
        """Take back released blocks, and free what is too much."""
        while self._returned:
            block = self._returned.popleft()
            block.holders -= 1
            if not block.holders:
                self._used -= block.kind[0]
                self._unused += block.kind[0]
                self._free.setdefault(block.kind, []).append(block)
                self._free.move_to_end(block.kind)
        self._trim()

    def _trim(self) -> None:
        while self._used + self._unused > self._most:
            kind, blocks = next(iter(self._free.items()))  # of the size not used for longest
            if blocks:
                self._gone(blocks.pop())
                self._unused -= kind[0]
            if not blocks:
                del self._free[kind]


@lru_cache(_KEPT)
def _measured(
    shape: tuple[int, ...], dtype: torch.dtype, small: int
) -> tuple[int, tuple[int, ...]]:
    """Return the bytes of the block a tensor wants, 0 for none, and its shape as bytes."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < small:
        return 0, ()
    return _rounded(nbytes), (*shape[:-1], shape[-1] * dtype.itemsize)


def _rounded(nbytes: int) -> int:
    """Return a size of at least so many bytes, one of eight between powers of two."""
    grain = 1 << max(0, nbytes.bit_length() - _STEPS.bit_length())
    return -(-nbytes // grain) * grain
