"""Distinguishes the fault of one sample from a failure of the storage."""

import errno

from factory.errors import ContentMismatchError, ObjectNotFoundError, StorageError
from factory.storage.base import Storage

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_sample_fault(error: Exception, storage: Storage) -> bool:
    """Tell whether an error costs one sample alone.

    An object that vanished since the listing, or that is not what was stored, does; so does
    one URL of many that fails. What else fails in a storage of one place does not, and neither
    does a disk that is full of downloads.
    """
    if isinstance(error, ObjectNotFoundError | ContentMismatchError):
        return True
    return storage.independent_objects and isinstance(error, StorageError) and not _is_full(error)


def _is_full(error: BaseException | None) -> bool:
    """Look for a full disk behind an error, however often it was raised again."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False
