"""Files of this machine, read as memory."""

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.cache.format.safetensors_file import Bytes
from factory.errors import ObjectNotFoundError, StorageError
from factory.storage.checksummed_arrow import READ_WHOLE
from factory.storage.mapped_length import Extent


def mapped_file(path: Path, *, shared: bool = False) -> Bytes:
    """Return a file's bytes, uint8 [bytes], read as they are touched; not to be written to.

    Unlike numpy's, torch's map holds no file descriptor, so that there is no limit to them.

    Args:
        path: The file.
        shared: Whether it may be written to after all, and all processes see what is written.

    Raises:
        ObjectNotFoundError: There is no such file.
        StorageError: It cannot be mapped.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            return np.empty(0, np.uint8)
        tensor = torch.from_file(str(path), shared=shared, size=size, dtype=torch.uint8)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"{path} does not exist") from error
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot map {path}: {error}") from error
    data: Bytes = tensor.numpy()
    if not shared:
        data.flags.writeable = False
    return data


def file_bytes(path: Path) -> Bytes:
    """Return a file's bytes, uint8 [bytes]: in memory of this process, or of a large file mapped.

    What is in memory cannot be cut by others while it is in use.

    Raises:
        ObjectNotFoundError: There is no such file.
        StorageError: It cannot be read.
    """
    try:
        if path.stat().st_size > READ_WHOLE:
            return mapped_file(path)
        return np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def extent_of(path: Path) -> Extent | None:
    """Return how long a file is that is about to be mapped; None where there is no such file."""
    try:
        return Extent.of(path)
    except OSError:
        return None  # who maps it says why


def willneed(address: int, nbytes: int) -> None:
    """Have the system begin to read a part of a mapped file, which will be touched soon.

    It reads ahead by itself, but for files that are read from end to end: around each row of a
    large cache too much, and of the next row nothing. Nothing is waited for, and where the system
    knows no such thing, the part is read when it is touched.

    Args:
        address: Where the part begins in the memory of this process, bytes.
        nbytes: How long it is.
    """
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    _madvise()(ctypes.c_void_p(start), ctypes.c_size_t(address + nbytes - start), _WILL_NEED)


# The same number on every system that has it.
_WILL_NEED = 3


@cache
def _madvise() -> Any:
    """Return the system's call; one that does nothing where there is none."""
    return getattr(ctypes.CDLL(None), "madvise", lambda *_: None)
