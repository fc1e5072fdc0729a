"""Conditioning partners of samples in an epoch: those in all sets, or in the set that is drawn."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from factory.backends.conditioning import RANDOM, sampling_of
from factory.backends.prepared import PreparedBackend
from factory.catalog.captions.draws import conditioning_draw

Rows = NDArray[np.int64]


def partner_rows(source: PreparedBackend, rows: Rows, *, seed: int, epoch: int) -> dict[str, Rows]:
    """Return the row of each sample's partner in each set of a source.

    Where one set is drawn, that is a function of (seed, epoch, key) and of which sets the
    sample has partners in; one that a sample lacks changes no other sample's.

    Args:
        source: The backend, paired.
        rows: Rows of its samples, int64 [n].
        seed: Seed of the run.
        epoch: The epoch, from 0.

    Returns:
        By set, int64 [n]; -1 where a sample has no partner, or has another set.
    """
    found = {name: partners[rows] for name, (_, partners) in source.conditioning.items()}
    if not found or sampling_of(source.backend) != RANDOM:
        return found
    names = list(found)
    has = np.stack([found[name] >= 0 for name in names], axis=1)
    keys = source.catalog.facts.texts("key", rows)
    drawn = [
        _drawn([name for name, there in zip(names, row, strict=True) if there], seed, epoch, key)
        for row, key in zip(has.tolist(), keys, strict=True)
    ]
    chosen = np.array(drawn, dtype=object)
    return {name: np.where(chosen == name, of, -1) for name, of in found.items()}


def _drawn(names: Sequence[str], seed: int, epoch: int, key: str) -> str | None:
    """Return the set of the highest number; each set has one of its own for each sample."""

    def number(name: str) -> int:
        return conditioning_draw(name, seed=seed, epoch=epoch, key=key)

    return max(names, key=number, default=None)
