"""Leases: claims on a storage that let one process at a time do a piece of work."""

import json
import logging
import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from factory.errors import CacheError, ObjectNotFoundError, StorageError
from factory.storage.base import Storage

logger = logging.getLogger(__name__)

# Longer than any one step between two renewals takes, a shard of some GiB on a slow line.
LEASE_S = 3600.0
# Of claims that a thread renews, ten times in this: clocks of machines differ by less.
TURN_S = 120.0
# Without a new row for so long, who is waited for hangs: a shard takes about a minute.
STUCK_S = 900.0
# Between two looks at whether another process is done.
_POLL_S = 1.0


class LeaseTakenError(CacheError):
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
        LeaseTakenError: Another process is at it; who and where is told.
        StorageError: The storage cannot be listed, read or written.
    """
    lease = _claim(storage, folder, work, seconds)
    try:
        yield lease
    except BaseException:
        with suppress(StorageError):  # what went wrong first says more
            storage.delete(lease.key)
        raise
    storage.delete(lease.key)


@contextmanager
def in_turn(storage: Storage, folder: str, work: str, left: Callable[[], int]) -> Iterator[None]:
    """Do a piece of work after the other processes that are at it, of which one may do it all.

    It saves work, and nothing hangs on it: whoever cannot write claims, or waits for a process
    that gets nowhere, goes on at once. A claim is renewed by a thread, so that one of a process
    that was killed is void at once on its own machine, and elsewhere after `TURN_S`.

    Args:
        storage: Where claims are written.
        folder: Folder of this work's claims in it.
        work: What is done, for messages.
        left: Returns how much is left to do; asked while another process is at it.
    """
    lease = _wait(storage, folder, work, left)
    if lease is None:
        yield
        return
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(lease, ended), name="factory-lease", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(StorageError):  # it runs out by itself
            storage.delete(lease.key)


def _wait(storage: Storage, folder: str, work: str, left: Callable[[], int]) -> Lease | None:
    """Return a claim as soon as no other holds; None where it is of no use to wait for one."""
    seen, since, warned = -1, time.monotonic(), False
    while True:
        try:
            return _claim(storage, folder, work, TURN_S)
        except LeaseTakenError as error:
            if not warned:
                logger.warning("waiting for its rows: %s", error)
                warned = True
        except StorageError as error:
            logger.warning("%s is done without a claim: %s", work, error)
            return None
        time.sleep(random.uniform(0.5, 1.5) * _POLL_S)  # noqa: S311 - two that come at once part
        now = left()
        if now != seen:
            seen, since = now, time.monotonic()
        if not now:
            return None
        if time.monotonic() - since > STUCK_S:
            logger.warning("%s: no row came for %.0f s; not waited for any more", work, STUCK_S)
            return None


def _beat(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(lease.seconds / 10):
        with suppress(StorageError):
            lease.renew()


def _claim(storage: Storage, folder: str, work: str, seconds: float) -> Lease:
    """Write a claim and look for others'.

    Raises:
        LeaseTakenError: Another process is at it.
        StorageError: The storage cannot be listed, read or written.
    """
    lease = Lease(storage, f"{folder}/{secrets.token_hex(16)}.json", work, seconds)
    lease.renew()
    try:
        for info in list(storage.objects(folder)):
            if info.key != lease.key and info.key.endswith(".json"):
                _pass(storage, info.key)
    except BaseException:
        with suppress(StorageError):  # what went wrong first says more
            storage.delete(lease.key)
        raise
    return lease


def _pass(storage: Storage, key: str) -> None:
    """Remove a claim that holds no longer.

    Raises:
        LeaseTakenError: It holds.
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
        raise LeaseTakenError(
            f"{claim.get('work')} is done by process {pid} on {host}, by its claim for another "
            f"{left:.0f} s; wait for it, or delete {root}/{key}{mark}{server} if it is gone"
        )
    logger.warning("a claim of process %d on %s, which is gone or late, is removed", pid, host)
    storage.delete(key)


def _runs(pid: int) -> bool:
    try:
        # One that was killed is there until its parent has asked for its end.
        ended: bool = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True
    return not ended
