"""Shard writer: collects encoded rows and publishes them as shards."""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.format.compression import SUFFIX, packed
from factory.cache.format.recipe import Keys, as_keys
from factory.cache.format.safetensors_file import Bytes
from factory.cache.format.segment import (
    NO_NOTE,
    IndexSegment,
    ShardRecord,
    ShardStamp,
    new_segment,
    note,
    pack_segment,
)
from factory.cache.format.shard import (
    RowLayout,
    ShardBuilder,
    layout_of,
    matrices_of,
    row_bytes,
    unfinite_rows,
)
from factory.cache.tiers.shard_files import PublishedFiles
from factory.errors import CacheError, StorageError

# However small rows are, a shard takes no more: the keys and labels of open rows are Python
# objects, and a million of them take some 200 MB.
_ROWS_LIMIT = 1_000_000
# Open shards hold together at most this many shards' worth of rows, however many shapes.
_OPEN_SHARDS = 4
# How many labels an error shows.
_SHOWN = 3


def new_name(stamp: int) -> str:
    """Return a file name that no other writer uses, and that tells when it was made.

    Args:
        stamp: The time in microseconds, as `TensorStore.next_stamp` gives it.
    """
    return f"{stamp:016x}{secrets.token_hex(8)}.safetensors"


def capacity_of(layout: RowLayout, shard_bytes: int, shard_rows: int | None = None) -> int:
    """Return how many rows a shard takes before it is closed.

    Args:
        layout: What its rows are made of.
        shard_bytes: Size it is closed at.
        shard_rows: Rows it is closed at, if it is not full before; None for no such limit.
    """
    fitting = shard_bytes // max(1, row_bytes(layout))
    return min(max(1, fitting), shard_rows or _ROWS_LIMIT, _ROWS_LIMIT)


def publish_segment(index: PublishedFiles, segment: IndexSegment) -> None:
    """Write an index segment under a name of its own."""
    name = f"{segment.stamp:016x}-{new_name(segment.stamp)}"
    index.storage.write(index.key(name), pack_segment(segment))


def publish_shard(
    shards: PublishedFiles, stamp: int, shard: ShardBuilder, recipe: str, *, compress: bool
) -> ShardRecord:
    """Write a shard under a name of its own; nothing points to it yet."""
    plain = shard.finish()
    name, size, data = new_name(stamp), len(plain), packed(plain) if compress else plain
    if compress:
        name += SUFFIX
    shards.storage.write(shards.key(name), data)
    return ShardRecord(name, len(data), shard.rows, shard.layout, recipe, size)


class _KeySet:
    """Keys seen so far, 16 bytes each: sorted runs, merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def unseen(self, keys: Keys) -> NDArray[np.int64]:
        """Return which of the keys were not seen, each of them once, in order."""
        first = np.sort(np.unique(keys, return_index=True)[1])
        for run in self._runs:
            at = run.searchsorted(keys[first], side="right") - 1
            first = first[run[at] != keys[first]]
        return first

    def add(self, keys: Keys) -> None:
        """Remember the keys."""
        if not len(keys):
            return
        self._runs.append(np.sort(keys))
        # Merging only runs of like size looks at each key a logarithmic number of times.
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            joined = np.concatenate([self._runs.pop(), self._runs.pop()])
            self._runs.append(np.sort(joined, kind="stable"))


@dataclass(eq=False)
class _OpenShard:
    """An open shard with the keys and notes of its rows."""

    shard: ShardBuilder
    keys: list[Keys] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def used(self) -> int:
        return self.shard.rows * self.shard.row_bytes


class ShardWriter:
    """Collects rows, an open shard for each shape, and publishes shards as they fill up.

    A shard is visible once its index segment is: both are written whole, the shard first.
    Leaving the `with` block publishes the rest; leaving it by an exception throws away what
    is still open, and keeps what was published. `add` may be called from several threads.
    """

    def __init__(
        self,
        shards: PublishedFiles,
        index: PublishedFiles,
        recipe: str,
        shard_bytes: int,
        next_stamp: Callable[[], int],
        *,
        compress: bool = False,
        shard_rows: int | None = None,
    ) -> None:
        """Hold where to publish; `recipe` is canonical JSON, `next_stamp` orders segments."""
        self._shard_rows = shard_rows
        self._shards, self._index = shards, index
        self._recipe, self._shard_bytes, self._next_stamp = recipe, shard_bytes, next_stamp
        self._compress = compress
        self._groups: dict[RowLayout, _OpenShard] = {}
        self._spare: Bytes | None = None  # memory of a shard that was published
        self._seen = _KeySet()
        self._lock = threading.Lock()
        self._closed = ""

    def add(
        self,
        keys: Keys | NDArray[Any] | Sequence[bytes],
        fields: Mapping[str, torch.Tensor],
        labels: Sequence[str] | None = None,
        parts: Sequence[Mapping[str, object]] | None = None,
    ) -> None:
        """Add rows: keys of 16 bytes, and of each field a tensor [n, ...].

        A key added before is left out: what a key names never differs. Nothing is added if
        anything is wrong.

        Args:
            keys: n keys, as `recipe_keys` gives them.
            fields: The rows, any dtype of `container.DTYPES`, on any device.
            labels: What the rows are of (sample keys, captions), for messages and for `why`.
            parts: The rows' own part of their recipes, as `recipe_keys` got them, for `why`.

        Raises:
            CacheError: Counts differ, a number is not finite, a dtype cannot be stored, or
                the writer is closed.
            StorageError: A full shard could not be published; the writer is closed.
        """
        names = as_keys(keys)
        layout, tensors = checked_rows(names, fields, labels, parts)
        matrices = matrices_of(layout, tensors)
        with self._lock:
            if self._closed:
                raise CacheError(f"rows were added to a writer that {self._closed}")
            ready = self._collect(layout, matrices, names, _notes(len(names), labels, parts))
        self._publish(ready)

    def close(self) -> None:
        """Publish what is open; closing again does nothing.

        Raises:
            StorageError: A shard could not be published; it and the rest are lost.
        """
        self._publish(self._take_open("was closed"))

    def discard(self) -> None:
        """Throw away what is open."""
        self._take_open("was discarded")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, or discard if the block failed."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def _take_open(self, why: str) -> list[_OpenShard]:
        with self._lock:
            groups = list(self._groups.values())
            self._groups, self._spare = {}, None
            self._closed = self._closed or why
        return groups

    def _collect(
        self, layout: RowLayout, matrices: list[Bytes], keys: Keys, notes: Sequence[str]
    ) -> list[_OpenShard]:
        """Copy new rows into open shards; return those to be published."""
        new = self._seen.unseen(keys)
        self._seen.add(keys[new])
        ready = []
        while new.size:
            group = self._group(layout)
            room = group.shard.capacity - group.shard.rows
            part, new = new[:room], new[room:]
            whole = len(part) == len(keys)  # then nothing is left out, and a copy is saved
            group.shard.append(matrices if whole else [matrix[part] for matrix in matrices])
            group.keys.append(keys[part])
            group.notes.extend(notes[n] for n in part.tolist())
            if group.shard.rows == group.shard.capacity:
                ready.append(self._groups.pop(layout))
        if sum(group.used() for group in self._groups.values()) > _OPEN_SHARDS * self._shard_bytes:
            largest = max(self._groups, key=lambda layout: self._groups[layout].used())
            ready.append(self._groups.pop(largest))
        return ready

    def _group(self, layout: RowLayout) -> _OpenShard:
        if layout not in self._groups:
            capacity = capacity_of(layout, self._shard_bytes, self._shard_rows)
            memory, self._spare = self._spare, None
            self._groups[layout] = _OpenShard(ShardBuilder(layout, capacity, memory))
        return self._groups[layout]

    def _publish(self, groups: list[_OpenShard]) -> None:
        try:
            for group in groups:
                self._publish_one(group)
                self._spare = group.shard.memory
        except BaseException as error:
            self._take_open("failed to publish a shard")
            error.add_note(
                f"while a shard was published to {self._shards.where('')}: rows published before "
                "stay, those of open shards are encoded again by the next run; to go on "
                "elsewhere, give cache.storage a place that can be written to"
            )
            raise

    def _publish_one(self, group: _OpenShard) -> None:
        keys = np.concatenate(group.keys)
        stamp = self._next_stamp()
        record = publish_shard(
            self._shards, stamp, group.shard, self._recipe, compress=self._compress
        )
        try:
            stamp = self._next_stamp()
            segment = new_segment(
                stamp,
                [ShardStamp(stamp, record)],
                keys,
                np.zeros(len(keys), np.uint32),
                np.arange(len(keys)),
                group.shard.checksums[: len(keys)],
                group.notes,
            )
            publish_segment(self._index, segment)
        except BaseException:
            with suppress(StorageError):  # it takes room and nothing points to it
                self._shards.delete(record.name)
            raise


def _notes(
    count: int,
    labels: Sequence[str] | None,
    parts: Sequence[Mapping[str, object]] | None,
) -> list[str]:
    if labels is None and parts is None:
        return [NO_NOTE] * count
    return [
        note(labels[n] if labels is not None else "", None if parts is None else parts[n])
        for n in range(count)
    ]


def checked_rows(
    keys: Keys,
    fields: Mapping[str, torch.Tensor],
    labels: Sequence[str] | None = None,
    parts: Sequence[Mapping[str, object]] | None = None,
) -> tuple[RowLayout, dict[str, torch.Tensor]]:
    """Return rows as they can be stored, and their layout: on the CPU, contiguous.

    Args:
        keys: Keys of the rows, V16 [n].
        fields: The rows, each field [n, ...], on any device.
        labels: What the rows are of, for messages.
        parts: The rows' own part of their recipes.

    Raises:
        CacheError: Counts differ, a number is not finite, or a dtype cannot be stored.
    """
    layout = layout_of(fields)
    _check_counts(keys, fields, labels, parts)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fields.items()}
    _check_finite(layout, matrices_of(layout, tensors), keys, labels)
    return layout, tensors


def _check_counts(
    keys: Keys,
    fields: Mapping[str, torch.Tensor],
    labels: Sequence[str] | None,
    parts: Sequence[Mapping[str, object]] | None,
) -> None:
    counts = {f"field {name!r}": tensor.shape[0] for name, tensor in fields.items()}
    if labels is not None:
        counts["labels"] = len(labels)
    if parts is not None:
        counts["parts"] = len(parts)
    wrong = [f"{name}: {count}" for name, count in counts.items() if count != len(keys)]
    if wrong:
        shown = _shown(range(len(keys)), keys, labels)
        raise CacheError(
            f"{len(keys)} samples were encoded ({shown}), and the rows that came are "
            f"{', '.join(wrong)}; an encoder gives one row for each sample, in their order"
        )


def _check_finite(
    layout: RowLayout, matrices: list[Bytes], keys: Keys, labels: Sequence[str] | None
) -> None:
    for name, rows in unfinite_rows(layout, matrices).items():
        raise CacheError(
            f"field {name!r} holds NaN or infinity for {_shown(rows, keys, labels)}; nothing of "
            "the batch was stored; look at these samples, or encode in a wider dtype "
            "(fp16 overflows above 65504)"
        )


def _shown(rows: Sequence[int], keys: Keys, labels: Sequence[str] | None) -> str:
    """Name some rows by their label, or by their key in hex."""
    names = [
        f"key {keys[row].tobytes().hex()}" if labels is None or row >= len(labels) else labels[row]
        for row in rows[:_SHOWN]
    ]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(repr(name) for name in names) + more
