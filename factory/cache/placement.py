"""Where does the row of each sample lie, without making its key again for every batch?

A key is a hash of everything that shaped a row: making sixteen of them takes longer than reading
the rows. Where the rows of a catalog lie is therefore looked up once, kept in a file of this
machine and mapped by every process that trains: numbers of shards and rows, 16 bytes a sample.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.cache.container import DamagedError, header, parse
from factory.cache.index import Found
from factory.cache.mapping import mapped_file
from factory.cache.recipe import Keys
from factory.cache.snapshot import Snapshot
from factory.errors import CacheError, StorageError

# Rows looked up at once: their keys, and the texts these are made of, take some tens of MB.
PIECE = 2**16
# Files kept for one backend: that of this run, and those of runs with other settings.
_KEPT = 4
# Raised with what a file means.
_FORMAT = 1
_SUFFIX = ".places"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the row of each sample of a catalog lay when a snapshot was taken.

    Attributes:
        snapshot: Numbers the shards, as every process that reads the same index does.
        shard: Number of the shard, int32 [n]; -1 where there is no row.
        row: Row in the shard, uint32 [n].
        checksum: Of the row, uint64 [n].
    """

    snapshot: Snapshot
    shard: NDArray[np.int32]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]

    def at(self, rows: NDArray[np.int64]) -> Found:
        """Return where the rows of some samples, int64 [k], lie."""
        return Found(self.shard[rows].astype(np.int64), self.row[rows], self.checksum[rows])


# The columns of a placement: shard, row and checksum.
Columns: TypeAlias = tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint64]]
# Returns the keys of samples whose rows in the catalog are given.
KeysOf: TypeAlias = Callable[[NDArray[np.int64]], Keys]


@dataclass(frozen=True)
class Kept:
    """Where placements of one backend are kept on this machine.

    Attributes:
        folder: A folder of its own.
    """

    folder: Path

    def path(self, identity: str) -> Path:
        """Return the file of a placement."""
        return self.folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}{_SUFFIX}"

    def forget_old(self) -> None:
        """Remove all but the newest few; processes that have them mapped are not disturbed."""
        dated = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):  # another process removed it
                dated.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(dated)[:-_KEPT]:
            path.unlink(missing_ok=True)


def place(
    snapshot: Snapshot,
    keys_of: KeysOf,
    samples: tuple[int, NDArray[np.integer[Any]]],
    identity: str,
    kept: Kept | None = None,
) -> Placement:
    """Return where the rows of samples lie: as it was kept, or looked up now and kept.

    Args:
        snapshot: Where to look.
        keys_of: Makes keys.
        samples: How many the catalog has, n, and which of them are asked for, integers [k].
        identity: What the keys follow from, all of it; of another identity nothing is taken.
        kept: Where it is kept; None keeps it in memory alone.
    """
    count, wanted = samples
    path = None
    if kept is not None:
        path = kept.path(f"{_FORMAT}/{count}/{identity}/{snapshot.identity}")
        # Whatever is wrong with it, it can be made again.
        with suppress(CacheError, StorageError):
            return Placement(snapshot, *_opened(path, count))
    found = _look_up(snapshot, keys_of, count, wanted)
    columns: Columns = (found.shard.astype(np.int32), found.row, found.checksum)
    if kept is not None and path is not None:
        # On a disk that is full or read-only, memory does as well.
        with suppress(OSError, StorageError, CacheError):
            _write(path, columns)
            kept.forget_old()
            columns = _opened(path, count)
    return Placement(snapshot, *columns)


def _look_up(
    snapshot: Snapshot, keys_of: KeysOf, count: int, wanted: NDArray[np.integer[Any]]
) -> Found:
    shard, row = np.full(count, -1, np.int64), np.zeros(count, np.uint32)
    checksum = np.zeros(count, np.uint64)
    for start in range(0, len(wanted), PIECE):
        rows = np.asarray(wanted[start : start + PIECE], np.int64)
        found = snapshot.index.find(keys_of(rows))
        shard[rows], row[rows], checksum[rows] = found.shard, found.row, found.checksum
    return Found(shard, row, checksum)


def _write(path: Path, columns: Columns) -> None:
    """Write it whole under a name of its own, then give it its name."""
    shard, row, checksum = columns
    shape = shard.shape
    head = header([("checksum", "U64", shape), ("row", "U32", shape), ("shard", "I32", shape)], {})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(head)
            for column in (checksum, row, shard):
                file.write(np.ascontiguousarray(column).data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _opened(path: Path, count: int) -> Columns:
    tensors = parse(mapped_file(path), str(path))[1]
    if {name: (t.code, t.shape) for name, t in tensors.items()} != {
        "checksum": ("U64", (count,)), "row": ("U32", (count,)), "shard": ("I32", (count,))
    }:  # fmt: skip
        raise DamagedError(f"{path} does not hold {count} places")
    checksum, row, shard = (tensors[name].data for name in ("checksum", "row", "shard"))
    return shard.view(np.int32), row.view(np.uint32), checksum.view(np.uint64)
