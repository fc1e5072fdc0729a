"""Transfer of encoded rows from one cache to another.

Shards and pieces of the index lie under names that never come again, so that names and sizes
tell what is missing at the other end: what was copied before a kill is not sent again. Each
shard is compared with its checksums before it is written there, so that damage does not
spread; with `verify` what is there already is compared, too, and damaged shards are replaced.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.compression import SUFFIX, unpacked
from factory.cache.format.safetensors_file import Bytes, DamagedError
from factory.cache.format.segment import IndexSegment, ShardRecord, read_segment
from factory.cache.format.shard import TensorShard
from factory.cache.maintenance.lease import Lease, alone
from factory.cache.maintenance.live_rows import counting
from factory.cache.maintenance.verify import by_record
from factory.cache.store import TensorStore
from factory.errors import ContentMismatchError, ObjectNotFoundError, StorageError
from factory.metrics.stages import progress
from factory.records import UNKNOWN_SIZE

# Shards under way at once: each lies in memory whole, 256 MiB by default.
_SIDE_BY_SIDE = 2
# Pieces of the index, which are small, read at once.
_CONNECTIONS = 16
# How long a claim to the target holds after a kill on another machine. Longer than a shard of
# 256 MiB takes at 1 MiB/s, two at a time.
_CLAIM_S = 900.0
# Progress is told in MiB, or in KiB where that would be few steps.
_KIB, _MIB = 2**10, 2**20
_FEW = 10

# What says that a shard or a piece of the index is not what was published.
_DAMAGE = (DamagedError, ObjectNotFoundError, ContentMismatchError)


@dataclass
class Transfer:
    """What is copied, or was.

    Attributes:
        pieces: Pieces of the index, each with the shards that are not there yet, or damaged.
        damaged: Names of shards and pieces that are there and damaged.
        known: Shards that are there already, and stay.
        verified: Whether those were compared with their checksums.
        shards: Shards copied so far.
        replaced: How many of them took the place of damaged ones.
        nbytes: Their bytes.
        problems: What was left out, a sentence each.
    """

    pieces: list[tuple[str, list[ShardRecord]]] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    known: int = 0
    verified: bool = False
    shards: int = 0
    replaced: int = 0
    nbytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[ShardRecord]:
        """The shards that are to be copied, each once."""
        return list({each.name: each for _, records in self.pieces for each in records}.values())


def compare(source: TensorStore, target: TensorStore, *, verify: bool = False) -> Transfer:
    """Return what one store holds that another one lacks.

    Args:
        source: What is copied from.
        target: What is copied to.
        verify: Compare what is there already with its checksums, too; reads all of it.

    Raises:
        CacheError: A store was written in a newer format.
        StorageError: A store cannot be listed or read.
    """
    source.refresh()
    unread = sorted(source.snapshot().unread)
    transfer = Transfer(
        verified=verify,
        problems=[f"{source.index_files.where(name)} is damaged; not copied" for name in unread],
    )
    if verify:
        sizes = _sizes(target)
        there = [(name, each) for name, records in pieces(source) for each in records]
        there = [(name, each) for name, each in there if sizes.get(each.name) == each.size]
        transfer.damaged = _damaged(source, target, there, transfer.problems)
        both = source.index_files.listed().keys() & target.index_files.listed().keys()
        transfer.damaged |= _damaged_pieces(target, both)
    _look(source, target, transfer)
    return transfer


def _look(source: TensorStore, target: TensorStore, transfer: Transfer) -> None:
    """Note what the target lacks now, and what of it is known to be damaged."""
    ours, theirs = source.index_files.listed(), target.index_files.listed()
    sizes = _sizes(target)
    transfer.pieces, transfer.known = [], 0
    for name, records in pieces(source):
        lacking = [
            each
            for each in records
            if sizes.get(each.name) not in (each.size, UNKNOWN_SIZE)
            or each.name in transfer.damaged
        ]
        transfer.known += len(records) - len(lacking)
        whole = name in theirs and name in ours and theirs[name].size == ours[name].size
        if lacking or not whole or name in transfer.damaged:
            transfer.pieces.append((name, lacking))


def _sizes(store: TensorStore) -> dict[str, int]:
    return {name: info.size for name, info in store.shard_files.listed().items()}


def copy(source: TensorStore, target: TensorStore, transfer: Transfer) -> None:
    """Copy what `compare` found; a copy that was stopped goes on where it was.

    A shard is copied before the piece of the index that lists it, so that whoever reads the
    target meanwhile, or after a kill, finds every row that it lists. Meanwhile nothing is
    removed from the target as garbage: a shard without its piece looks like it.

    Raises:
        LeaseTakenError: Another process copies to the target, compacts it or removes its garbage.
        StorageError: The target cannot be written to, or the source does not answer; a note
            says how far it has come.
    """
    if not transfer.pieces:
        return
    claim = f"{target.folder}/upkeep"
    try:
        with alone(target.storage, claim, "copying to this cache", _CLAIM_S) as lease:
            # To compare takes a while, in which garbage may have been removed: a shard without
            # its piece, which was there, among it.
            _look(source, target, transfer)
            title = f"copy {source.folder.rpartition('/')[2]}"
            with _shard_progress(title, transfer.missing) as advance:
                _Copying(source, target, transfer, lease, advance).run()
    except StorageError as error:
        done, of = transfer.shards, len(transfer.missing)
        error.add_note(
            f"{done} of {of} shards were copied before and stay; the same command goes on there"
        )
        raise


@dataclass(eq=False)
class _Copying:
    """One copy under way."""

    source: TensorStore
    target: TensorStore
    transfer: Transfer
    lease: Lease
    advance: Callable[[int], None]

    def __post_init__(self) -> None:
        """Counts are kept by several threads."""
        self._lock = threading.Lock()

    def run(self) -> None:
        """Copy pieces side by side, each after the shards that it lists."""
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            under_way = [pool.submit(self._piece, *piece) for piece in self.transfer.pieces]
            try:
                for each in under_way:
                    each.result()
                    self.lease.renew()
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure nothing more is begun

    def _piece(self, name: str, lacking: list[ShardRecord]) -> None:
        if all([self._shard(name, record) for record in lacking]):  # noqa: C419 - every one
            self._publish(name)

    def _shard(self, piece: str, record: ShardRecord) -> bool:
        """Copy a shard; False if it is not what its index says."""
        where = self.source.shard_files.where(record.name)
        try:
            segment = self.source.segment(piece)
            data = self.source.shard_files.published(record.name, record.size)
            bad = _unsound(self.source, segment, record, data, where)
        except _DAMAGE as error:
            self.transfer.problems.append(f"{error}; not copied")
            return False
        if bad:
            self.transfer.problems.append(
                f"{where} is not copied: {bad} of its {record.rows} rows are damaged; encode them "
                "anew there, or bring it from a cache that has them sound by `pull --verify`"
            )
            return False
        files = self.target.shard_files
        files.storage.write(files.key(record.name), data)
        if record.name in self.transfer.damaged:
            files.forget(record.name)  # this machine's copies are of what was damaged
        with self._lock:
            self.transfer.shards += 1
            self.transfer.replaced += record.name in self.transfer.damaged
            self.transfer.nbytes += record.size
        self.advance(record.size)
        return True

    def _publish(self, name: str) -> None:
        files = self.target.index_files
        try:
            data = self.source.index_files.published(name)
            read_segment(np.frombuffer(data, np.uint8), name)
        except _DAMAGE as error:
            self.transfer.problems.append(f"{error}; not copied")
            return
        if name in self.transfer.damaged:
            files.delete(name)  # with the copy of it that this machine may have
        files.storage.write(files.key(name), data)


def pieces(store: TensorStore) -> list[tuple[str, list[ShardRecord]]]:
    """Return the pieces of a store's index in their order, each with the shards it lists."""
    # A piece has several origins in one shard where rows of several stamps were merged.
    found: dict[str, dict[str, ShardRecord]] = {}
    for origin in store.snapshot().origins:
        listed = found.setdefault(origin.segment, {})
        if origin.shard is not None:
            listed[origin.shard.name] = origin.shard
    return [(name, list(listed.values())) for name, listed in sorted(found.items())]


def _damaged(
    source: TensorStore,
    target: TensorStore,
    shards: list[tuple[str, ShardRecord]],
    problems: list[str],
) -> set[str]:
    """Return the names of those of some shards that are not what was published.

    Args:
        source: Whose index says what was published.
        target: Where they lie.
        shards: The shards, each with the piece of the index that lists it.
        problems: What cannot be compared is added, a sentence each.
    """
    found = set()
    with _shard_progress("compare shards", [record for _, record in shards]) as advance:

        def look(pair: tuple[str, ShardRecord]) -> None:
            """Look at a shard, listed by a piece of the index."""
            name, record = pair
            files = target.shard_files
            try:
                segment = source.segment(name)
            except _DAMAGE as error:
                problems.append(f"{error}; {files.where(record.name)} is not compared")
                advance(record.size)
                return
            try:
                data = files.published(record.name, record.size)
                if _unsound(source, segment, record, data, files.where(record.name)):
                    found.add(record.name)
            except _DAMAGE:
                found.add(record.name)
            advance(record.size)

        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            list(pool.map(look, shards))
    return found


def _damaged_pieces(target: TensorStore, names: Iterable[str]) -> set[str]:
    """Return those of some pieces of an index that are not what was published."""

    def is_damaged(name: str) -> bool:
        """Read it whole."""
        try:
            read_segment(np.frombuffer(target.index_files.published(name), np.uint8), name)
        except _DAMAGE:
            return True
        return False

    listed = list(names)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        flags = pool.map(is_damaged, listed)
        return {name for name, damaged in zip(listed, flags, strict=True) if damaged}


def _unsound(
    source: TensorStore, segment: IndexSegment, record: ShardRecord, data: bytes, where: str
) -> int:
    """Return how many rows of a shard's bytes are damaged, of those that count in the source.

    Raises:
        DamagedError: It is no such shard.
    """
    plain: Bytes = (
        unpacked(data, record.plain_size, where)
        if record.name.endswith(SUFFIX)
        else np.frombuffer(data, np.uint8)
    )
    shard = TensorShard(plain, where, record.layout, record.rows)
    at = _entries(segment, record)
    bad = shard.unsound(segment.row[at].tolist(), segment.checksum[at].tolist())
    if not bad:
        return 0
    at = at[np.isin(segment.row[at], bad)]
    index = source.snapshot().index
    return int(counting(index, record, segment.keys[at], segment.row[at]).sum())


def _entries(segment: IndexSegment, record: ShardRecord) -> NDArray[np.int64]:
    return next(at for each, at in by_record(segment) if each.name == record.name)


@contextmanager
def _shard_progress(title: str, records: list[ShardRecord]) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of some shards are done; yields what is told of each, in bytes."""
    total = sum(record.size for record in records)
    unit, name = (_MIB, "MiB") if total >= _FEW * _MIB else (_KIB, "KiB")
    lock = threading.Lock()
    done = shown = 0
    with progress(title, total // unit, name) as advance:

        def add(nbytes: int) -> None:
            """Count bytes; whole units are shown."""
            nonlocal done, shown
            with lock:
                done += nbytes
                step, shown = done // unit - shown, done // unit
            advance(step)

        yield add
