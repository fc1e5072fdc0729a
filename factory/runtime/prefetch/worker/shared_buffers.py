"""Buffers of batches in memory that the worker process and the trainer share.

They are files without a name, each mapped once by either side; descriptors are handed over, so that
nothing is left behind, whatever dies.
"""

import itertools
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from factory.runtime.batches.buffer_pool import SMALL, BufferPool, Kind, MemoryBlock


def new_file(size: int) -> int:
    """Return a descriptor of a new file of so many bytes that has no name.

    Raises:
        OSError: There is no memory left.
    """
    file = _unnamed_file()
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # else too little room is a SIGBUS later on
        else:
            os.ftruncate(file, size)
    except BaseException:
        os.close(file)
        raise
    return file


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # an old system, or one that forbids it
            return os.memfd_create("factory-batch")  # in memory, and not of /dev/shm's share of it
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class MappedBlocks:
    """The reader's side: maps segments, and notices when what lies in one is gone.

    Attributes:
        released: Numbers of segments that nobody reads any more, oldest first.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._maps: dict[int, mmap.mmap] = {}
        self.released: deque[int] = deque()

    def add(self, numbers: Sequence[int], files: Sequence[int]) -> None:
        """Map segments, and close their descriptors."""
        try:
            for number, file in zip(numbers, files, strict=True):
                self._maps[number] = mmap.mmap(file, 0)
        finally:
            for file in files:
                os.close(file)

    def forget(self, number: int) -> None:
        """Let go of a segment that the writer has given up."""
        self._maps.pop(number, None)

    def lend(self, number: int) -> NDArray[np.uint8]:
        """Return a segment's bytes; it counts as released when the last view of them is gone."""
        lease: NDArray[np.uint8] = np.frombuffer(self._maps[number], dtype=np.uint8)
        # Only noted, not sent: this may run anywhere, in the midst of anything.
        noted: Any = weakref.finalize(lease, self.released.append, number)
        noted.atexit = False
        return lease

    def take_released(self) -> list[int]:
        """Return what was released since the last call."""
        numbers = []
        while self.released:
            numbers.append(self.released.popleft())
        return numbers

    def close(self) -> None:
        """Let go of all segments; batches that are held keep theirs."""
        self._maps.clear()


@dataclass(eq=False, kw_only=True)
class SharedBlock(MemoryBlock):
    """A block that another process may map.

    Attributes:
        number: Its number, by which the other process knows it.
        address: Where it begins in this process.
        file: Its descriptor, until it is handed over.
        lent: Whether the other process was given what lies in it now.
    """

    number: int
    address: int
    file: int | None
    lent: bool = False


class SharedBufferPool(BufferPool):
    """Gives out tensors that lie in segments; one is used again when both processes let it go."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._numbers = itertools.count(1)
        self._known: dict[int, SharedBlock] = {}  # by address
        self._lent: dict[int, SharedBlock] = {}  # by number
        self._retired: list[int] = []

    def room(self, nbytes: int) -> torch.Tensor:
        """Return at least so many bytes of a segment, however few, uint8 [n]."""
        return self.tensor((max(nbytes, SMALL),), dtype=torch.uint8)

    def lend(self, tensor: torch.Tensor) -> SharedBlock | None:
        """Return the segment a tensor lies in, to be read by the other process from now on.

        None where it lies in none, or in one that was lent before: what the other process was
        given is its own, to write to.
        """
        with self._lock:
            block = self._known.get(tensor.untyped_storage().data_ptr())
            if block is None or block.lent:
                return None
            block.holders += 1  # the tensor is one
            block.lent = True
            self._lent[block.number] = block
            return block

    def give_back(self, number: int) -> None:
        """Note that the other process reads a segment no more."""
        with self._lock:
            self._returned.append(self._lent.pop(number))

    def hand_over(self, numbers: Iterable[int]) -> dict[int, int]:
        """Return the descriptors of lent segments that the other process has not mapped yet.

        By their numbers, each once; they are the caller's to close.
        """
        files: dict[int, int] = {}
        with self._lock:
            for number in numbers:
                block = self._lent[number]
                if block.file is not None:
                    files[number], block.file = block.file, None
        return files

    def retired(self) -> list[int]:
        """Return the numbers of segments that are gone, once."""
        with self._lock:
            gone, self._retired = self._retired, []
            return gone

    def _new(self, kind: Kind) -> SharedBlock:
        size, _ = kind
        file = new_file(size)
        try:
            data = np.frombuffer(mmap.mmap(file, size), dtype=np.uint8)
        except BaseException:
            os.close(file)
            raise
        address = int(data.ctypes.data)
        block = self._known[address] = SharedBlock(
            kind, data, number=next(self._numbers), address=address, file=file
        )
        return block

    def _begin_use(self, block: MemoryBlock) -> None:
        super()._begin_use(block)
        if isinstance(block, SharedBlock):
            block.lent = False

    def _gone(self, block: MemoryBlock) -> None:
        if isinstance(block, SharedBlock):
            del self._known[block.address]
            if block.file is None:
                self._retired.append(block.number)
            else:
                os.close(block.file)
