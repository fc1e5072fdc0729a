"""Gather plans: how the rows of a batch are gathered, worked out before they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from factory.cache.format.shard import TensorShard, cut_among, row_bytes
from factory.cache.gather.gather_rows import Allocator, copied_rows, new_tensor
from factory.cache.index.recipe_index import RowRefs
from factory.cache.store import TensorStore
from factory.cache.tiers.mapped_file import willneed

# What is asked of a disk at once at most, bytes: more may have left memory before it is used, and
# rows so large are read well as they are touched.
WILLNEED_LIMIT = 256 * 2**20


@dataclass(frozen=True, eq=False)
class GatherPlan:
    """Rows of one store, n of them, and what is left to do to gather them.

    Attributes:
        store: The store.
        refs: Where they lie; rows that are nowhere may be among them.
        shards: The open shard of each row, where all are of one layout and were found sound
            before, so that they need only be copied; None where there is more to do. Shards stay
            mapped as long as they are held here.
    """

    store: TensorStore
    refs: RowRefs
    shards: Sequence[TensorShard] | None = None

    @property
    def ready(self) -> bool:
        """Whether the rows need only be copied."""
        return self.shards is not None

    def split(self, counts: Sequence[int]) -> "Iterator[GatherPlan]":
        """Yield the first rows, those that follow, and so on: so many each, one at least."""
        rows, end = self.refs.row.tolist(), 0
        for count in counts:
            some = slice(end, end := end + count)
            shards = self._sound(self._opened[some], rows[some])
            yield GatherPlan(self.store, self.refs.part(some), shards)

    def read(
        self, *, pad: bool = False, allocate: Allocator = new_tensor
    ) -> dict[str, torch.Tensor]:
        """Return the rows, each field a tensor [n, ...]; see `TensorStore.read`."""
        if self.shards is not None and not cut_among(set(self.shards)):
            return copied_rows(self.shards, self.refs.row.tolist(), None, allocate)
        return self.store.read(self.refs, pad=pad, allocate=allocate)

    def willneed(self) -> None:
        """Have the system begin to read rows of this machine, the first ones first.

        Nothing is waited for.
        """
        # Copies are fetched by the plan, and what was just written is in memory.
        if self.store.shard_files.copied:
            return
        left, again = WILLNEED_LIMIT, self.store.crowded
        for shard, row in dict.fromkeys(zip(self._opened, self.refs.row.tolist(), strict=True)):
            if shard is None or not 0 <= row < shard.rows or (shard.verified[row] and not again):
                continue
            if left <= 0:
                return
            left -= row_bytes(shard.layout)
            for address, field in zip(shard.addresses, shard.layout, strict=True):
                willneed(address + row * field.stride, field.stride)

    @cached_property
    def _opened(self) -> list[TensorShard | None]:
        """The shard of each row, if it is read where it was published."""
        numbers = self.refs.shard.tolist()
        shards = self.refs.shards
        opened = {n: self.store.published_shard(shards[n]) if n >= 0 else None for n in {*numbers}}
        return [opened[number] for number in numbers]

    @staticmethod
    def _sound(
        shards: Sequence[TensorShard | None], rows: Sequence[int]
    ) -> Sequence[TensorShard] | None:
        """Return the shards of some rows if these need only be copied, else None."""
        layout, found = None, []
        for shard, row in zip(shards, rows, strict=True):
            if shard is None or not 0 <= row < shard.rows or not shard.verified[row]:
                return None
            if shard.layout is not layout:  # mostly one object where they are equal
                if layout is not None and shard.layout != layout:
                    return None
                layout = shard.layout
            found.append(shard)
        return found
