"""Who alone may do a piece of work on a shared storage, and until when?"""

import json
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from factory.errors import CacheError, ObjectNotFoundError, StorageError
from factory.storage.base import Storage

logger = logging.getLogger(__name__)

# Longer than any one step between two renewals takes, a shard of some GiB on a slow line.
LEASE_S = 3600.0


class TakenError(CacheError):
    """Another process does this work."""


@dataclass(eq=False)
class Lease:
    """A claim that this process has written, and renews while it works.

    Attributes:
        storage: Where claims lie.
        key: The claim's own key.
        work: What is done, for messages.
        seconds: How long the claim holds without being renewed.
    """

    storage: Storage
    key: str
    work: str
    seconds: float

    def __post_init__(self) -> None:
        """Start with nothing said."""
        self._said = -math.inf

    def renew(self) -> None:
        """Say that this process is still at it, if that was not said lately."""
        if time.monotonic() - self._said < self.seconds / 10:
            return
        claim = {
            "work": self.work,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "until": time.time() + self.seconds,
        }
        self.storage.write(self.key, json.dumps(claim).encode())
        self._said = time.monotonic()


@contextmanager
def alone(storage: Storage, folder: str, work: str, seconds: float = LEASE_S) -> Iterator[Lease]:
    """Do a piece of work while no other process does it.

    Each process writes a claim of its own, then looks for others': of two that come at once
    one at least sees the other, and gives way. A claim of a process that is gone, or that
    has run out, is removed. Clocks of machines may differ by less than `seconds`.

    Args:
        storage: Where claims are written.
        folder: Folder of this work's claims in it.
        work: What is done, for messages.
        seconds: How long a claim holds without being renewed.

    Raises:
        TakenError: Another process is at it; who and where is told.
        StorageError: The storage cannot be listed, read or written.
    """
    lease = Lease(storage, f"{folder}/{secrets.token_hex(16)}.json", work, seconds)
    lease.renew()
    try:
        for info in list(storage.objects(folder)):
            if info.key != lease.key:
                _pass(storage, info.key)
        yield lease
    except BaseException:
        with suppress(StorageError):  # what went wrong first says more
            storage.delete(lease.key)
        raise
    storage.delete(lease.key)


def _pass(storage: Storage, key: str) -> None:
    """Remove a claim that holds no longer.

    Raises:
        TakenError: It holds.
    """
    try:
        text = storage.read(key)
    except ObjectNotFoundError:
        return
    try:
        claim: dict[str, Any] = dict(json.loads(text))
        host, pid, until = str(claim["host"]), int(claim["pid"]), float(claim["until"])
    except (KeyError, TypeError, ValueError):
        logger.warning("%s is no claim of this program; removed", key)
        storage.delete(key)
        return
    if until > time.time() and not (host == socket.gethostname() and not _runs(pid)):
        left = until - time.time()
        root, mark, server = storage.identity.partition("?")
        raise TakenError(
            f"{claim.get('work')} is done by process {pid} on {host}, by its claim for another "
            f"{left:.0f} s; wait for it, or delete {root}/{key}{mark}{server} if it is gone"
        )
    logger.warning("a claim of process %d on %s, which is gone or late, is removed", pid, host)
    storage.delete(key)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
