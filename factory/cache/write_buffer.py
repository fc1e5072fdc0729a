"""Rows that this process has encoded and not published yet."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from factory.cache.format.recipe import KEY_DTYPE, Keys, canonical
from factory.cache.format.shard import RowLayout, layout_of, row_bytes
from factory.cache.gather.gather_rows import batch_of, put_rows
from factory.cache.store import TensorStore
from factory.cache.writer import capacity_of, checked_rows

# Rows of all shapes together take at most so many shards' worth of memory: half a gigabyte with
# the shards of the default size. With many shapes few shards are full when that is reached.
_SHARDS_HELD = 2
# What other processes have published is looked for no oftener: listing a bucket takes a second.
LOOK_SECONDS = 30.0


class EncodedRow(NamedTuple):
    """One row among others.

    Attributes:
        fields: Tensors [n, ...].
        at: Which of the n it is.
    """

    fields: Mapping[str, torch.Tensor]
    at: int


@dataclass(eq=False)
class _BufferedShard:
    """Rows of one recipe and one shape, which become one shard."""

    recipe: Mapping[str, object]
    row_bytes: int
    keys: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return len(self.keys) * self.row_bytes

    def split(self, count: int) -> "_BufferedShard":
        """Take out the first rows."""
        first = _BufferedShard(self.recipe, self.row_bytes, self.keys[:count], self.labels[:count])
        del self.keys[:count], self.labels[:count]
        return first


class WriteBuffer:
    """Rows on their way into a store: found here until they can be gathered there.

    Each process has its own and publishes shards of its own, so that processes never write to
    one file; a row that two of them encoded is there twice, and either will do. Safe to use
    from several threads. A copy in another process starts empty.
    """

    def __init__(self, store: TensorStore, look_seconds: float = LOOK_SECONDS) -> None:
        """Start with no rows.

        Args:
            store: Where they are published.
            look_seconds: How often others' rows are looked for, at most.
        """
        self.store, self.look_seconds = store, look_seconds
        # Held by whoever encodes for the store, so that no row is encoded by two threads.
        self.encoding = threading.RLock()
        self._lock = threading.Lock()
        self._rows: dict[bytes, EncodedRow] = {}
        self._groups: dict[tuple[str, RowLayout], _BufferedShard] = {}
        self._looked = -look_seconds

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone."""
        return {"store": self.store, "look_seconds": self.look_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start anew with the settings."""
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        """Return how many rows are not published."""
        return len(self._rows)

    def find(self, keys: Keys) -> list[EncodedRow | None]:
        """Return the rows of some keys, V16 [n]; None for those that are not here."""
        with self._lock:
            return [self._rows.get(key.tobytes()) for key in keys]

    def add(
        self,
        recipe: Mapping[str, object],
        keys: Keys,
        fields: Mapping[str, torch.Tensor],
        labels: Sequence[str],
    ) -> dict[str, torch.Tensor]:
        """Take in rows; publish a shard if one is full.

        Args:
            recipe: What the rows have in common.
            keys: Their keys, V16 [n].
            fields: Their tensors [n, ...], on any device.
            labels: What they are of.

        Returns:
            The rows as they will be stored: on the CPU.

        Raises:
            CacheError: Counts differ, or a number is not finite; nothing is added.
            StorageError: A full shard could not be published; its rows are lost.
        """
        layout, tensors = checked_rows(keys, fields, labels)
        with self._lock:
            new = _BufferedShard(recipe, row_bytes(layout))
            group = self._groups.setdefault((canonical(recipe), layout), new)
            for index, key in enumerate(key.tobytes() for key in keys):
                if key not in self._rows:
                    self._rows[key] = EncodedRow(tensors, index)
                    group.keys.append(key)
                    group.labels.append(labels[index])
            ready = self._full()
        self._publish(ready)
        return tensors

    def publish(self) -> None:
        """Publish what is open.

        Raises:
            StorageError: A shard could not be published; its rows are lost.
        """
        with self._lock:
            ready, self._groups = list(self._groups.values()), {}
        self._publish(ready)

    def discard(self, unwanted: Callable[[Mapping[str, object]], bool]) -> None:
        """Forget open rows by their recipe."""
        with self._lock:
            for name, group in list(self._groups.items()):
                if unwanted(group.recipe):
                    self._forget(self._groups.pop(name))

    def look(self) -> bool:
        """See what others have published since, unless that was looked at lately.

        Returns:
            Whether it was looked at now.

        Raises:
            StorageError: The storage cannot be listed or read.
        """
        now = time.monotonic()
        with self._lock:
            due = now - self._looked >= self.look_seconds
            if due:
                self._looked = now
        if due:
            self.store.refresh()
        return due

    def _full(self) -> list[_BufferedShard]:
        """Take out the rows that are to be published, a shard's worth in each group."""
        most, rows, ready = self.store.shard_bytes, self.store.shard_rows, []

        def is_full(group: _BufferedShard) -> bool:
            count = len(group.keys)
            return count > 0 and (group.nbytes >= most or (rows is not None and count >= rows))

        for (_, layout), group in self._groups.items():
            # No more than fit: the rest would become a shard of a few rows.
            capacity = capacity_of(layout, most, rows)
            while is_full(group):
                ready.append(group.split(capacity))
        if sum(group.nbytes for group in self._groups.values()) > _SHARDS_HELD * most:
            largest = max(self._groups, key=lambda name: self._groups[name].nbytes)
            ready.append(self._groups.pop(largest))
        self._groups = {name: group for name, group in self._groups.items() if group.keys}
        return ready

    def _publish(self, groups: Sequence[_BufferedShard]) -> None:
        groups = [group for group in groups if group.keys]
        if not groups:
            return
        try:
            for group in groups:
                rows = [self._rows[key] for key in group.keys]
                keys = np.frombuffer(b"".join(group.keys), dtype=KEY_DTYPE)
                with self.store.writer(group.recipe) as writer:
                    writer.add(keys, joined_rows(rows), labels=group.labels)
            self.store.refresh()
        finally:
            # Only now: until the store has been read again, they are found here alone.
            with self._lock:
                for group in groups:
                    self._forget(group)

    def _forget(self, group: _BufferedShard) -> None:
        for key in group.keys:
            self._rows.pop(key, None)


def joined_rows(rows: Sequence[EncodedRow], *, pad: bool = False) -> dict[str, torch.Tensor]:
    """Return rows as fields [n, ...], in their order.

    Args:
        rows: The rows.
        pad: Whether they may differ in length; see `TensorStore.gather`.

    Raises:
        CacheError: Their fields or shapes differ.
    """
    if not rows:
        return {}
    groups: dict[int, tuple[Mapping[str, torch.Tensor], list[int], list[int]]] = {}
    for place, (fields, at) in enumerate(rows):
        _, places, indices = groups.setdefault(id(fields), (fields, [], []))
        places.append(place)
        indices.append(at)
    layouts = [layout_of(fields) for fields, _, _ in groups.values()]
    batch = batch_of(layouts, len(rows), pad=pad)
    for fields, places, indices in groups.values():
        put_rows(batch, places, {name: tensor[indices] for name, tensor in fields.items()})
    return batch
