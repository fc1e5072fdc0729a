"""Which rows need nothing more than to be copied?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.chosen import Chosen
from factory.cache.container import DTYPES
from factory.cache.copying import Rows
from factory.cache.gathering import Empty
from factory.cache.shard import Layout, Shard


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


def ready(chosen: Chosen, counts: Sequence[int]) -> list[Ready | None]:
    """Return what is to be copied for each of some batches; None for those with more to do.

    Args:
        chosen: The rows of all batches one after the other.
        counts: How many rows each batch has, one at least.
    """
    found: list[Ready | None] = [None] * len(counts)
    for layout, kept, which in _alike(chosen.shards):
        here = which[chosen.which] & chosen.sound
        starts = np.cumsum(counts, dtype=np.int64) - np.array(counts, np.int64)
        whole = np.logical_and.reduceat(here, starts)
        here &= np.repeat(whole, counts)
        fields = [
            (field.name, field.shape, DTYPES[field.code], _rows(chosen, here, number, field.stride))
            for number, field in enumerate(layout)
        ]
        first = 0
        for batch in np.flatnonzero(whole).tolist():
            found[batch] = Ready(kept, fields, first, counts[batch])
            first += counts[batch]
    return found


def _alike(
    shards: Sequence[Shard | None],
) -> Iterator[tuple[Layout, list[Shard], NDArray[np.bool_]]]:
    """Yield each layout that there is, the shards that have it, and which those are, bool [n]."""
    # Of one object where they are equal, but for shards open since an older snapshot.
    left = {id(shard.layout): shard.layout for shard in shards if shard is not None}
    while left:
        layout = next(iter(left.values()))
        equal = {number for number, other in left.items() if other == layout}
        which = [shard is not None and id(shard.layout) in equal for shard in shards]
        kept = [shard for shard, mine in zip(shards, which, strict=True) if shard and mine]
        yield layout, kept, np.array(which, np.bool_)
        left = {number: other for number, other in left.items() if number not in equal}


def _rows(chosen: Chosen, here: NDArray[np.bool_], field: int, stride: int) -> Rows | None:
    """Return a field of some rows, bool [n]; None where it has no byte."""
    if not (stride and here.any()):
        return None
    bases = [0 if shard is None else shard.addresses[field] for shard in chosen.shards]
    addresses = np.array(bases, np.int64)[chosen.which[here]] + chosen.rows[here] * stride
    return Rows(addresses, stride)
