"""Tensor store: encoded rows in a folder of a storage, found by their recipe keys."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import psutil
import torch
import xxhash
from numpy.typing import NDArray

from factory.cache.format.compression import check_compression, plain_name
from factory.cache.format.recipe import Keys, as_keys, canonical
from factory.cache.format.safetensors_file import Bytes, DamagedError
from factory.cache.format.segment import IndexSegment, ShardRecord
from factory.cache.format.shard import TensorShard, cut_among
from factory.cache.gather.gather_rows import Allocator, BadRowsError, gather_rows, new_tensor
from factory.cache.index.local_runs import LocalRuns
from factory.cache.index.recipe_index import RowRefs
from factory.cache.index.snapshot import Snapshot, newest_stamp, segment_in, take_snapshot
from factory.cache.tiers.shard_files import PublishedFiles
from factory.cache.tiers.shard_pool import ShardPool
from factory.cache.tiers.tier import Tier
from factory.cache.writer import ShardWriter
from factory.errors import CacheError, ObjectNotFoundError, StorageError
from factory.metrics.stages import progress
from factory.storage.base import Storage
from factory.storage.keys import safe_prefix

_MIB, _GIB = 2**20, 2**30
# Shards fetched side by side. Each asks for several parts at once, so this few keep a network
# busy; what is under way lies in memory, 32 MiB for each where a storage cannot hand on pieces.
_SIDE_BY_SIDE = 8
# Of a machine's memory, what files may take up so that they are likely to stay in it: the rest is
# for the trainer. To ask again for rows that are there takes up to 0.2 ms a batch.
_ROOMY = 1 / 2
# Of no plan's fingerprint.
_PRELOADING = 1
T = TypeVar("T")
Opened: TypeAlias = dict[int, TensorShard]  # shards by their number in a snapshot
_PRECOMPUTE = (
    "they are encoded by the precompute stage: run train.py with the same settings, or call "
    "prepare_data() of the data module"
)


class UnusableRowsError(CacheError):
    """Rows that are missing, damaged or gone, among rows asked for.

    Attributes:
        places: Which of the keys asked for they belong to, int64, ascending. Others may be
            unusable, too: what was found first is told.
    """

    def __init__(self, message: str, places: NDArray[np.int64]) -> None:
        """Keep the message and the places."""
        super().__init__(message)
        self.places = places


@dataclass
class TensorStore:
    """Encoded rows in a folder of a storage, found by recipe key.

    A store reads a snapshot: what other writers publish is seen after `refresh`. It may be
    used from several threads; a pickled or copied store starts with nothing opened.

    Attributes:
        storage: Where shards and index are published.
        prefix: Folder of the cache in its storage.
        local_dir: Local folder for copies of a remote storage's files; None holds in memory
            those that were used.
        shard_mb: Size a shard is closed at, MiB.
        disk_gb: What copies in `local_dir` may take up, GiB, with those of all stores that
            have it; None for no limit, 0 for no copies there.
        ram_dir: Folder of a memory file system for copies, nearer than those.
        ram_gb: What copies there may take up, GiB; 0 for none.
        compression: How new shards are kept in the storage: "none", or "zstd", of which
            plain copies are made in `local_dir` as they are used. Both kinds are read.
        shard_rows: Rows a shard is closed at, if it is not full before; None for no such limit.
    """

    storage: Storage
    prefix: str
    local_dir: str | None = None
    shard_mb: float = 256.0
    disk_gb: float | None = None
    ram_dir: str | None = None
    ram_gb: float = 0.0
    compression: str = "none"
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        """Refuse a shard without room; nothing is opened."""
        if not self.shard_mb > 0:
            raise ValueError(f"cache.shard_mb must be above 0, got {self.shard_mb!r}")
        if not self.folder:
            raise ValueError("cache.prefix must name a folder, such as cache")
        check_compression(self.compression)
        mirror = None if self.local_dir is None else f"{self.local_dir}/index"
        shards = f"{self.folder}/shards"
        self.shard_files = PublishedFiles(self.storage, shards, tiers=self._tiers())
        self.index_files = PublishedFiles(self.storage, f"{self.folder}/index", mirror)
        self._lock = threading.Lock()
        self._open = ShardPool(self.shard_files)
        self._snapshot: Snapshot | None = None
        self._tables: LocalRuns | None = None
        self._newest = 0
        self._crowded = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: maps and locks stay in their process."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew with the settings."""
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def folder(self) -> str:
        """Folder of the cache in its storage, without a slash at its ends."""
        return safe_prefix(self.prefix)

    @property
    def shard_bytes(self) -> int:
        """Size a shard is closed at, bytes."""
        return int(self.shard_mb * _MIB)

    @property
    def problems(self) -> list[str]:
        """What `open` or `refresh` had to leave out, a sentence each; its rows are missing."""
        return [] if self._snapshot is None else list(self._snapshot.problems)

    def open(self) -> None:
        """Read the index, if that was not done yet.

        Raises:
            CacheError: It was written in a newer format.
            StorageError: The storage cannot be listed or read.
        """
        self.snapshot()

    def refresh(self) -> None:
        """Read what was published since; rows asked for from now on see it.

        Raises:
            CacheError: A segment was written in a newer format.
            StorageError: The storage cannot be listed or read.
        """
        with self._lock:
            self._refresh()

    def close(self) -> None:
        """Let go of maps and index; the store may be used again."""
        with self._lock:
            self._snapshot, self._tables = None, None
            self._open.close()

    def contains(self, keys: Keys | NDArray[Any] | Sequence[bytes]) -> NDArray[np.bool_]:
        """Tell for each of n keys whether it has a row, bool [n].

        Raises:
            CacheError: A key is not 16 bytes long, or the index has a newer format.
        """
        found: NDArray[np.bool_] = self.snapshot().index.find(as_keys(keys)).shard >= 0
        return found

    def gather(
        self,
        keys: Keys | NDArray[Any] | Sequence[bytes],
        out: dict[str, torch.Tensor] | None = None,
        *,
        verify: bool = True,
        pad: bool = False,
        allocate: Allocator = new_tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the rows of n keys in the order asked for, each field a tensor [n, ...].

        Args:
            keys: n keys of rows of one bucket; a key may come more than once.
            out: Tensors to fill, [n or more, ...], contiguous and on the CPU (pinned if you
                like); fields that are not in it are made and put in. With more room than n
                rows, views of the first n are returned.
            verify: Compare each row with its checksum when it is first read.
            pad: Whether rows may differ in the length of their fields' first axis, such as
                captions of more or fewer tokens; shorter ones are filled up with zeros.
            allocate: Makes the tensors that are not given, of a shape and dtype, with anything in
                them; such as `BufferPool.tensor`, which uses memory again.

        Raises:
            UnusableRowsError: Keys have no row, or rows are damaged or gone.
            CacheError: Rows differ in shape, or a tensor of `out` does not fit.
            StorageError: A remote shard cannot be fetched.
        """
        wanted = as_keys(keys)
        if not wanted.size:
            return {}
        how: dict[str, Any] = {"out": out, "verify": verify, "pad": pad, "allocate": allocate}
        try:
            return self._gather(wanted, how)
        except UnusableRowsError as error:
            if not isinstance(error.__cause__, ObjectNotFoundError):
                raise
            # Shards that were compacted are collected in time; their rows lie in others now.
            with self._lock:
                # Taken here, for another thread may have read what it has published just now.
                known = self._snapshot
                if (self._refresh().index.find(wanted).shard < 0).any():
                    self._snapshot = known  # gone all the same: who asks again is told so, too
                    raise
            return self._gather(wanted, how)

    def _gather(self, wanted: Keys, how: dict[str, Any]) -> dict[str, torch.Tensor]:
        refs = self.snapshot().index.find(wanted)
        if (missing := np.flatnonzero(refs.shard < 0)).size:
            first = f" (first key {wanted[missing[0]].tobytes().hex()})"
            raise _missing(missing, len(wanted), first)
        return self.read(refs, **how)

    def read(
        self,
        refs: RowRefs,
        *,
        out: dict[str, torch.Tensor] | None = None,
        verify: bool = True,
        pad: bool = False,
        allocate: Allocator = new_tensor,
    ) -> dict[str, torch.Tensor]:
        """Return rows whose places are known, as `gather` does.

        Args:
            refs: Where n rows, at least one, lie.
            out: Tensors to fill; see `gather`.
            verify: Compare each row with its checksum when it is first read.
            pad: Whether rows may differ in the length of their fields' first axis, such as
                captions of more or fewer tokens; shorter ones are filled up with zeros.
            allocate: Makes the tensors that are not given; see `gather`.

        Raises:
            UnusableRowsError: A row is nowhere, damaged or gone.
            CacheError: Rows differ in shape, or a tensor of `out` does not fit.
            StorageError: A remote shard cannot be fetched.
        """
        numbers = refs.shard.tolist()
        distinct = set(numbers)
        if min(distinct) < 0:
            missing = np.flatnonzero(refs.shard < 0)
            raise _missing(missing, len(numbers))
        checksums = refs.checksum if verify else None
        fetched_again: set[str] = set()
        while True:
            shards = self._uncut(distinct, refs)
            rows = [shards[number] for number in numbers], refs.row.tolist()
            try:
                return gather_rows(*rows, checksums, out, allocate, pad=pad)
            except BadRowsError as error:
                record = refs.shards[numbers[error.places[0]]]
                # A copy that was damaged here is fetched once more.
                if record.name in fetched_again or not self._open.discard(record):
                    places = np.array(error.places)
                    raise UnusableRowsError(f"{error}; {self.mend(record)}", places) from error
                fetched_again.add(record.name)
                del shards, rows

    def published_shard(self, record: ShardRecord) -> TensorShard | None:
        """Return a shard that is read where it was published; None where it cannot be."""
        shard = self._open.whole(record.name)
        # To look at a row of a packed one would unpack them all.
        packed = plain_name(record.name) != record.name
        if shard is None and not packed and not self.shard_files.copied:
            with suppress(CacheError, StorageError):  # whoever reads its rows meets it again
                return self._open.open(record, np.empty(0, np.int64))
        return shard

    @property
    def crowded(self) -> bool:
        """Whether not all rows stay in this machine's memory once they were read."""
        return self._crowded

    def prefetch(self, refs: RowRefs, plan: int, step: int) -> bool:
        """Fetch rows ahead of their use; False if no tier has room for them all.

        Args:
            refs: Where n rows lie; those that are nowhere are left out.
            plan: Which plan will use them.
            step: The step that will.

        Raises:
            ObjectNotFoundError, DamagedError, StorageError: What a shard has met.
        """

        def one(number: int) -> bool:
            rows = refs.row[refs.shard == number]
            return self._open.prefetch(refs.shards[number], rows, plan, step)

        return all(_side_by_side(one, np.unique(refs.shard[refs.shard >= 0]).tolist()))

    @property
    def is_local(self) -> bool:
        """Whether nothing is left to be fetched: all rows are on this machine."""
        return self._open.complete([each.name for each in self.snapshot().index.shards])

    def preload(self) -> bool:
        """Copy all rows to the nearest tier; False if it has no room for them all.

        Raises:
            StorageError: The storage cannot be read.
            DamagedError: A shard is not what its index says.
        """
        shards = self.snapshot().index.shards
        # As if a plan needed everything at once: then nothing makes room for anything else.
        self.shard_files.expect(_PRELOADING, now=0)

        def one(number: int) -> bool:
            record = shards[number]
            return self._open.prefetch(record, np.arange(record.rows), _PRELOADING, step=0)

        with progress("copy to memory", len(shards), "shards") as advance:
            for start in range(0, len(shards), _SIDE_BY_SIDE):
                some = range(start, min(start + _SIDE_BY_SIDE, len(shards)))
                if not all(_side_by_side(one, list(some))):
                    return False
                advance(len(some))
        return True

    def writer(self, recipe: Mapping[str, object]) -> ShardWriter:
        """Return a writer of rows whose common recipe this is.

        Published rows are seen by this store after `refresh`.

        Raises:
            CacheError: The recipe holds something that cannot be written as JSON.
        """
        return ShardWriter(
            self.shard_files,
            self.index_files,
            recipe=canonical(recipe),
            shard_bytes=self.shard_bytes,
            next_stamp=self.next_stamp,
            compress=self.compression == "zstd",
            shard_rows=self.shard_rows,
        )

    def snapshot(self) -> Snapshot:
        """Return the index as last read; reads it the first time.

        Raises:
            CacheError: It was written in a newer format.
            StorageError: The storage cannot be listed or read.
        """
        snapshot = self._snapshot
        if snapshot is None:
            with self._lock:
                snapshot = self._snapshot or self._refresh()
        return snapshot

    def segment(self, name: str) -> IndexSegment:
        """Return a piece of the index; see `segment_in`."""
        return segment_in(self.index_files, name)

    def opened(self, record: ShardRecord) -> TensorShard:
        """Return a shard opened anew, whatever this store has opened already.

        Raises:
            ObjectNotFoundError: Its file is gone.
            DamagedError: It is not what its index says.
            StorageError: It cannot be fetched or read.
        """
        data: Bytes = self.shard_files.data(record.name, record.size, record.plain_size)
        return TensorShard(data, self.shard_files.where(record.name), record.layout, record.rows)

    def mend(self, record: ShardRecord) -> str:
        """Say what to do about a shard that is damaged or gone."""
        return (
            f"delete {self.shard_files.where(record.name)} and start again: its "
            f"{record.rows} rows are then encoded anew; or set cache.damaged=rebuild: then only "
            "those that are damaged are, as batches need them"
        )

    def next_stamp(self) -> int:
        """Return a number above all published: the time in microseconds, if no clock runs ahead.

        Raises:
            StorageError: The storage cannot be listed, which is done once if it was not yet.
        """
        with self._lock:
            if not self._newest:
                # A clock that runs behind must not put new rows below old ones.
                self._newest = newest_stamp(self.index_files)
            self._newest = max(time.time_ns() // 1000, self._newest + 1)
            return self._newest

    def _refresh(self) -> Snapshot:
        if self._tables is None and (folder := self._tables_folder()) is not None:
            self._tables = LocalRuns(str(folder))
        before = self._snapshot
        self._snapshot = taken = take_snapshot(
            self.shard_files, self.index_files, self._tables, before
        )
        self._newest = max(self._newest, taken.newest)
        held = sum(record.plain_size for record in taken.index.shards)
        self._crowded = held > _ROOMY * psutil.virtual_memory().total
        self._open.keep_only({record.name for record in taken.index.shards})
        return taken

    def _tiers(self) -> list[Tier]:
        """Return where shards are copied to, the nearest first."""
        tiers = []
        if self.ram_dir is not None and self.ram_gb > 0:
            memory = int(self.ram_gb * _GIB)
            tiers.append(Tier(Path(self.ram_dir), memory, "cache.ram_gb", volatile=True))
        if self.local_dir is not None and self.disk_gb != 0:
            limit = None if self.disk_gb is None else int(self.disk_gb * _GIB)
            tiers.append(Tier(Path(self.local_dir) / "shards", limit, "cache.disk_gb"))
        return tiers

    def _tables_folder(self) -> Path | None:
        """Return where this machine keeps the merged index; None if it has no folder for it."""
        if self.local_dir is None:
            return self.storage.local_path(f"{self.folder}/merged")
        # A folder of its own for each cache: two storages may hold stores of one name.
        name = xxhash.xxh3_64_hexdigest(f"{self.storage.identity}/{self.folder}".encode())
        return Path(self.local_dir) / "merged" / name

    def _uncut(self, numbers: set[int], refs: RowRefs) -> Opened:
        """Return shards as `_shards` does; those whose files were cut are opened anew."""
        shards = self._shards(numbers, refs)
        cut = cut_among(shards.values())
        again = {number for number in numbers if cut and shards[number] in cut}
        for number in again:
            self._open.discard(refs.shards[number])
        return {**shards, **self._shards(again, refs)} if again else shards

    def _shards(self, numbers: set[int], refs: RowRefs) -> Opened:
        """Return opened shards with the rows asked for; what is missing comes side by side."""
        shards, late = {}, []
        for number in numbers:
            record = refs.shards[number]
            shard = self._open.whole(record.name)  # the usual case, and in the way of every batch
            if shard is None:
                shard = self._open.ready(record, refs.row[refs.shard == number])
            if shard is None:
                late.append(number)
            else:
                shards[number] = shard
        if late:
            opened = _side_by_side(lambda number: self._shard(number, refs), late)
            shards.update(zip(late, opened, strict=True))
        return shards

    def _shard(self, number: int, refs: RowRefs) -> TensorShard:
        """Open a shard; if it cannot be used, say which rows asked for lie in it."""
        record = refs.shards[number]
        places = np.flatnonzero(refs.shard == number)
        try:
            return self._open.open(record, refs.row[places])
        except (DamagedError, ObjectNotFoundError) as error:
            raise UnusableRowsError(f"{error}; {self.mend(record)}", places) from error


def _side_by_side(work: Callable[[int], T], numbers: list[int]) -> list[T]:
    """Return what is made of each number, in their order, several at a time."""
    if len(numbers) <= 1:
        return [work(number) for number in numbers]
    with ThreadPoolExecutor(min(_SIDE_BY_SIDE, len(numbers))) as pool:
        return list(pool.map(work, numbers))


def _missing(places: NDArray[np.int64], count: int, which: str = "") -> UnusableRowsError:
    return UnusableRowsError(
        f"{places.size} of {count} rows asked for are not in the cache{which}; {_PRECOMPUTE}",
        places,
    )
