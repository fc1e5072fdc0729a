"""Locked lists of the local copies that living processes have in use."""

import fcntl
import os
import uuid
from collections import Counter, deque
from pathlib import Path

# Lines after which a list is written anew: some 100 KiB, which others read in a millisecond.
_LINES = 2000


class UsageLock:
    """A file that lists what one user of a folder has in use, locked as long as it lives.

    The lock ends with the process, however it ends, so that a list without its lock is void.
    Not thread-safe; read and written under the lock of the folder.
    """

    def __init__(self, folder: Path) -> None:
        """Begin a list in a folder, which is made if need be.

        Raises:
            OSError: The file cannot be made.
        """
        folder.mkdir(exist_ok=True)
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._uses: Counter[str] = Counter()
        self._lines = 0
        # Filled by the garbage collector, in whatever thread and state: appending is all it may.
        self.released: deque[str] = deque()

    def take(self, name: str) -> None:
        """Note that a copy is used, once more."""
        self._uses[name] += 1
        if self._uses[name] == 1:
            self._write(f"+{name}\n")

    @property
    def names(self) -> list[str]:
        """The copies in use here."""
        return list(self._uses)

    def holds(self, name: str) -> bool:
        """Tell whether a copy is in use here."""
        return self._uses[name] > 0

    def flush(self) -> None:
        """Write down what was released since."""
        while self.released:
            name = self.released.popleft()
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                self._write(f"-{name}\n")

    def used_by_others(self) -> set[str]:
        """Return what other living users of the folder have in use; remove lists of the dead."""
        used: set[str] = set()
        for path in living(self._path.parent):
            if path != self._path:
                used |= _listed(path)
        return used

    def end(self) -> None:
        """Remove the list."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def _write(self, line: str) -> None:
        if self._lines == _LINES:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            line = "".join(f"+{name}\n" for name in self._uses)
            self._lines = 0
        os.write(self._fd, line.encode())
        self._lines += 1


def living(folder: Path) -> list[Path]:
    """Return the lists in a folder whose users live; remove the others."""
    if not folder.is_dir():
        return []
    found = []
    for path in list(folder.iterdir()):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it has just ended
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(path)
        else:
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)
    return found


def _listed(path: Path) -> set[str]:
    names: set[str] = set()
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return names
    for line in lines:
        (names.add if line[0] == "+" else names.discard)(line[1:])
    return names
