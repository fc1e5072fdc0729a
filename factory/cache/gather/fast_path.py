"""Rows that need nothing more than to be copied."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.format.safetensors_file import DTYPES
from factory.cache.format.shard import RowLayout, TensorShard
from factory.cache.gather.gather_plan import Chosen
from factory.cache.gather.kernel import Rows
from factory.cache.gather.rows import Allocator

# In the place of a layout's number: there is none that counts.
_NONE = -1


@dataclass(frozen=True, eq=False)
class Ready:
    """Rows of one layout in open shards, each found sound before.

    Attributes:
        shards: The shards, which are mapped as long as they are held here.
        fields: Name, shape, dtype and rows of each field; None for rows without a byte.
        first: Which of these rows is meant first, from 0.
        count: How many are meant.
    """

    shards: Sequence[TensorShard]
    fields: Sequence[tuple[str, tuple[int, ...], torch.dtype, Rows | None]]
    first: int
    count: int

    def read(self, allocate: Allocator) -> dict[str, torch.Tensor]:
        """Return the rows, each field a tensor [count, ...] that `allocate` has made."""
        batch = {}
        for name, shape, dtype, rows in self.fields:
            tensor = batch[name] = allocate((self.count, *shape), dtype=dtype)
            if rows is not None:
                rows.copy(self.first, tensor)
        return batch


def ready(chosen: Chosen, counts: Sequence[int]) -> list[Ready | None]:
    """Return what is to be copied for each of some batches; None for those with more to do.

    Args:
        chosen: The rows of all batches one after the other.
        counts: How many rows each batch has, one at least.
    """
    found: list[Ready | None] = [None] * len(counts)
    layouts, which = _layouts(chosen.shards)
    mine = which[chosen.which]
    starts = np.cumsum(counts, dtype=np.int64) - np.array(counts, np.int64)
    sound = np.logical_and.reduceat(chosen.sound, starts)
    least, most = np.minimum.reduceat(mine, starts), np.maximum.reduceat(mine, starts)
    common = np.where(sound & (least == most), least, _NONE)
    # Of the layouts that a whole batch has: captions may be of many lengths, which batches mix.
    for number in np.unique(common[common != _NONE]).tolist():
        having = zip(chosen.shards, which.tolist(), strict=True)
        kept = [shard for shard, own in having if shard is not None and own == number]
        whole = common == number
        here = np.repeat(whole, counts)
        fields = [
            (field.name, field.shape, DTYPES[field.code], _rows(chosen, here, place, field.stride))
            for place, field in enumerate(layouts[number])
        ]
        first = 0
        for batch in np.flatnonzero(whole).tolist():
            found[batch] = Ready(kept, fields, first, counts[batch])
            first += counts[batch]
    return found


def _layouts(shards: Sequence[TensorShard | None]) -> tuple[list[RowLayout], NDArray[np.int64]]:
    """Return the layouts of shards, each once, and which of them each shard has, int64 [n]."""
    # Of one object where they are equal, but for shards open since an older snapshot.
    objects = {id(shard.layout): shard.layout for shard in shards if shard is not None}
    known: dict[RowLayout, int] = {}
    numbers = {one: known.setdefault(layout, len(known)) for one, layout in objects.items()}
    which = [_NONE if shard is None else numbers[id(shard.layout)] for shard in shards]
    return list(known), np.array(which, np.int64)


def _rows(chosen: Chosen, here: NDArray[np.bool_], field: int, stride: int) -> Rows | None:
    """Return a field of some rows, bool [n], one at least; None where it has no byte."""
    if not stride:
        return None
    bases = [0 if shard is None else shard.addresses[field] for shard in chosen.shards]
    addresses = np.array(bases, np.int64)[chosen.which[here]] + chosen.rows[here] * stride
    return Rows(addresses, stride)
