"""How do encoded rows become published shards?"""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.container import Bytes
from factory.cache.files import Files
from factory.cache.index import ShardRecord, new_segment, pack_segment
from factory.cache.recipe import Keys, as_keys
from factory.cache.shard import Layout, OpenShard, layout_of, matrices_of, unfinite_rows
from factory.errors import CacheError, StorageError

# However small rows are, a shard takes no more: the keys and labels of open rows are Python
# objects, and a million of them take some 200 MB.
_ROWS_LIMIT = 1_000_000
# Open shards hold together at most this many shards' worth of rows, however many shapes.
_OPEN_SHARDS = 4
# How many labels an error shows.
_SHOWN = 3


def new_name() -> str:
    """Return a file name that no other writer uses."""
    return f"{uuid.uuid4().hex}.safetensors"


def publish_segment(
    index: Files,
    stamp: int,
    record: ShardRecord | None,
    keys: Keys,
    checksums: NDArray[np.uint64],
    labels: Sequence[str] | None = None,
) -> None:
    """Write the index segment of a shard, or of dropped keys if there is no shard."""
    segment = new_segment(stamp, record, keys, checksums, labels)
    index.storage.write(index.key(f"{stamp:016x}-{new_name()}"), pack_segment(segment))


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
class _Group:
    """An open shard with the keys and labels of its rows."""

    shard: OpenShard
    keys: list[Keys] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def used(self) -> int:
        return self.shard.rows * self.shard.row_bytes


class Writer:
    """Collects rows, an open shard for each shape, and publishes shards as they fill up.

    A shard is visible once its index segment is: both are written whole, the shard first.
    Leaving the `with` block publishes the rest; leaving it by an exception throws away what
    is still open, and keeps what was published. `add` may be called from several threads.
    """

    def __init__(
        self,
        shards: Files,
        index: Files,
        recipe: str,
        shard_bytes: int,
        next_stamp: Callable[[], int],
        shard_rows: int | None = None,
    ) -> None:
        """Hold where to publish; `recipe` is canonical JSON, `next_stamp` orders segments."""
        self._shard_rows = min(shard_rows or _ROWS_LIMIT, _ROWS_LIMIT)
        self._shards, self._index = shards, index
        self._recipe, self._shard_bytes, self._next_stamp = recipe, shard_bytes, next_stamp
        self._groups: dict[Layout, _Group] = {}
        self._seen = _KeySet()
        self._lock = threading.Lock()
        self._closed = ""

    def add(
        self,
        keys: Keys | NDArray[Any] | Sequence[bytes],
        fields: Mapping[str, torch.Tensor],
        labels: Sequence[str] | None = None,
    ) -> None:
        """Add rows: keys of 16 bytes, and of each field a tensor [n, ...].

        A key added before is left out: what a key names never differs. Nothing is added if
        anything is wrong.

        Args:
            keys: n keys, as `recipe_keys` gives them.
            fields: The rows, any dtype of `container.DTYPES`, on any device.
            labels: What the rows are of (sample keys, captions), for messages and for `why`.

        Raises:
            CacheError: Counts differ, a number is not finite, a dtype cannot be stored, or
                the writer is closed.
            StorageError: A full shard could not be published; the writer is closed.
        """
        names = as_keys(keys)
        layout, tensors = checked_rows(names, fields, labels)
        matrices = matrices_of(layout, tensors)
        with self._lock:
            if self._closed:
                raise CacheError(f"rows were added to a writer that {self._closed}")
            ready = self._collect(layout, matrices, names, labels or [""] * len(names))
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, or discard if the block failed."""
        if kind is None:
            self.close()
        else:
            self.discard()

    def _take_open(self, why: str) -> list[_Group]:
        with self._lock:
            groups = list(self._groups.values())
            self._groups = {}
            self._closed = self._closed or why
        return groups

    def _collect(
        self, layout: Layout, matrices: list[Bytes], keys: Keys, labels: Sequence[str]
    ) -> list[_Group]:
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
            group.labels.extend(labels[n] for n in part.tolist())
            if group.shard.rows == group.shard.capacity:
                ready.append(self._groups.pop(layout))
        if sum(group.used() for group in self._groups.values()) > _OPEN_SHARDS * self._shard_bytes:
            largest = max(self._groups, key=lambda layout: self._groups[layout].used())
            ready.append(self._groups.pop(largest))
        return ready

    def _group(self, layout: Layout) -> _Group:
        if layout not in self._groups:
            row_bytes = max(1, sum(part.stride for part in layout))
            capacity = min(max(1, self._shard_bytes // row_bytes), self._shard_rows)
            self._groups[layout] = _Group(OpenShard(layout, capacity))
        return self._groups[layout]

    def _publish(self, groups: list[_Group]) -> None:
        try:
            for group in groups:
                self._publish_one(group)
        except BaseException:
            self._take_open("failed to publish a shard")
            raise

    def _publish_one(self, group: _Group) -> None:
        keys = np.concatenate(group.keys)
        data = group.shard.finish()
        name = new_name()
        record = ShardRecord(name, len(data), len(keys), group.shard.layout, self._recipe)
        checksums = group.shard.checksums[: len(keys)]
        self._shards.storage.write(self._shards.key(name), data)
        try:
            stamp = self._next_stamp()
            labels = group.labels if any(group.labels) else None
            publish_segment(self._index, stamp, record, keys, checksums, labels)
        except BaseException:
            with suppress(StorageError):  # it takes room and nothing points to it
                self._shards.delete(name)
            raise


def checked_rows(
    keys: Keys, fields: Mapping[str, torch.Tensor], labels: Sequence[str] | None = None
) -> tuple[Layout, dict[str, torch.Tensor]]:
    """Return rows as they can be stored, and their layout: on the CPU, contiguous.

    Args:
        keys: Keys of the rows, V16 [n].
        fields: The rows, each field [n, ...], on any device.
        labels: What the rows are of, for messages.

    Raises:
        CacheError: Counts differ, a number is not finite, or a dtype cannot be stored.
    """
    layout = layout_of(fields)
    _check_counts(keys, fields, labels)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fields.items()}
    _check_finite(layout, matrices_of(layout, tensors), keys, labels)
    return layout, tensors


def _check_counts(
    keys: Keys, fields: Mapping[str, torch.Tensor], labels: Sequence[str] | None
) -> None:
    counts = {f"field {name!r}": tensor.shape[0] for name, tensor in fields.items()}
    if labels is not None:
        counts["labels"] = len(labels)
    wrong = [f"{name}: {count}" for name, count in counts.items() if count != len(keys)]
    if wrong:
        shown = _shown(range(len(keys)), keys, labels)
        raise CacheError(
            f"{len(keys)} samples were encoded ({shown}), and the rows that came are "
            f"{', '.join(wrong)}; an encoder gives one row for each sample, in their order"
        )


def _check_finite(
    layout: Layout, matrices: list[Bytes], keys: Keys, labels: Sequence[str] | None
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
