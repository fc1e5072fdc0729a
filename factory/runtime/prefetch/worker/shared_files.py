"""Memory that two processes share: files without a name, mapped by each of them once.

Their descriptors are handed over, so that nothing is left behind, whatever dies.
"""

import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


class Leases:
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
        # Only noted, not told: this may run anywhere, in the midst of anything.
        noted: Any = weakref.finalize(lease, self.released.append, number)
        noted.atexit = False
        return lease

    def take_released(self) -> list[int]:
        """Return what was released since it was asked last."""
        numbers = []
        while self.released:
            numbers.append(self.released.popleft())
        return numbers

    def close(self) -> None:
        """Let go of all segments; batches that are held keep theirs."""
        self._maps.clear()
