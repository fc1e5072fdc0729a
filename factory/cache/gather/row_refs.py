"""Gather plans: rows of a store, looked up before they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from factory.cache.format.shard import cut_among, row_bytes
from factory.cache.gather.fast_path import Ready, ready
from factory.cache.gather.gather_plan import Chosen
from factory.cache.gather.rows import Allocator, new_tensor
from factory.cache.index.recipe_index import RowRefs
from factory.cache.index.snapshot import Snapshot
from factory.cache.store import TensorStore


@dataclass(frozen=True, eq=False)
class GatherPlan:
    """Rows of one store, n of them; those that are nowhere among them.

    Attributes:
        store: The store.
        snapshot: What numbers its shards.
        found: Where they lie.
        ready: What is left to do where they were looked at already; None where they were not.
    """

    store: TensorStore
    snapshot: Snapshot
    found: RowRefs
    ready: Ready | None = None

    def split(self, counts: Sequence[int]) -> "Iterator[GatherPlan]":
        """Yield the first rows, those that follow, and so on: so many each; look at all at once."""
        found, end = self.found, 0
        for count, whole in zip(counts, ready(self._chosen, counts), strict=True):
            some = slice(end, end := end + count)
            part = RowRefs(found.shard[some], found.row[some], found.checksum[some])
            yield GatherPlan(self.store, self.snapshot, part, whole)

    def read(
        self, *, pad: bool = False, allocate: Allocator = new_tensor
    ) -> dict[str, torch.Tensor]:
        """Return the rows, each field a tensor [n, ...]; see `TensorStore.read`."""
        if self.ready is not None and not cut_among(self.ready.shards):
            return self.ready.read(allocate)
        return self.store.read(self.found, self.snapshot, pad=pad, allocate=allocate)

    def willneed(self) -> None:
        """Have the system begin to read those that lie on this machine; nothing is waited for."""
        self.store.willneed(self._chosen)

    @cached_property
    def _chosen(self) -> Chosen:
        return self.store.choose(self.found, self.snapshot)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        numbers, counts = np.unique(self.found.shard, return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        shards = self.snapshot.index.shards
        return sum(row_bytes(shards[n].layout) * count for n, count in pairs if n >= 0)
