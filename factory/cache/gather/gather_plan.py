"""Rows of open shards, and which of them were found sound before.

Asked row by row it costs a tenth of what it takes to copy the rows; here numpy does what it can.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.format.shard import TensorShard, row_bytes
from factory.cache.gather.kernel import copy_rows
from factory.cache.index.recipe_index import RowRefs
from factory.cache.tiers.mapped_file import willneed

# What is asked of a disk at once at most, bytes: more may have left memory before it is used, and
# rows so large are read well as they are touched.
WILLNEED_LIMIT = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of one store, n of them, and the shards they lie in.

    Attributes:
        shards: Those shards, each once; None where one is not open, or not to be looked at.
        which: For each row the place of its shard in `shards`, int64 [n].
        rows: Their numbers in their shards, int64 [n].
    """

    shards: list[TensorShard | None]
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, found: RowRefs, opened: Callable[[int], TensorShard | None]) -> "Chosen":
        """Look at rows.

        Args:
            found: Where they lie; those that are nowhere count as in a shard that is not open.
            opened: Returns the shard of a number, if it may be looked at.
        """
        # Counted and not sorted; from 1 on, for -1 is among the numbers.
        used = np.bincount(found.shard + 1) > 0
        numbers, which = np.flatnonzero(used) - 1, np.cumsum(used) - 1
        shards = [opened(number) if number >= 0 else None for number in numbers.tolist()]
        return cls(shards, which[found.shard + 1], found.row.astype(np.int64))

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        """Which of them their shards have, bool [n]; none of a shard that is not open."""
        counts = np.array([0 if shard is None else shard.rows for shard in self.shards], np.int64)
        found: NDArray[np.bool_] = (self.rows >= 0) & (self.rows < counts[self.which])
        return found

    @cached_property
    def sound(self) -> NDArray[np.bool_]:
        """Which of them were compared with their checksums before, bool [n]."""
        there = self.there
        bases = [0 if shard is None else shard.verified_at for shard in self.shards]
        flags = torch.empty(int(there.sum()), dtype=torch.bool, device="cpu")
        copy_rows(np.array(bases, np.int64)[self.which[there]] + self.rows[there], flags)
        found = np.zeros(len(there), np.bool_)
        found[there] = flags.numpy()
        return found

    def willneed(self, *, again: bool) -> None:
        """Have the system begin to read those that will be gathered soon, the first ones first.

        Args:
            again: Whether those that were read before may have left memory since.
        """
        wanted = self.there if again else self.there & ~self.sound
        if not wanted.any():
            return
        left = WILLNEED_LIMIT
        # Row by row: with a mask for each shard, rows of many shards took a fifth of their batch.
        pairs = zip(self.which[wanted].tolist(), self.rows[wanted].tolist(), strict=True)
        for number, row in dict.fromkeys(pairs):
            shard = self.shards[number]
            if left <= 0 or shard is None:
                return
            left -= row_bytes(shard.layout)
            for address, field in zip(shard.addresses, shard.layout, strict=True):
                willneed(address + row * field.stride, field.stride)
