"""Both ends of memory that two processes share, in one."""

import os
from typing import Any

from factory.runtime.prefetch.worker.packed_batch import PackedBatch, pack, unpack
from factory.runtime.prefetch.worker.shared_buffers import MappedBlocks, SharedBufferPool


class Crossing:
    """Takes values apart on one side, and puts them together on the other."""

    def __init__(self) -> None:
        """Begin with no memory."""
        self.memory, self.leases = SharedBufferPool(), MappedBlocks()

    def send(self, value: Any) -> PackedBatch:
        """Take a value apart, and map what the reader has not seen."""
        packed = pack(value, lambda: self.memory)
        files = self.memory.hand_over(packed.blocks)
        for number in self.memory.retired():
            self.leases.forget(number)
        self.leases.add(list(files), list(files.values()))
        return packed

    def receive(self, packed: PackedBatch) -> Any:
        """Put a value together again."""
        return unpack(packed, {number: self.leases.lend(number) for number in packed.blocks})

    def through(self, value: Any) -> Any:
        """Return a value as it arrives."""
        return self.receive(self.send(value))

    def tell(self) -> list[int]:
        """Tell the writer what the reader has let go of; return it."""
        released = self.leases.take_released()
        for number in released:
            self.memory.give_back(number)
        return released

    @property
    def mapped(self) -> int:
        """How many segments the reader has mapped."""
        return len(self.leases._maps)

    def close(self) -> None:
        """Close the descriptors of what was never sent."""
        for segment in self.memory._known.values():
            if segment.file is not None:
                os.close(segment.file)
                segment.file = None
