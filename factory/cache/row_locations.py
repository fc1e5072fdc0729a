"""Row locations: where the encoded row of each sample of a catalog lies.

A key is a hash of everything that shaped a row: making sixteen of them takes longer than reading
the rows. Where the rows of a catalog lie is therefore looked up once, kept in a file of this
machine and mapped by every process that trains: numbers of shards and rows, 16 bytes a sample.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.cache.format.recipe import KEY_DTYPE, Keys
from factory.cache.format.safetensors_file import DamagedError, digest, header, parse
from factory.cache.index.recipe_index import RowRefs
from factory.cache.index.snapshot import Snapshot
from factory.cache.store import TensorStore
from factory.cache.tiers.mapped_file import file_bytes
from factory.errors import CacheError, StorageError
from factory.storage.atomic_write import atomic_file

# Rows looked up at once: their keys, and the texts these are made of, take some tens of MB.
PIECE = 2**16
# Files kept for one backend: that of this run, and those of runs with other settings.
_KEPT = 4
# Raised with what a file means.
_FORMAT = 2
_SUFFIX = ".places"
# In the place of a shard's number: there is no row, and it was not looked up yet.
_ABSENT, _UNKNOWN = -1, -2


# Returns the keys of samples whose rows in the catalog are given.
KeysOf: TypeAlias = Callable[[NDArray[np.int64]], Keys]
# The columns of row locations: shard, row and checksum.
LocationColumns: TypeAlias = tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint64]]


@dataclass(frozen=True, eq=False)
class RowQuery:
    """Samples whose rows are looked for.

    Attributes:
        count: How many samples their catalog has, n.
        wanted: Which of them are asked for: their rows in the catalog, integers [k].
        keys_of: Makes keys.
        identity: What the keys follow from, all of it; of another identity nothing is taken.
    """

    count: int
    wanted: NDArray[np.integer[Any]]
    keys_of: KeysOf
    identity: str


@dataclass(frozen=True, eq=False)
class RowLocations:
    """Where the row of each sample of a catalog lay when a snapshot was taken.

    Attributes:
        snapshot: Numbers the shards, as every process that reads the same index does.
        shard: Number of the shard, int32 [n]; -1 where there is no row.
        row: Row in the shard, uint32 [n].
        checksum: Of the row, uint64 [n].
        identity: That of what was asked for.
        lacking: Places in `RowQuery.wanted` of the samples without a row, ascending, int64 [m].
        keys: Keys of those samples, V16 [m].
    """

    snapshot: Snapshot
    shard: NDArray[np.int32]
    row: NDArray[np.uint32]
    checksum: NDArray[np.uint64]
    identity: str = ""
    lacking: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: Keys = field(default_factory=lambda: np.zeros(0, KEY_DTYPE))

    def at(self, rows: NDArray[np.int64]) -> RowRefs:
        """Return where the rows of some samples, int64 [k], lie."""
        return RowRefs(
            self.snapshot.index.shards,
            self.shard[rows].astype(np.int64),
            self.row[rows],
            self.checksum[rows],
        )


@dataclass(frozen=True, eq=False)
class LazyRowLocations(RowLocations):
    """One in which a sample is looked up when it is first asked for; safe in several threads.

    Attributes:
        keys_of: Makes keys.
    """

    keys_of: KeysOf = field(kw_only=True)

    def at(self, rows: NDArray[np.int64]) -> RowRefs:
        """Return where the rows of some samples, int64 [k], lay in the snapshot."""
        unknown = np.unique(rows[self.shard[rows] == _UNKNOWN])
        if unknown.size:
            found = self.snapshot.index.find(self.keys_of(unknown))
            self.row[unknown], self.checksum[unknown] = found.row, found.checksum
            self.shard[unknown] = found.shard  # last: who sees it must find the others
        return super().at(rows)


@dataclass(frozen=True)
class LocationFiles:
    """Where the row locations of one backend are kept on this machine.

    Attributes:
        folder: A folder of its own.
    """

    folder: Path

    def path(self, identity: str) -> Path:
        """Return the file of the locations of one query."""
        return self.folder / f"{xxhash.xxh3_128_hexdigest(identity.encode())}{_SUFFIX}"

    def forget_old(self) -> None:
        """Remove all but the newest few; processes that have them mapped are not disturbed.

        What a process left half written that was killed goes with them.
        """
        dated = []
        for path in filter(Path.is_file, self.folder.iterdir()):
            with suppress(FileNotFoundError):  # another process removed it
                dated.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(dated)[:-_KEPT]:
            path.unlink(missing_ok=True)


def locate_rows(
    store: TensorStore,
    query: RowQuery,
    files: LocationFiles | None = None,
    before: RowLocations | None = None,
) -> RowLocations:
    """Return where the rows of samples lie: as it was kept, or looked up now and kept.

    Where rows are missing, the store is read again once: others may have written them.

    Args:
        store: Where to look.
        query: The samples.
        files: Where it is kept, once no row is missing; None keeps it in memory alone.
        before: What was found earlier; no key is made again of what it tells.

    Raises:
        StorageError: The storage of the store cannot be listed or read.
    """
    locations = _placed(store.snapshot(), query, files, before)
    if locations.lacking.size:
        store.refresh()
        locations = _placed(store.snapshot(), query, files, locations)
    return locations


def locate_rows_lazily(
    store: TensorStore, query: RowQuery, files: LocationFiles | None = None
) -> RowLocations:
    """Return where the rows of samples lie: as it was kept, or each looked up when asked for.

    Args:
        store: Where to look.
        query: The samples.
        files: Where it may be kept; nothing is written there.

    Raises:
        StorageError: The storage of the store cannot be listed or read.
    """
    snapshot = store.snapshot()
    columns = _saved(_path(files, query, snapshot), query.count)
    if columns is not None:
        return RowLocations(snapshot, *columns, query.identity)
    # Of a store without a shard all is known.
    number = _UNKNOWN if snapshot.index.shards else _ABSENT
    columns = _empty(query.count, number)
    return LazyRowLocations(snapshot, *columns, query.identity, keys_of=query.keys_of)


def _placed(
    snapshot: Snapshot, query: RowQuery, files: LocationFiles | None, before: RowLocations | None
) -> RowLocations:
    if before is not None and before.identity != query.identity:
        before = None
    path = _path(files, query, snapshot)
    if before is not None and before.snapshot.identity == snapshot.identity:
        if path is None or before.lacking.size or path.exists():
            return before
        locations = before
    elif (columns := _saved(path, query.count)) is not None:
        return _looked_at(snapshot, query, columns)
    elif before is not None and (columns := _renumbered(before, snapshot)) is not None:
        locations = _completed(snapshot, query, columns, before)
    else:
        locations = _looked_up(snapshot, query)
    if files is not None and path is not None and not locations.lacking.size:
        # On a disk that is full or read-only, memory does as well.
        with suppress(OSError, StorageError, CacheError):
            _write(path, (locations.shard, locations.row, locations.checksum))
            files.forget_old()
            return RowLocations(snapshot, *_opened(path, query.count), query.identity)
    return locations


def _path(files: LocationFiles | None, query: RowQuery, snapshot: Snapshot) -> Path | None:
    if files is None:
        return None
    return files.path(f"{_FORMAT}/{query.count}/{query.identity}/{snapshot.identity}")


def _saved(path: Path | None, count: int) -> LocationColumns | None:
    if path is not None:
        # Whatever is wrong with it, it can be made again.
        with suppress(CacheError, StorageError):
            return _opened(path, count)
    return None


def _empty(count: int, number: int) -> LocationColumns:
    """Return columns that have no row, with a number in the place of all shards."""
    return np.full(count, number, np.int32), np.zeros(count, np.uint32), np.zeros(count, np.uint64)


def _looked_at(snapshot: Snapshot, query: RowQuery, columns: LocationColumns) -> RowLocations:
    """Return what was kept, with the keys of what it lacks: few, or none."""
    lacking = np.flatnonzero(columns[0][query.wanted] < 0)
    keys = _joined(
        query.keys_of(np.asarray(query.wanted[lacking[start : start + PIECE]], np.int64))
        for start in range(0, len(lacking), PIECE)
    )
    return RowLocations(snapshot, *columns, query.identity, lacking, keys)


def _looked_up(snapshot: Snapshot, query: RowQuery) -> RowLocations:
    """Look everything up, its keys made now."""
    columns, lacking, missing = _empty(query.count, _ABSENT), [], []
    for start in range(0, len(query.wanted), PIECE):
        rows = np.asarray(query.wanted[start : start + PIECE], np.int64)
        keys = query.keys_of(rows)
        left = _put(columns, rows, snapshot.index.find(keys))
        lacking.append(start + left)
        missing.append(keys[left])
    places = np.concatenate([np.zeros(0, np.int64), *lacking])
    return RowLocations(snapshot, *columns, query.identity, places, _joined(missing))


def _completed(
    snapshot: Snapshot, query: RowQuery, columns: LocationColumns, before: RowLocations
) -> RowLocations:
    """Look up what was lacking before, by the keys it has."""
    if not before.lacking.size:
        return RowLocations(snapshot, *columns, query.identity)
    shard, row, checksum = columns
    columns = shard, row.copy(), checksum.copy()  # they may be mapped
    rows = np.asarray(query.wanted[before.lacking], np.int64)
    left = _put(columns, rows, snapshot.index.find(before.keys))
    return RowLocations(snapshot, *columns, query.identity, before.lacking[left], before.keys[left])


def _put(columns: LocationColumns, rows: NDArray[np.int64], found: RowRefs) -> NDArray[np.int64]:
    """Write down where some rows were found; return which were not."""
    shard, row, checksum = columns
    shard[rows], row[rows], checksum[rows] = found.shard, found.row, found.checksum
    return np.flatnonzero(found.shard < 0)


def _renumbered(before: RowLocations, snapshot: Snapshot) -> LocationColumns | None:
    """Return places as a later snapshot numbers its shards; None if rows may have gone since."""
    old = before.snapshot
    dropped = (o.shard is None and o.segment not in old.segments for o in snapshot.origins)
    if not old.segments <= snapshot.segments or any(dropped):
        return None
    numbers = {shard.name: number for number, shard in enumerate(snapshot.index.shards)}
    # The last one is for rows that are nowhere.
    now = [numbers.get(shard.name, _ABSENT) for shard in old.index.shards] + [_ABSENT]
    shard = np.array(now, np.int32)[before.shard]
    if ((shard < 0) & (before.shard >= 0)).any():
        return None
    return shard, before.row, before.checksum


def _joined(parts: Iterable[Keys]) -> Keys:
    return np.concatenate([np.zeros(0, KEY_DTYPE), *parts])


def _write(path: Path, columns: LocationColumns) -> None:
    """Write it whole or not at all."""
    shard, row, checksum = columns
    shape = shard.shape
    data = [np.ascontiguousarray(column).data for column in (checksum, row, shard)]
    head = header(
        [("checksum", "U64", shape), ("row", "U32", shape), ("shard", "I32", shape)],
        {"digest": _digest(data)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(head)
        for column in data:
            file.write(column)


def _digest(columns: Iterable[memoryview]) -> str:
    return f"{digest(columns):016x}"


def _opened(path: Path, count: int) -> LocationColumns:
    metadata, tensors = parse(file_bytes(path), str(path))
    if {name: (t.code, t.shape) for name, t in tensors.items()} != {
        "checksum": ("U64", (count,)), "row": ("U32", (count,)), "shard": ("I32", (count,))
    }:  # fmt: skip
        raise DamagedError(f"{path} does not hold {count} places")
    checksum, row, shard = (tensors[name].data for name in ("checksum", "row", "shard"))
    # Wrong places would pass for damage of the rows that lie there.
    if metadata.get("digest") != _digest([checksum.data, row.data, shard.data]):
        raise DamagedError(f"{path} does not match its checksum")
    return shard.view(np.int32), row.view(np.uint32), checksum.view(np.uint64)
