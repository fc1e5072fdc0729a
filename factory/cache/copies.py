"""Which parts of a published file are on this machine, and how do the others get here?"""

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.cache.container import Bytes, DamagedError
from factory.cache.mapping import mapped_file
from factory.errors import StorageError

if TYPE_CHECKING:
    from factory.cache.tier import Tier

# What is fetched is noted in blocks of this size: less would not make a request any quicker,
# and more would fetch much that was not asked for beside a row, which has some 100 KiB.
BLOCK = 64 * 2**10
# Where there is room for all of a file it is fetched in parts of this size: every row is wanted
# once an epoch, and requests of some MiB fill a network. Whole files would make the first batch,
# which needs a row of many, wait for them all.
PART = 8 * 2**20
# Parts that are asked for in one go; each thread that fetches holds so much.
_AT_ONCE_BYTES = 4 * PART
_AT_ONCE_SPANS = 64

# First byte and number of bytes.
Range = tuple[int, int]
# Yields the bytes of ranges in their order, or what went wrong with one.
Read = Callable[[Sequence[Range]], Iterator[bytes | Bytes | StorageError]]

# Before the blocks: when it was used, a plan, and the last step in sight that needs it.
_HEAD = np.dtype([("used", "<i8"), ("plan", "<u8"), ("step", "<i8")])


class Copy(Protocol):
    """A file's bytes on this machine; they stay as long as this object does.

    Attributes:
        data: All bytes, uint8 [size], not to be written to; those not fetched are zeros.
        kept: Whether it outlives a batch.
        complete: Whether nothing of it is missing.
    """

    data: Bytes
    kept: bool
    complete: bool

    def has(self, ranges: NDArray[np.int64]) -> bool:
        """Tell whether nothing is missing of some ranges, int64 [n, 2]."""

    def fetch(self, ranges: NDArray[np.int64]) -> bool:
        """Bring what is missing of some ranges, int64 [n, 2]; False if there is no room.

        Raises:
            DamagedError: The file ends early.
            StorageError: It cannot be read.
        """


class Whole:
    """A file that is all there: on a mounted disk, as it was published."""

    kept = complete = True

    def __init__(self, data: Bytes) -> None:
        """Hold its bytes."""
        self.data = data

    def has(self, ranges: NDArray[np.int64]) -> bool:
        """Return True: nothing is missing."""
        del ranges
        return True

    def fetch(self, ranges: NDArray[np.int64]) -> bool:
        """Return True: there is nothing to do."""
        del ranges
        return True


class _Partial:
    """A copy that is filled block by block."""

    def __init__(self, data: Bytes, present: Bytes, read: Read, where: str, *, whole: bool) -> None:
        self.data, self._present = data, present
        self._read, self._where, self._whole = read, where, whole
        self.complete = False

    def has(self, ranges: NDArray[np.int64]) -> bool:
        """Tell whether nothing is missing of some ranges."""
        return not self._missing(ranges).size

    def _missing(self, ranges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which blocks of some ranges are not there, ascending."""
        if self.complete:
            return np.empty(0, np.int64)
        blocks = blocks_of(ranges)
        missing: NDArray[np.int64] = blocks[self._present[blocks] == 0]
        return missing

    def _widened(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all missing blocks of the parts that some blocks lie in."""
        width = PART // BLOCK
        parts = np.unique(blocks // width)
        wide = (parts[:, None] * width + np.arange(width)).ravel()
        wide = wide[wide < len(self._present)]
        missing: NDArray[np.int64] = wide[self._present[wide] == 0]
        return missing

    def _everything(self) -> NDArray[np.int64]:
        """Return all missing blocks."""
        return np.flatnonzero(self._present == 0)

    def _runs(self, blocks: NDArray[np.int64]) -> list[Range]:
        """Return the ranges that blocks cover, none longer than a part."""
        width = PART // BLOCK
        cuts = np.flatnonzero((np.diff(blocks) != 1) | (blocks[1:] % width == 0)) + 1
        size = self.data.size
        runs = []
        for run in np.split(blocks, cuts):
            start = int(run[0]) * BLOCK
            runs.append((start, min(size, (int(run[-1]) + 1) * BLOCK) - start))
        return runs

    def _fill(self, runs: list[Range]) -> None:
        """Read some ranges, write them to their places and note that they are there."""
        for some in [runs] if self._whole else _together(runs):
            for (start, length), found in zip(some, self._read(some), strict=True):
                if isinstance(found, StorageError):
                    raise found
                if len(found) != length:
                    raise DamagedError(
                        f"{self._where} is {start + len(found)} bytes, and {self.data.size} "
                        "were published"
                    )
                self._write(start, found)
                self._present[start // BLOCK : -(-(start + length) // BLOCK)] = 1
        self.complete = bool(self._present.all())

    def _write(self, start: int, found: bytes | Bytes) -> None:
        raise NotImplementedError


class Passing(_Partial):
    """A copy in the memory of this process alone."""

    def __init__(
        self, size: int, read: Read, where: str, *, kept: bool, whole: bool = False
    ) -> None:
        """Reserve addresses; memory is taken as parts come.

        Args:
            size: Bytes of the file.
            read: Reads ranges of it.
            where: What errors call it.
            kept: Whether it may be used for more than a batch; then it is fetched in parts.
            whole: Whether all of it must be fetched at once.
        """
        self._memory = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)[:size]
        self.kept = kept
        self._lock = threading.Lock()
        data = self._memory.view()
        data.flags.writeable = False
        super().__init__(data, np.zeros(-(-size // BLOCK), np.uint8), read, where, whole=whole)

    def fetch(self, ranges: NDArray[np.int64]) -> bool:
        """Bring what is missing of some ranges; see `Copy`."""
        with self._lock:
            blocks = self._missing(ranges)
            if blocks.size:
                wide = self._everything() if self._whole else self._widened(blocks)
                self._fill(self._runs(wide if self.kept or self._whole else blocks))
        return True

    def _write(self, start: int, found: bytes | Bytes) -> None:
        self._memory[start : start + len(found)] = np.frombuffer(found, np.uint8)


class Stored(_Partial):
    """A copy in the folder of a tier, shared by the processes of a machine.

    It has the size of the whole file from the beginning, and takes up room block by block.
    Beside it lies a file that says which blocks are there. A block is noted after it was
    written, so what a killed process leaves is fetched again; what a machine loses that loses
    its power is found by the rows' checksums.
    """

    kept = True

    def __init__(
        self, tier: "Tier", path: Path, read: Read, where: str, *, whole: bool = False
    ) -> None:
        """Map the files, which the tier has made."""
        self._tier, self.path = tier, path
        self.name = path.name
        self._inode = path.stat().st_ino
        record = mapped_file(beside(path), shared=True)
        self._head = record[: _HEAD.itemsize].view(_HEAD)
        # Every view of it holds this array, so that its end is the end of the copy's use.
        self.memory = mapped_file(path, shared=True)
        data = self.memory.view()
        data.flags.writeable = False
        super().__init__(data, record[_HEAD.itemsize :], read, where, whole=whole)
        self.complete = bool(self._present.all())
        self._head["used"] = time.time_ns()

    def fetch(self, ranges: NDArray[np.int64]) -> bool:
        """Bring what is missing of some ranges; see `Copy`.

        One thread of one process fetches a file at a time; others that want something of it
        wait, and find it there.
        """
        if self.has(ranges):
            return True
        with self._fetching():
            blocks = self._missing(ranges)
            if not blocks.size:
                return True
            if self._whole:
                blocks = self._everything()
            elif self._tier.has_room(self.data.size):
                blocks = self._widened(blocks)
            runs = self._runs(blocks)
            if not self._tier.reserve(self, runs):
                return False
            self._fill(runs)
        return True

    def has(self, ranges: NDArray[np.int64]) -> bool:
        """Tell whether nothing is missing of some ranges, which are about to be used."""
        self._tier.heed()
        self._head["used"] = time.time_ns()
        return super().has(ranges)

    def needed(self, plan: int, step: int) -> None:
        """Note a step of a plan that needs this copy; of several the last one counts."""
        self._head["plan"], self._head["step"] = plan, step

    def discard(self) -> None:
        """Remove it from its tier, for it is damaged; who has it mapped keeps what there is."""
        self._tier.drop(self.name, self._inode)

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """Be the only one of this machine that fetches this file."""
        fd = os.open(beside(self.path), os.O_RDWR | os.O_CLOEXEC)
        try:
            # Ends with the process that holds it; who fetches gives up after a bounded time.
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, start: int, found: bytes | Bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            view = memoryview(found)  # type: ignore[arg-type]
            while view:
                written = os.pwrite(fd, view, start)
                view, start = view[written:], start + written
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        finally:
            os.close(fd)


def beside(path: Path) -> Path:
    """Return the file that says which blocks of a copy are there."""
    return path.with_name(f"{path.name}.blocks")


def record_size(size: int) -> int:
    """Return the bytes of the file beside the copy of a file of `size` bytes."""
    return _HEAD.itemsize + -(-size // BLOCK)


def head_of(path: Path) -> tuple[int, int, int]:
    """Return when a copy was last used, a plan, and its last step in sight that needs it.

    Raises:
        OSError, ValueError: The file beside it cannot be read, or is cut short.
    """
    with beside(path).open("rb") as file:
        used, plan, step = np.frombuffer(file.read(_HEAD.itemsize), _HEAD, 1)[0].tolist()
    return used, plan, step


def blocks_of(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the blocks that ranges, int64 [n, 2], touch: ascending, each once."""
    starts, lengths = ranges[:, 0], ranges[:, 1]
    first = starts // BLOCK
    counts = np.where(lengths > 0, (starts + lengths - 1) // BLOCK - first + 1, 0)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(np.repeat(first, counts) + offsets)


def _together(runs: list[Range]) -> Iterator[list[Range]]:
    """Yield ranges in groups that are read at once."""
    some: list[Range] = []
    size = 0
    for run in runs:
        if some and (size + run[1] > _AT_ONCE_BYTES or len(some) == _AT_ONCE_SPANS):
            yield some
            some, size = [], 0
        some.append(run)
        size += run[1]
    if some:
        yield some
