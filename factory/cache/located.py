"""Where do rows lie, as it was looked up before they are read?"""

from dataclasses import dataclass

import numpy as np
import torch

from factory.cache.gathering import Empty, new_memory
from factory.cache.index import Found
from factory.cache.snapshot import Snapshot
from factory.cache.store import TensorStore


@dataclass(frozen=True, eq=False)
class Located:
    """Rows of one store, n of them; those that are nowhere among them.

    Attributes:
        store: The store.
        snapshot: What numbers its shards.
        found: Where they lie.
    """

    store: TensorStore
    snapshot: Snapshot
    found: Found

    def __getitem__(self, some: slice) -> "Located":
        """Return some of them."""
        found = self.found
        part = Found(found.shard[some], found.row[some], found.checksum[some])
        return Located(self.store, self.snapshot, part)

    def read(self, *, pad: bool = False, empty: Empty = new_memory) -> dict[str, torch.Tensor]:
        """Return the rows, each field a tensor [n, ...]; see `TensorStore.read`."""
        return self.store.read(self.found, self.snapshot, pad=pad, empty=empty)

    def foresee(self) -> None:
        """Have the system begin to read those that lie on this machine; nothing is waited for."""
        self.store.foresee(self.found, self.snapshot)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        numbers, counts = np.unique(self.found.shard, return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        return sum(self._row_bytes(number) * count for number, count in pairs if number >= 0)

    def _row_bytes(self, number: int) -> int:
        return sum(field.stride for field in self.snapshot.index.shards[number].layout)
