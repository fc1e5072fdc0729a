"""Where do batches get their memory, without asking the system for megabytes each time?

Fresh memory is given out page by page as it is touched, which takes as long again as copying a
batch into it. What a batch no longer needs is therefore used by a later one.
"""

import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from factory.cache.container import Bytes

# Bytes of a block, and whether it is page-locked.
Kind: TypeAlias = tuple[int, bool]
# Smaller tensors come from the allocator's own stock, which is as quick.
_SMALL = 2**16
# Sizes are rounded up by at most an eighth, so that batches of captions that differ by a token
# use each other's memory.
_STEPS = 8


class BatchMemory:
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
        self._free: OrderedDict[Kind, list[Bytes]] = OrderedDict()
        self._unused, self._used, self._most = 0, 0, 0
        self._leased: dict[int, tuple[weakref.ref[Bytes], Kind, Bytes]] = {}
        self._returned: deque[tuple[Kind, Bytes]] = deque()

    def tensor(self, shape: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor on the CPU, with anything in it."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _SMALL:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=self.pin)
        kind = (_rounded(nbytes), self.pin)
        block = self._take(kind)
        lease = block[:nbytes]
        watch = weakref.ref(lease, self._note)
        self._leased[id(watch)] = watch, kind, block
        return torch.from_numpy(lease).view(dtype).view(tuple(shape))

    def _note(self, watch: "weakref.ref[Bytes]") -> None:
        """Note that a tensor is gone, and no more: this may run in the midst of anything."""
        _, kind, block = self._leased.pop(id(watch))
        self._returned.append((kind, block))

    @property
    def nbytes(self) -> int:
        """Bytes held, in use or not."""
        with self._lock:
            self._collect()
            return self._used + self._unused

    def _take(self, kind: Kind) -> Bytes:
        size, pin = kind
        with self._lock:
            self._collect()
            self._used += size
            self._most = max(self._most, self._used)
            blocks = self._free.get(kind)
            if blocks:
                self._unused -= size
                return blocks.pop()
        if pin:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(size, dtype=np.uint8)

    def _collect(self) -> None:
        """Take back what nobody looks at any more, and let go of what is too much."""
        while self._returned:
            kind, block = self._returned.popleft()
            self._used -= kind[0]
            self._unused += kind[0]
            self._free.setdefault(kind, []).append(block)
            self._free.move_to_end(kind)
        while self._used + self._unused > self._most:
            kind, blocks = next(iter(self._free.items()))  # of the size not used for longest
            if blocks:
                blocks.pop()
                self._unused -= kind[0]
            if not blocks:
                del self._free[kind]


def _rounded(nbytes: int) -> int:
    """Return a size of at least so many bytes, one of eight between powers of two."""
    grain = 1 << max(0, nbytes.bit_length() - _STEPS.bit_length())
    return -(-nbytes // grain) * grain
