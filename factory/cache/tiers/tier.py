"""Tier: a folder of local copies that all processes of a machine keep within a limit."""

import fcntl
import logging
import os
import shutil
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from factory.cache.tiers.local_copy import (
    ByteRange,
    ReadRanges,
    TierCopy,
    beside,
    head_of,
    record_size,
)
from factory.cache.tiers.usage_lock import UsageLock, living
from factory.errors import CacheError, StorageError

logger = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
# Bytes in use, and how often room had to be made.
_STATE = struct.Struct("<QQ")
# What is freed beyond need when room is made, as a part of the limit: looking at the whole
# folder for each row would cost more than fetching it.
_SPARE = 32
_NEVER = 2**63 - 1
# What `st_blocks` counts, whatever the file system's own blocks are.
_SECTOR = 512
# What file systems allocate at least.
_PAGE = 4096


@dataclass(frozen=True)
class _Found:
    """A copy that may be removed: the step that needs it, or never; last use; and bytes."""

    path: Path
    step: int
    used: int
    size: int


def _ignore(name: str) -> None:
    del name


class Tier:
    """A folder of copies with a limit that all processes of the machine keep together.

    Room is taken before anything is fetched, by allocating it, so a full disk (or a full
    memory file system, which would end the process by SIGBUS) shows as a plain "no room".
    The file system's own count of blocks is the truth; the number kept in the folder's lock
    file saves looking at it while there is room.

    When room is short, copies are removed: first those that no step in sight of the plan
    needs, the least recently used before others, then those needed last. Never one in use.
    """

    def __init__(
        self, folder: Path, limit: int | None, setting: str, *, volatile: bool = False
    ) -> None:
        """Hold the settings; nothing is made before the first copy.

        Args:
            folder: Where copies lie; its own.
            limit: Bytes they may take up; None for no limit.
            setting: What the limit is called in messages.
            volatile: Remove the folder with its last user, as memory is worth it.
        """
        self.folder, self.limit, self.setting, self.volatile = folder, limit, setting, volatile
        # Asks the user of this tier to let go of a copy it holds without need.
        self.let_go: Callable[[str], None] = _ignore
        self._threads = threading.RLock()
        self._fd = -1
        self._uses: UsageLock | None = None
        self._heeded = 0
        self._warned = False
        self._plan, self._now = 0, 0

    def open(
        self, name: str, size: int, read: ReadRanges, where: str, *, whole: bool = False
    ) -> TierCopy | None:
        """Return a file's copy, which may hold nothing yet; it stays as long as it is held.

        Args:
            name: The file's name.
            size: Its bytes, above 0.
            read: Reads ranges of it, to fill the copy.
            where: What errors call it.
            whole: Whether all of it must be fetched at once.

        Returns:
            The copy, or None if there is no room, or the folder cannot be written to.

        Raises:
            CacheError: The folder is not usable as a tier at all.
        """
        try:
            with self._locked() as uses:
                path = self.folder / name
                if not self._is_made(path, size) and not self._make(path, size, uses):
                    return None
                copy = TierCopy(self, path, read, where, whole=whole)
                uses.take(name)
                weakref.finalize(copy.memory, uses.released.append, name).atexit = False
                return copy
        except (OSError, StorageError) as error:
            self._warn(error)
            return None

    def heed(self) -> None:
        """Let go of what is held without need if somebody had to make room since."""
        if self.limit is None or self._fd < 0:
            return
        presses = self._state()[1]
        if presses != self._heeded:
            self._heeded = presses
            with self._locked() as uses:
                for name in uses.names:
                    self.let_go(name)
                uses.flush()

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes fit without removing anything."""
        return self.limit is None or self._state()[0] + size <= self.limit

    def reserve(self, copy: TierCopy, runs: list[ByteRange], *, removing: bool = True) -> bool:
        """Allocate room for ranges of a copy; False if there is none.

        Args:
            copy: The copy.
            runs: The ranges.
            removing: Whether other copies may be removed for it.
        """
        need = sum(_rounded(length) for _, length in runs)
        with self._locked() as uses:
            if not (removing or self.has_room(need)):
                return False
            mine = self._next_step(*head_of(copy.path)[1:])
            if not self._make_room(need, copy.name, mine, uses):
                return False
            used, presses = self._state()
            # Written first: who is killed in between leaves a number too high, never too low.
            self._write_state(used + need, presses)
            try:
                self._allocate(copy.name, runs)
            except OSError as error:
                self._write_state(self._recount(), presses)
                self._warn(error)
                return False
        return True

    def drop(self, name: str, inode: int | None = None) -> None:
        """Remove a copy, if it is still the file of that number (any if None)."""
        with self._locked() as uses:
            path = self.folder / name
            with suppress(FileNotFoundError):
                if inode is None or path.stat().st_ino == inode:
                    _remove(path)
                    uses.flush()
                    self._write_state(self._recount(), self._state()[1])

    def expect(self, plan: int, now: int) -> None:
        """Say which plan is followed, and the step it has come to."""
        self._plan, self._now = plan, now

    def used(self) -> int:
        """Return the bytes that copies take up, as the file system counts them."""
        return self._recount() if self.folder.is_dir() else 0

    def close(self) -> None:
        """End the use of this tier by this process; it may be used again."""
        with self._threads:
            if self._uses is None:
                return
            finalize, self._end = self._end, None
            if finalize is not None:
                finalize()
            self._uses, self._fd = None, -1

    @contextmanager
    def _locked(self) -> Iterator[UsageLock]:
        """Be the only one who changes what is in the folder."""
        with self._threads:
            uses = self._uses or self._enter()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                uses.flush()
                yield uses
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    _end: "weakref.finalize[[UsageLock, int, Path | None], Tier] | None" = None

    def _enter(self) -> UsageLock:
        """Begin to use the folder."""
        if self.volatile:
            clear_stale(self.folder.parent)
            self._check_memory()
        with entrance(self.folder.parent if self.volatile else self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            self._uses = UsageLock(self.folder / "users")
        folder = self.folder if self.volatile else None
        self._end = weakref.finalize(self, _leave, self._uses, self._fd, folder)
        with self._locked():
            if os.fstat(self._fd).st_size < _STATE.size:
                self._write_state(self._recount(), 0)
        self._heeded = self._state()[1]
        return self._uses

    def _check_memory(self) -> None:
        """Refuse a limit that the memory file system can never hold."""
        found = os.statvfs(self.folder.parent)
        size = found.f_blocks * found.f_frsize
        if self.limit is not None and self.limit > size:
            raise CacheError(
                f"{self.setting}={self.limit / 2**30:g} is more than the {size / 2**30:.3g} GiB "
                f"that {self.folder.parent} has; lower it, set cache.ram_dir to a larger memory "
                "file system, or enlarge this one (docker run --shm-size)"
            )

    def _state(self) -> tuple[int, int]:
        used, presses = _STATE.unpack(os.pread(self._fd, _STATE.size, 0))
        return used, presses

    def _write_state(self, used: int, presses: int) -> None:
        os.pwrite(self._fd, _STATE.pack(max(0, used), presses), 0)

    def _recount(self) -> int:
        total = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _SUFFIX in entry.name:
                        total += entry.stat().st_blocks * _SECTOR
        return total

    def _is_made(self, path: Path, size: int) -> bool:
        """Tell whether there is a copy of the right size."""
        try:
            sizes = path.stat().st_size, beside(path).stat().st_size
        except FileNotFoundError:
            return False
        return sizes == (size, record_size(size))

    def _make(self, path: Path, size: int, uses: UsageLock) -> bool:
        """Make the empty copy of a file; False if there is no room for its record."""
        _remove(path)
        record = record_size(size)
        if not self._make_room(_rounded(record), path.name, _NEVER, uses):
            return False
        with path.open("wb") as file:
            file.truncate(size)
        # Last: without its record a copy is made anew.
        with beside(path).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, record)
            taken = os.fstat(file.fileno()).st_blocks * _SECTOR
        used, presses = self._state()
        self._write_state(used + taken, presses)
        return True

    def _allocate(self, name: str, runs: list[ByteRange]) -> None:
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for start, length in runs:
                os.posix_fallocate(fd, start, length)
        finally:
            os.close(fd)

    def _make_room(self, need: int, name: str, mine: int, uses: UsageLock) -> bool:
        """Remove copies until `need` bytes fit for the one named; tell whether they do.

        Args:
            need: Bytes.
            name: The copy that grows; it is not removed for its own sake.
            mine: The step that needs it next: nothing needed before is removed.
            uses: What is in use here.
        """
        limit, (used, presses) = self.limit, self._state()
        if limit is None or used + need <= limit:
            return True
        if need > limit:
            return False
        used = self._recount()
        goal = limit - max(need, limit // _SPARE)
        others = uses.used_by_others() if used > goal else set()
        for each in self._candidates() if used > goal else []:
            if used <= goal or each.step <= mine < _NEVER:
                break
            spared = each.path.name == name or each.path.name in others
            if not spared and self._is_free(each.path.name, uses):
                _remove(each.path)
                used -= each.size
        self._heeded = presses + 1
        self._write_state(used, self._heeded)
        return used + need <= limit

    def _is_free(self, name: str, uses: UsageLock) -> bool:
        """Tell whether nobody here uses a copy, after asking to let go of it."""
        if uses.holds(name):
            self.let_go(name)
            uses.flush()
        return not uses.holds(name)

    def _candidates(self) -> list[_Found]:
        """Return the copies, those to be removed first before the others."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                size = (path.stat().st_blocks + beside(path).stat().st_blocks) * _SECTOR
                try:
                    used, plan, step = head_of(path)
                except ValueError:  # cut short: of no use to anybody
                    used, plan, step = 0, 0, 0
                found.append(_Found(path, self._next_step(plan, step), used, size))
        return sorted(found, key=lambda each: (-each.step, each.used))

    def _next_step(self, plan: int, step: int) -> int:
        """Return the step that needs a copy, as far as this process's plan is known ahead."""
        return step if plan == self._plan != 0 and step >= self._now else _NEVER

    def _warn(self, error: Exception) -> None:
        """Say once that a copy could not be made: reading goes on without it."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "no room for copies in %s: %s; rows are read from below it each time, which takes "
                "longer: free some space there, or lower %s",
                self.folder, getattr(error, "strerror", None) or error, self.setting,
            )  # fmt: skip


def _rounded(length: int) -> int:
    return -(-length // _PAGE) * _PAGE


def _remove(path: Path) -> None:
    # The record first: a copy without it counts as absent.
    beside(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _leave(uses: UsageLock, fd: int, volatile: Path | None) -> None:
    """End a use; with the last one remove a folder in memory."""
    if volatile is None:
        uses.end()
    elif volatile.parent.is_dir():
        with entrance(volatile.parent):
            uses.end()
            if not living(volatile / "users"):
                shutil.rmtree(volatile, ignore_errors=True)
    os.close(fd)


def clear_stale(base: Path) -> None:
    """Remove the folders in memory whose users were killed.

    Raises:
        CacheError: The folder that they lie in belongs to somebody else.
        OSError: It cannot be made.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise CacheError(
            f"{base} belongs to somebody else; remove it, or set cache.ram_dir to a folder of yours"
        )
    with entrance(base):
        for folder in [each for each in base.iterdir() if each.is_dir()]:
            if not living(folder / "users"):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def entrance(folder: Path) -> Iterator[None]:
    """Be the only one who begins or ends to use what lies in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / "entrance", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
