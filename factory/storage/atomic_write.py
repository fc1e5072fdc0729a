"""Atomic writes of local files: a name stands for a whole file, or for what it was before."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from factory.storage.keys import temporary_name

# What systems say that know no files without a name: other systems than Linux have no such flag,
# and network file systems, or old ones, refuse it in one of these ways.
_UNNAMED = getattr(os, "O_TMPFILE", 0)
_REFUSALS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EPERM)
# The files that this process has open, by number.
_OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write to, which is on the disk and takes a place in the end.

    Until then it has no name, where the system knows such files: a process that is killed while
    it writes leaves nothing behind. Elsewhere it has a name that no listing shows.

    Args:
        path: The place, whose folder is there.

    Raises:
        OSError: The file cannot be written; the place is as before, and nothing is left.
    """
    temporary = path.parent / temporary_name()
    try:
        with _opened(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if isinstance(file.name, int):
                _name(file, temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _opened(temporary: Path) -> BinaryIO:
    # By way of /proc it gets its name in the end.
    if _UNNAMED and _OPEN_FILES.exists():
        try:
            descriptor = os.open(temporary.parent, _UNNAMED | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
        else:
            return os.fdopen(descriptor, "w+b")
    return temporary.open("xb")


def _name(file: BinaryIO, temporary: Path) -> None:
    """Give a name to a file that has none; a link cannot take another file's place."""
    folder = os.open(temporary.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Python has the system follow the link to the open file only where a folder is told.
        own = _OPEN_FILES / str(file.fileno())
        os.link(own, temporary.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError:
        # File systems may know such files and give them no name later, as do some rules of safety.
        file.seek(0)
        with temporary.open("xb") as named:
            shutil.copyfileobj(file, named)
            named.flush()
            os.fsync(named.fileno())
    finally:
        os.close(folder)
