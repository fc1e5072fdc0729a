"""Which rows need nothing more than to be copied?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from factory.cache.container import DTYPES
from factory.cache.copying import Rows
from factory.cache.gathering import Empty
from factory.cache.shard import Shard, addresses_of


@dataclass(frozen=True, eq=False)
class Ready:
    """Rows of one layout in open shards, each found sound before.

    Attributes:
        shards: The shards, which are mapped as long as they are held here.
        fields: Name, shape, dtype and rows of each field; None for rows without a byte.
        first: Which of these rows is meant first, from 0.
        count: How many are meant.
    """

    shards: Sequence[Shard]
    fields: Sequence[tuple[str, tuple[int, ...], torch.dtype, Rows | None]]
    first: int
    count: int

    def read(self, empty: Empty) -> dict[str, torch.Tensor]:
        """Return the rows, each field a tensor [count, ...] that `empty` has made."""
        batch = {}
        for name, shape, dtype, rows in self.fields:
            tensor = batch[name] = empty((self.count, *shape), dtype=dtype)
            if rows is not None:
                rows.copy(self.first, tensor)
        return batch


def ready(
    shards: Sequence[Shard | None], rows: Sequence[int], counts: Sequence[int]
) -> list[Ready | None]:
    """Return what is to be copied for each of some batches; None for those with more to do.

    Args:
        shards: The shard of each row, where it is open and all on this machine.
        rows: The rows' numbers in them.
        counts: How many rows each batch has.
    """
    found: list[Ready | None] = [None] * len(counts)
    alike: dict[int, list[tuple[int, list[tuple[Shard, int]]]]] = {}
    end = 0
    for number, count in enumerate(counts):
        some = slice(end, end := end + count)
        pairs = _sound(shards[some], rows[some])
        if pairs:
            # Of one object where they are equal, but for shards open since an older snapshot.
            alike.setdefault(id(pairs[0][0].layout), []).append((number, pairs))
    for batches in alike.values():
        every = [pair for _, pairs in batches for pair in pairs]
        fields = [
            (each.name, each.shape, DTYPES[each.code], _rows(every, number, each.stride))
            for number, each in enumerate(every[0][0].layout)
        ]
        kept, first = list({shard for shard, _ in every}), 0
        for number, pairs in batches:
            found[number] = Ready(kept, fields, first, len(pairs))
            first += len(pairs)
    return found


def _sound(shards: Sequence[Shard | None], rows: Sequence[int]) -> list[tuple[Shard, int]]:
    """Return the rows of a batch with their shards; none unless all are sound and of one layout."""
    pairs: list[tuple[Shard, int]] = []
    layout = None
    for shard, row in zip(shards, rows, strict=True):
        if shard is None or not (0 <= row < shard.rows and shard.verified[row]):
            return []
        layout = layout or shard.layout
        if shard.layout is not layout and shard.layout != layout:
            return []
        pairs.append((shard, row))
    return pairs


def _rows(pairs: Sequence[tuple[Shard, int]], field: int, stride: int) -> Rows | None:
    return Rows(addresses_of(pairs, field, stride), stride) if stride else None
