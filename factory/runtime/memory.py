"""Where do batches get their memory, without asking the system for megabytes each time?

Fresh memory is given out page by page as it is touched, which takes as long again as copying a
batch into it. What a batch no longer needs is therefore used by a later one.
"""

import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

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
        self._free: OrderedDict[tuple[int, bool], list[NDArray[np.uint8]]] = OrderedDict()
        self._unused, self._used, self._most = 0, 0, 0
        self._returned: deque[tuple[tuple[int, bool], NDArray[np.uint8]]] = deque()

    def tensor(self, shape: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor on the CPU, with anything in it."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _SMALL:
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.pin)
        kind = (_rounded(nbytes), self.pin)
        block = self._take(kind)
        lease = block[:nbytes]
        # Only noted, not told: this may run anywhere, in the midst of anything.
        noted = weakref.finalize(lease, self._returned.append, (kind, block))
        noted.atexit = False
        return torch.from_numpy(lease).view(dtype).view(tuple(shape))

    @property
    def nbytes(self) -> int:
        """Bytes held, in use or not."""
        with self._lock:
            self._collect()
            return self._used + self._unused

    def _take(self, kind: tuple[int, bool]) -> NDArray[np.uint8]:
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
