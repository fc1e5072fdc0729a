"""Distinguishes the fault of one sample from a failure of the storage, and from a bug."""

import errno
from typing import NamedTuple

from factory.catalog.facts import NOT_READABLE
from factory.errors import ContentMismatchError, MediaError, ObjectNotFoundError, StorageError
from factory.storage.base import Storage

_FULL = (errno.ENOSPC, errno.EDQUOT)


class SampleFault(NamedTuple):
    """Why a sample cannot be used, through no fault of anything but itself.

    Attributes:
        stage: What failed: "read" or "decode".
        reason: The error, as text.
    """

    stage: str
    reason: str

    @property
    def fact(self) -> str:
        """The reason as a catalog keeps it; what cannot be read may be readable the next time."""
        return f"{NOT_READABLE}: {self.reason}" if self.stage == "read" else self.reason


def sample_fault(error: Exception, storage: Storage, work: str) -> SampleFault:
    """Return what an error says of one sample; raise it where it is not that sample's fault.

    Args:
        error: What was raised while the sample was read or decoded.
        storage: Where the sample is.
        work: What was done, such as "measuring 'a.jpg'", for the note of an error that is raised.

    Raises:
        Exception: The error, for it stops the run: the storage fails, or there is a bug.
    """
    if isinstance(error, MediaError):
        return SampleFault("decode", str(error))
    if _costs_one_sample(error, storage):
        return SampleFault("read", str(error))
    error.add_note(f"while {work}")
    raise error


def _costs_one_sample(error: Exception, storage: Storage) -> bool:
    """Tell whether an error of a storage costs one sample alone.

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
