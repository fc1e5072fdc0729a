"""Local copies of published files, filled block by block."""

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.safetensors_file import Bytes, DamagedError
from factory.cache.tiers.mapped_file import mapped_file
from factory.errors import StorageError
from factory.storage.base import Put
from factory.storage.mapped_length import Extent

if TYPE_CHECKING:
    from factory.cache.tiers.tier import Tier

# What is fetched is noted in blocks of this size: less would not make a request any quicker,
# and more would fetch much that was not asked for beside a row, which has some 100 KiB.
BLOCK = 64 * 2**10
# Where there is room for all of a file it is fetched in parts of this size: every row is wanted
# once an epoch, and requests of some MiB fill a network. Whole files would make the first batch,
# which needs a row of many, wait for them all.
PART = 8 * 2**20

# First byte and number of bytes.
ByteRange = tuple[int, int]
# Puts the bytes of ranges somewhere, and yields in their order how many each had, or what went
# wrong with it; see `Storage.read_to`.
ReadRanges = Callable[[Sequence[ByteRange], Put], Generator[int | StorageError, None, None]]

# Pieces that one call writes: Linux takes no more, and small packets make many.
_PIECES = 1024
# Takes the first byte and pieces from there on.
_Write = Callable[[int, Sequence[bytes | memoryview]], None]

# Before the blocks: when it was used, a plan, and the last step in sight that needs it.
_HEAD = np.dtype([("used", "<i8"), ("plan", "<u8"), ("step", "<i8")])


class FileCopy(Protocol):
    """A file's bytes on this machine; they stay as long as this object does.

    Attributes:
        data: All bytes, uint8 [size], not to be written to; those not fetched are zeros.
        kept: Whether it outlives a batch.
        complete: Whether nothing of it is missing.
        extent: The file it is mapped from; None where it is in memory.
    """

    data: Bytes
    kept: bool
    complete: bool
    extent: Extent | None

    def has(self, ranges: NDArray[np.int64]) -> bool:
        """Tell whether nothing is missing of some ranges, int64 [n, 2]."""

    def fetch(self, ranges: NDArray[np.int64]) -> bool:
        """Bring what is missing of some ranges, int64 [n, 2]; False if there is no room.

        Raises:
            DamagedError: The file ends early.
            StorageError: It cannot be read.
        """


class WholeFile:
    """A file that is all there: on a mounted disk, as it was published."""

    kept = complete = True

    def __init__(self, data: Bytes, extent: Extent | None = None) -> None:
        """Hold its bytes, and the file they are mapped from."""
        self.data, self.extent = data, extent

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

    def __init__(
        self, data: Bytes, present: Bytes, read: ReadRanges, where: str, *, whole: bool
    ) -> None:
        self.data, self._present = data, present
        self._read, self._where, self._whole = read, where, whole
        self.complete = False
        self.extent: Extent | None = None

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
        missing = self._everything()
        widened: NDArray[np.int64] = missing[np.isin(self._parts(missing), self._parts(blocks))]
        return widened

    def _everything(self) -> NDArray[np.int64]:
        """Return all missing blocks."""
        return np.flatnonzero(self._present == 0)

    def _parts(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which part each block lies in; a short end belongs to the part before it."""
        width = PART // BLOCK
        count = max(1, (len(self._present) + width // 2) // width)
        return np.minimum(blocks // width, count - 1)

    def _runs(self, blocks: NDArray[np.int64]) -> list[ByteRange]:
        """Return the ranges that blocks cover, none longer than its part."""
        cuts = np.flatnonzero((np.diff(blocks) != 1) | (np.diff(self._parts(blocks)) != 0)) + 1
        size = self.data.size
        runs = []
        for run in np.split(blocks, cuts):
            start = int(run[0]) * BLOCK
            runs.append((start, min(size, (int(run[-1]) + 1) * BLOCK) - start))
        return runs

    def _fill(self, runs: list[ByteRange]) -> None:
        """Read some ranges to their places, and note of each that it is there once it is."""
        with self._target() as write:

            def put(number: int, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
                start, length = runs[number]
                # What lies behind a range may be there already, and in use.
                if offset + sum(map(len, pieces)) > length:
                    raise StorageError(f"{self._where} gave more bytes than {length} from {start}")
                write(start + offset, pieces)

            with closing(self._read(runs, put)) as found:
                for (start, length), size in zip(runs, found, strict=True):
                    if isinstance(size, StorageError):
                        raise size
                    if size != length:
                        raise DamagedError(
                            f"{self._where} is {start + size} bytes, and {self.data.size} "
                            "were published"
                        )
                    self._present[start // BLOCK : -(-(start + length) // BLOCK)] = 1
        self.complete = bool(self._present.all())

    def _target(self) -> AbstractContextManager[_Write]:
        """Return what takes the first byte and pieces from there on, in any thread."""
        raise NotImplementedError


class MemoryCopy(_Partial):
    """A copy in the memory of this process alone."""

    def __init__(
        self, size: int, read: ReadRanges, where: str, *, kept: bool, whole: bool = False
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

    def _target(self) -> AbstractContextManager[_Write]:
        return _while_fetching(self._write)

    def _write(self, start: int, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            self._memory[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
            start += len(piece)


class TierCopy(_Partial):
    """A copy in the folder of a tier, shared by the processes of a machine.

    It has the size of the whole file from the beginning, and takes up room block by block.
    Beside it lies a file that says which blocks are there. A block is noted after it was
    written, so what a killed process leaves is fetched again; what a machine loses that loses
    its power is found by the rows' checksums.
    """

    kept = True

    def __init__(
        self, tier: "Tier", path: Path, read: ReadRanges, where: str, *, whole: bool = False
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
        self.extent = Extent(str(path), self._inode, data.size)
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
            if not self._whole and self._tier.has_room(self.data.size):
                wide = self._runs(self._widened(blocks))
                # Others may have taken that room since: nothing is removed for more than was asked.
                if self._tier.reserve(self, wide, removing=False):
                    self._fill(wide)
                    return True
            runs = self._runs(self._everything() if self._whole else blocks)
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

    def _target(self) -> AbstractContextManager[_Write]:
        return _open_for_pieces(self.path)


@contextmanager
def _open_for_pieces(path: Path) -> Iterator[_Write]:
    """Yield what writes to a file.

    By `pwrite`, not into the map: that costs a fault for each page, twice the time.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(at: int, pieces: Sequence[bytes | memoryview]) -> None:
        try:
            _write_all(fd, at, pieces)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    try:
        with _while_fetching(write) as writing:
            yield writing
    finally:
        os.close(fd)


@contextmanager
def _while_fetching(write: _Write) -> Iterator[_Write]:
    """Yield what writes as it is told until this is left; afterwards nothing more is written."""
    free = threading.Condition()
    writing = 0
    closed = False

    def guarded(at: int, pieces: Sequence[bytes | memoryview]) -> None:
        nonlocal writing
        with free:
            if closed:
                return  # of a request that was given up; nobody will note these bytes
            writing += 1
        try:
            write(at, pieces)
        finally:
            with free:
                writing -= 1
                free.notify_all()

    try:
        yield guarded
    finally:
        with free:
            closed = True
            free.wait_for(lambda: not writing)


def _write_all(fd: int, at: int, pieces: Sequence[bytes | memoryview]) -> None:
    left = [memoryview(piece) for piece in pieces]
    while left:
        written = os.pwritev(fd, left[:_PIECES], at)
        at += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if left:
            left[0] = left[0][written:]


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
