"""Which rows are encoded already, and what are they?"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.container import Bytes, DamagedError
from factory.cache.files import Files
from factory.cache.index import (
    SEGMENT_NAME,
    SHARD_NAME,
    Index,
    Segment,
    ShardRecord,
    read_segment,
)
from factory.cache.recipe import Keys, as_keys, canonical
from factory.cache.shard import Shard, batch_tensors, matrices_of
from factory.cache.writer import Writer, publish_segment
from factory.errors import CacheError, ObjectNotFoundError
from factory.records import UNKNOWN_SIZE, ObjectInfo
from factory.storage.base import Storage
from factory.storage.rules import safe_prefix
from factory.telemetry import progress

__all__ = ["TensorStore", "Writer"]

logger = logging.getLogger(__name__)

_MIB = 2**20
_PRECOMPUTE = (
    "they are encoded by the precompute stage: run train.py with the same settings, or call "
    "prepare_data() of the data module"
)


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
    """

    storage: Storage
    prefix: str
    local_dir: str | None = None
    shard_mb: float = 256.0

    def __post_init__(self) -> None:
        """Refuse a shard without room; nothing is opened."""
        if not self.shard_mb > 0:
            raise ValueError(f"cache.shard_mb must be above 0, got {self.shard_mb!r}")
        folder = safe_prefix(self.prefix)
        if not folder:
            raise ValueError("cache.prefix must name a folder, such as cache")
        self._shard_files = Files(self.storage, f"{folder}/shards", self.local_dir)
        self._index_files = Files(self.storage, f"{folder}/index", self.local_dir)
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._shards: dict[str, Shard] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._index: Index | None = None
        self._problems: list[str] = []
        self._newest = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: maps and locks stay in their process."""
        names = ("storage", "prefix", "local_dir", "shard_mb")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew with the settings."""
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def problems(self) -> list[str]:
        """What `open` or `refresh` had to leave out, a sentence each; its rows are missing."""
        return list(self._problems)

    def open(self) -> None:
        """Read the index, if that was not done yet.

        Raises:
            CacheError: It was written in a newer format.
            StorageError: The storage cannot be listed or read.
        """
        self._snapshot()

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
            self._segments, self._shards, self._index = {}, {}, None

    def contains(self, keys: Keys | NDArray[Any] | Sequence[bytes]) -> NDArray[np.bool_]:
        """Tell for each of n keys whether it has a row, bool [n].

        Raises:
            CacheError: A key is not 16 bytes long, or the index has a newer format.
        """
        found: NDArray[np.bool_] = self._snapshot().find(as_keys(keys)).shard >= 0
        return found

    def gather(
        self,
        keys: Keys | NDArray[Any] | Sequence[bytes],
        out: dict[str, torch.Tensor] | None = None,
        *,
        verify: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Return the rows of n keys in the order asked for, each field a tensor [n, ...].

        Args:
            keys: n keys of rows of one shape; a key may come more than once.
            out: Tensors to fill, [n or more, ...], contiguous and on the CPU (pinned if you
                like); fields that are not in it are made and put in. With more room than n
                rows, views of the first n are returned.
            verify: Compare each row with its checksum when it is first read.

        Raises:
            CacheError: Keys have no row, rows are damaged or of two shapes, or a tensor of
                `out` does not fit.
            StorageError: A remote shard cannot be fetched.
        """
        wanted = as_keys(keys)
        if not wanted.size:
            return {}
        index = self._snapshot()
        found = index.find(wanted)
        _require_all(found.shard, wanted)
        groups = _by_shard(found.shard)
        layout = index.layout(groups)
        batch = batch_tensors(layout, len(wanted), out)
        matrices = matrices_of(layout, batch)
        rows, checksums = found.row.tolist(), found.checksum.tolist()
        for number, at in groups.items():
            record = index.shards[number]
            self._copy(
                record,
                [rows[n] for n in at],
                at if len(groups) > 1 else None,
                matrices,
                [checksums[n] for n in at] if verify else None,
            )
        return batch

    def writer(self, recipe: Mapping[str, object]) -> Writer:
        """Return a writer of rows whose common recipe this is.

        Published rows are seen by this store after `refresh`.

        Raises:
            CacheError: The recipe holds something that cannot be written as JSON.
        """
        return Writer(
            self._shard_files,
            self._index_files,
            recipe=canonical(recipe),
            shard_bytes=int(self.shard_mb * _MIB),
            next_stamp=self._next_stamp,
        )

    def drop(self, keys: Keys | NDArray[Any] | Sequence[bytes]) -> None:
        """Forget the rows of these keys; rows written afterwards count again.

        Raises:
            StorageError: The storage cannot be written to.
        """
        self.refresh()  # so that this comes after every row that is there
        names = np.unique(as_keys(keys))
        zeros = np.zeros(len(names), np.uint64)
        publish_segment(self._index_files, self._next_stamp(), None, names, zeros)
        self.refresh()

    def drop_shard(self, name: str) -> None:
        """Remove a shard, whatever its state, with the segments that list no other.

        Raises:
            CacheError: That is not a shard's name.
            StorageError: The storage cannot be written to.
        """
        if not SHARD_NAME.fullmatch(name):
            raise CacheError(f"{name!r} is not the name of a shard; verify() shows those at fault")
        self.refresh()
        for segment_name, segment in self._segments.items():
            if [record.name for record in segment.shards] == [name]:
                self._index_files.delete(segment_name)
        self._shard_files.delete(name)
        self.refresh()

    def recorded(self, label: str) -> list[tuple[bytes, dict[str, Any]]]:
        """Return (key, common recipe) of every row that was stored under a label.

        Dropped rows and rows of old recipes are among them: they tell what a key that is
        missing now differs in.
        """
        self._snapshot()
        text = label.encode(errors="surrogateescape")
        return [pair for segment in self._segments.values() for pair in _labelled(segment, text)]

    def verify(self) -> list[str]:
        """Compare every file and row with its checksum; return what is wrong, a sentence each.

        Raises:
            CacheError: A file was written in a newer format.
            StorageError: The storage cannot be listed or read.
        """
        self.refresh()
        problems = self.problems
        listed = self._shard_files.listed()
        records = {r.name: r for s in self._segments.values() for r in s.shards}
        for name in sorted(set(listed) - set(records)):
            problems.append(
                f"{self._shard_files.where(name)} is in no index: a run was killed while it "
                "wrote it, or writes it now; it is not read, and may be deleted if no run is on"
            )
        problems.extend(self._unsound_segments())
        with progress("verify cache", len(records), "shards") as advance:
            for segment in self._segments.values():
                for number, at in _by_shard(segment.shard).items():
                    if number == len(segment.shards):
                        continue  # dropped keys
                    record = segment.shards[number]
                    if record.name in listed:
                        problems.extend(self._unsound_rows(record, segment, at))
                    advance(1)
        return problems

    def _snapshot(self) -> Index:
        index = self._index
        if index is None:
            with self._lock:
                index = self._index or self._refresh()
        return index

    def _refresh(self) -> Index:
        # Index first: a shard is there before its segment, so none is missed in between.
        listed = self._index_files.listed()
        sizes = {name: info.size for name, info in self._shard_files.listed().items()}
        problems = [
            f"{self._index_files.where(name)} is not of the cache; not read"
            for name in listed
            if not SEGMENT_NAME.fullmatch(name)
        ]
        kept = {name: old for name, old in self._segments.items() if name in listed}
        new = [i for n, i in listed.items() if n not in kept and SEGMENT_NAME.fullmatch(n)]
        kept.update(self._read_segments(new, problems))
        alive = set()
        for record in (record for segment in kept.values() for record in segment.shards):
            if sizes.get(record.name) in (record.size, UNKNOWN_SIZE):
                alive.add(record.name)
            else:
                problems.append(self._lost(record, sizes.get(record.name)))
        self._segments, self._problems = kept, problems
        self._newest = max([self._newest, *(segment.stamp for segment in kept.values())])
        self._shards = {name: shard for name, shard in self._shards.items() if name in alive}
        self._index = Index(list(kept.values()), alive)
        if problems:
            logger.warning(
                "cache %s: %d problems, such as: %s", self.prefix, len(problems), problems[0]
            )
        return self._index

    def _read_segments(
        self, infos: list[ObjectInfo], problems: list[str]
    ) -> Iterator[tuple[str, Segment]]:
        for info, data in zip(infos, self._index_files.all_data(infos), strict=True):
            name = info.key.rpartition("/")[2]
            try:
                if isinstance(data, Exception):
                    raise data
                yield name, read_segment(data, name)
            except ObjectNotFoundError:
                continue  # another process removed it since it was listed
            except DamagedError as error:
                problems.append(f"{error}; its rows count as missing; delete it to be rid of this")

    def _lost(self, record: ShardRecord, size: int | None) -> str:
        where = self._shard_files.where(record.name)
        state = "is gone" if size is None else f"is {size} bytes, not the {record.size} published"
        return f"{where} {state}; its {record.rows} rows count as missing"

    def _shard(self, record: ShardRecord) -> Shard:
        shard = self._shards.get(record.name)
        if shard is None:
            # One thread fetches and maps; the others of this shard wait, those of others do not.
            with self._opening.setdefault(record.name, threading.Lock()):
                shard = self._shards.get(record.name) or self._opened(record)
                self._shards[record.name] = shard
        return shard

    def _opened(self, record: ShardRecord) -> Shard:
        data: Bytes = self._shard_files.data(record.name, record.size)
        where = self._shard_files.where(record.name)
        return Shard(data, where, record.layout, record.rows)

    def _copy(
        self,
        record: ShardRecord,
        rows: list[int],
        at: list[int] | None,
        out: list[Bytes],
        checksums: list[int] | None,
    ) -> None:
        """Copy rows of one shard to their places; compare them with checksums if given."""
        try:
            shard = self._shard(record)
            shard.take(rows, at, out)
        except (DamagedError, ObjectNotFoundError) as error:
            raise CacheError(f"{error}; {self._mend(record)}") from error
        if checksums is not None and (bad := shard.unsound(rows, checksums)):
            raise CacheError(
                f"row {bad[0]} of {shard.source} does not match its checksum; {self._mend(record)}"
            )

    def _mend(self, record: ShardRecord) -> str:
        copy = self._shard_files.copy_of(record.name)
        first = f"delete its local copy {copy} to fetch it again; failing that, " if copy else ""
        return (
            f"{first}delete {self._shard_files.where(record.name)} and start again: its "
            f"{record.rows} rows are then encoded anew"
        )

    def _next_stamp(self) -> int:
        """Return a number above all seen: the time in microseconds, if no clock runs ahead."""
        with self._lock:
            self._newest = max(time.time_ns() // 1000, self._newest + 1)
            return self._newest

    def _unsound_segments(self) -> list[str]:
        problems = []
        for name in self._segments:
            try:
                read_segment(self._index_files.data(name), name, thorough=True)
            except (DamagedError, ObjectNotFoundError) as error:
                problems.append(str(error))
        return problems

    def _unsound_rows(self, record: ShardRecord, segment: Segment, at: list[int]) -> list[str]:
        try:
            rows, checksums = segment.row[at].tolist(), segment.checksum[at].tolist()
            bad = self._opened(record).unsound(rows, checksums)
        except (DamagedError, ObjectNotFoundError) as error:
            return [f"{error}; {self._mend(record)}"]
        if not bad:
            return []
        where = self._shard_files.where(record.name)
        return [f"{len(bad)} rows of {where} are damaged, first row {bad[0]}; {self._mend(record)}"]


def _require_all(shards: NDArray[np.int64], keys: Keys) -> None:
    if shards.min() < 0:
        missing = np.flatnonzero(shards < 0)
        raise CacheError(
            f"{missing.size} of {len(keys)} rows asked for are not in the cache (first key "
            f"{keys[missing[0]].tobytes().hex()}); {_PRECOMPUTE}"
        )


def _by_shard(shards: NDArray[np.integer[Any]]) -> dict[int, list[int]]:
    """Return, for each shard's number, which entries lie in it."""
    groups: dict[int, list[int]] = {}
    for entry, number in enumerate(shards.tolist()):
        groups.setdefault(number, []).append(entry)
    return groups


def _labelled(segment: Segment, text: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield (key, recipe) of the rows with a label."""
    lengths = np.diff(segment.label_ends, prepend=np.uint64(0))
    for n in np.flatnonzero(lengths == len(text)).tolist():
        end = int(segment.label_ends[n])
        if segment.labels[end - len(text) : end].tobytes() == text:
            recipe = segment.shards[int(segment.shard[n])].recipe
            yield segment.keys[n].tobytes(), json.loads(recipe)
