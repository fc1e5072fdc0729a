"""Memory that two processes share: given out for a batch, and used again when that is gone.

Segments have no name: they are files in memory whose descriptors are handed over, so that none
is left behind, whatever dies.
"""

import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sizes are rounded up to this, and an eighth more: batches of one bucket with longer captions
# then fit where others were.
_GRAIN = 2**16
_SLACK = 1 / 8


@dataclass(eq=False)
class Segment:
    """A piece of shared memory, in the process that writes it.

    Attributes:
        number: Its number, by which the other process knows it.
        memory: Its bytes.
        file: Its descriptor, until it is handed over.
    """

    number: int
    memory: mmap.mmap
    file: int | None

    def hand_over(self) -> list[int]:
        """Return its descriptor for the other process, once; it is the caller's to close.

        Asked before it is sent: the moment it is, the segment may come back to be used again.
        """
        files = [] if self.file is None else [self.file]
        self.file = None
        return files


class Segments:
    """The writer's pool: as many segments as batches were out at once, of the sizes last used."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._free: list[Segment] = []
        self._out: dict[int, Segment] = {}
        self._count = 0
        self._retired: list[int] = []

    def take(self, nbytes: int) -> Segment:
        """Return a segment of at least so many bytes.

        The smallest free one that is large enough; else a new one, in the place of a free one.

        Raises:
            OSError: There is no memory left.
        """
        with self._lock:
            fitting = [one for one in self._free if len(one.memory) >= nbytes]
            if fitting:
                found = min(fitting, key=lambda one: len(one.memory))
                self._free.remove(found)
            else:
                if self._free:
                    self._retired.append(self._free.pop().number)
                found = self._new(nbytes)
            self._out[found.number] = found
            return found

    def give_back(self, number: int) -> None:
        """Take back a segment that nobody reads any more."""
        with self._lock:
            self._free.append(self._out.pop(number))

    def retired(self) -> list[int]:
        """Return the numbers of segments that are gone, once."""
        with self._lock:
            gone, self._retired = self._retired, []
            return gone

    def _new(self, nbytes: int) -> Segment:
        grains = -(-int(nbytes * (1 + _SLACK)) // _GRAIN)
        size = max(1, grains) * _GRAIN
        file = _unnamed_file()
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)  # else too little room is a SIGBUS later on
            else:
                os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
        except BaseException:
            os.close(file)
            raise
        self._count += 1
        return Segment(self._count, memory, file)


def _unnamed_file() -> int:
    """Return a descriptor of a new file that has no name."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # an old system, or one that forbids it
            return os.memfd_create("factory-batch")  # in memory, and not of /dev/shm's share of it
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Leases:
    """The reader's side: maps segments, and notices when a batch in one is gone.

    Attributes:
        released: Numbers of segments that nobody reads any more, oldest first.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._maps: dict[int, mmap.mmap] = {}
        self.released: deque[int] = deque()

    def add(self, number: int, file: int) -> None:
        """Map a segment, and close its descriptor."""
        try:
            self._maps[number] = mmap.mmap(file, 0)
        finally:
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
