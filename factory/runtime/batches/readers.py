"""Readers of one batch: of the planned backend, and of those it is conditioned on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from factory.backends.conditioning import ConditioningBackend
from factory.backends.image_reader import ImageReader, LoadedSample, Rows, Tensors
from factory.backends.prepared import PreparedBackend, UnusableSample


@dataclass(frozen=True)
class SampleReader:
    """A backend that gives to a batch.

    Attributes:
        source: The backend made ready.
        reading: How its samples come.
    """

    source: PreparedBackend
    reading: ImageReader

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.source.name

    def stored(self, rows: Rows) -> Tensors | None:
        """Return what a partner gives for rows that are there; None if samples must be read.

        Args:
            rows: Its rows, int64 [B]; -1 for samples that it gives nothing to.
        """
        present = rows[rows >= 0]
        if not len(present):
            return []
        if not self._shapes_differ:
            return self.reading.stored(present)
        sizes = self.source.catalog.crops(present).target
        found: dict[int, torch.Tensor] = {}
        for size in np.unique(sizes, axis=0):
            alike = np.flatnonzero((sizes == size).all(axis=1))
            values = self.reading.stored(present[alike])
            if values is None:
                return None
            found.update(zip(alike.tolist(), values, strict=True))
        return [found[place] for place in range(len(present))]

    def read(self, rows: Rows) -> Iterator[LoadedSample | UnusableSample | None]:
        """Yield what becomes of some rows, in their order; None for those that are -1."""
        read = self.reading.read(rows[rows >= 0])
        return (next(read) if row >= 0 else None for row in rows.tolist())

    def put(self, place: int, piece: LoadedSample | None) -> None:
        """Take the sample of a place, from 0 to B - 1, if there is one."""
        if piece is not None:
            self.reading.put(place, piece)

    def finish(self) -> Tensors:
        """Return what it gives to the samples put, in the order of their places."""
        values = self.reading.finish()
        return list(values) if self._shapes_differ else values

    @property
    def _shapes_differ(self) -> bool:
        backend = self.source.backend
        return isinstance(backend, ConditioningBackend) and not backend.strict


def sample_readers(
    source: PreparedBackend, begin: Callable[[PreparedBackend], ImageReader]
) -> list[SampleReader]:
    """Return who gives to a batch of a source: itself, then those it is conditioned on."""
    everyone = [source, *(partner for partner, _ in source.conditioning.values())]
    return [SampleReader(each, begin(each)) for each in everyone]
