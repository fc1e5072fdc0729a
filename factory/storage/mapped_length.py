"""Lengths of memory-mapped files, to notice one that was truncated since it was checked."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Extent:
    """One file and its length. Memory mapped from it has that many bytes.

    A mapped file that is cut ends the process at the next touch of what is gone, by SIGBUS, and
    nothing in Python can catch that. To ask before the memory is used leaves only a cut in the very
    moment between.

    Attributes:
        path: Where it lies.
        inode: Which file it is: one that took its place says nothing of it.
        size: Its bytes.
    """

    path: str
    inode: int
    size: int

    @classmethod
    def of(cls, path: Path | str) -> "Extent":
        """Look at a file.

        Raises:
            OSError: It cannot be looked at.
        """
        found = os.stat(path)  # noqa: PTH116 - a third of Path.stat's time
        return cls(str(path), found.st_ino, found.st_size)

    @property
    def shrunk(self) -> bool:
        """Whether the file is shorter now; one that was removed stays whole while it is mapped."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - as above
        except OSError:
            return False
        return found.st_ino == self.inode and found.st_size < self.size
