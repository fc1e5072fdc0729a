"""How are batches gathered where another process reads them, so that they need no copy?"""

import itertools
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from factory.runtime.batches.buffer_pool import SMALL, BatchMemory, Block, Kind
from factory.runtime.prefetch.worker.shared_files import new_file


@dataclass(eq=False, kw_only=True)
class Segment(Block):
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


class SharedMemory(BatchMemory):
    """Gives out tensors that lie in segments; one is used again when both processes let it go."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._numbers = itertools.count(1)
        self._known: dict[int, Segment] = {}  # by address
        self._lent: dict[int, Segment] = {}  # by number
        self._retired: list[int] = []

    def room(self, nbytes: int) -> torch.Tensor:
        """Return at least so many bytes of a segment, however few, uint8 [n]."""
        return self.tensor((max(nbytes, SMALL),), dtype=torch.uint8)

    def lend(self, tensor: torch.Tensor) -> Segment | None:
        """Return the segment a tensor lies in, to be read by the other process from now on.

        None where it lies in none, or in one that was lent before: what the other process was
        given is its own, to write to.
        """
        with self._lock:
            segment = self._known.get(tensor.untyped_storage().data_ptr())
            if segment is None or segment.lent:
                return None
            segment.holders += 1  # the tensor is one
            segment.lent = True
            self._lent[segment.number] = segment
            return segment

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
                segment = self._lent[number]
                if segment.file is not None:
                    files[number], segment.file = segment.file, None
        return files

    def retired(self) -> list[int]:
        """Return the numbers of segments that are gone, once."""
        with self._lock:
            gone, self._retired = self._retired, []
            return gone

    def _new(self, kind: Kind) -> Segment:
        size, _ = kind
        file = new_file(size)
        try:
            data = np.frombuffer(mmap.mmap(file, size), dtype=np.uint8)
        except BaseException:
            os.close(file)
            raise
        address = int(data.ctypes.data)
        segment = self._known[address] = Segment(
            kind, data, number=next(self._numbers), address=address, file=file
        )
        return segment

    def _begin_use(self, block: Block) -> None:
        super()._begin_use(block)
        if isinstance(block, Segment):
            block.lent = False

    def _gone(self, block: Block) -> None:
        if isinstance(block, Segment):
            del self._known[block.address]
            if block.file is None:
                self._retired.append(block.number)
            else:
                os.close(block.file)
