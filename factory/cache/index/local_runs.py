"""Merged runs kept on this machine, so that no process need merge the index again."""

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from factory.cache.format.safetensors_file import DamagedError
from factory.cache.index.sorted_run import SortedRun, pack_run, read_run
from factory.cache.tiers.mapped_file import extent_of, file_bytes
from factory.errors import CacheError, ObjectNotFoundError, StorageError
from factory.storage.checksummed_arrow import READ_WHOLE
from factory.storage.local import LocalStorage

logger = logging.getLogger(__name__)

_SUFFIX = ".table.safetensors"
_LOCK = "merging.lock"
# Merging 10 million rows takes some 10 s; who waits longer than this merges for itself.
_PATIENCE_S = 120.0
_LOOK_AGAIN_S = 0.05


@dataclass(eq=False)
class LocalRuns:
    """A folder of tables, each merged once by one process and mapped by all.

    A table's name follows from what was merged, so two of one name are equal. All that is
    here can be made again: what is damaged is removed, and where nothing can be written a
    process keeps its tables in its own memory.

    Attributes:
        folder: Local folder; made when the first table is written.
    """

    folder: str

    def __post_init__(self) -> None:
        """Start with nothing opened."""
        self._storage = LocalStorage(root=self.folder)
        self._opened: dict[str, SortedRun] = {}

    def load(self) -> list[SortedRun]:
        """Return the tables that are here, mapped; damaged ones are removed."""
        found = {}
        for name in self._names():
            table = self._opened.get(name) or self._read(name)
            if table is not None:
                found[name] = table
        self._opened = found
        return list(found.values())

    def keep(self, table: SortedRun) -> SortedRun:
        """Write a table down and return it mapped, or as it is where that is not possible."""
        name = _name(table)
        try:
            self._storage.write(name, pack_run(table).data)
        except StorageError as error:
            logger.warning(
                "the merged index of %d rows is kept in this process's memory: %s",
                len(table), error,
            )  # fmt: skip
            return table
        written = self._read(name)
        if written is None:
            return table
        self._opened[name] = written
        return written

    def prune(self, kept: Sequence[SortedRun], listed: Collection[str], since_ns: int) -> None:
        """Remove tables that others took the place of; processes that map them keep them.

        Args:
            kept: What is in use.
            listed: Names of the segments that are published.
            since_ns: When they were listed; a younger table may know of later ones.
        """
        names = {_name(table) for table in kept}
        covered: frozenset[str] = frozenset().union(*(table.segments for table in kept))
        for name, table in list(self._opened.items()):
            if name in names:
                continue
            stale = not table.segments <= covered and not table.segments <= set(listed)
            if table.segments <= covered or (stale and self._written_ns(name) < since_ns):
                self._remove(name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time merge; after a while, or without locks, do not wait."""
        descriptor = self._lock()
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)  # which frees it, as the end of the process would

    def _lock(self) -> int | None:
        until = time.monotonic() + _PATIENCE_S
        path = Path(self.folder) / _LOCK
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None  # a folder that cannot be written to: nobody merges there
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(_LOOK_AGAIN_S)
                    continue
                logger.warning("%s is held by another process; merging without it", path)
            except OSError as error:  # a file system without locks
                logger.info("%s cannot be locked: %s", path, error)
            return descriptor

    def _names(self) -> list[str]:
        try:
            return sorted(p.name for p in Path(self.folder).iterdir() if p.name.endswith(_SUFFIX))
        except OSError:
            return []

    def _read(self, name: str) -> SortedRun | None:
        path = Path(self.folder) / name
        try:
            extent, data = extent_of(path), file_bytes(path)
            table = read_run(data, str(path))
            return replace(table, extent=extent) if data.size > READ_WHOLE else table
        except ObjectNotFoundError:
            return None  # another process put a larger one in its place
        except DamagedError as error:
            logger.warning("%s; it is merged anew", error)
        except (CacheError, StorageError) as error:
            logger.warning("%s cannot be used and is merged anew: %s", path, error)
        self._remove(name)
        return None

    def _written_ns(self, name: str) -> int:
        try:
            return (Path(self.folder) / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _remove(self, name: str) -> None:
        self._opened.pop(name, None)
        with suppress(StorageError):  # it is in nobody's way
            self._storage.delete(name)


def _name(table: SortedRun) -> str:
    parts = "\n".join([*sorted(table.segments), "", *sorted(table.dead)])
    return xxhash.xxh3_128_hexdigest(parts.encode()) + _SUFFIX
