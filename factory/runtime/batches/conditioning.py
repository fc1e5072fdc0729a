"""Conditioning inputs of a batch: each sample's partners, read with it and put in its place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.conditioning import RANDOM, ConditioningBackend, sampling_of
from factory.backends.image_reader import (
    ImageReader,
    LoadedSample,
    Rows,
    Tensors,
    VisionReader,
)
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.catalog.crops import CropArrays

# Name of the one entry where a set is drawn for each sample.
DRAWN = "drawn"
_COLOURS = 3
# Dimensions of one picture's latents; a clip has frames in front.
_LATENT_DIMS = 3


@dataclass(frozen=True)
class ConditioningFields:
    """What a batch has beside its samples; fields as in `Batch`.

    Attributes:
        tensors: `Batch.conditioning`.
        valid: `Batch.conditioning_valid`.
        drawn: `Batch.conditioning_set`.
    """

    tensors: dict[str, Tensors] = field(default_factory=dict)
    valid: dict[str, torch.Tensor] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Partners:
    """The partners that the samples of a batch have.

    Attributes:
        source: The samples' backend.
        count: How many samples there are, B.
        rows: The partner's row of each sample, int64 [B], by conditioning backend; -1 where
            there is none.
    """

    source: PreparedBackend
    count: int
    rows: Mapping[str, Rows]

    def gather(
        self,
        given: Mapping[str, Tensors],
        latents: torch.Tensor | None,
        target: NDArray[np.int32],
    ) -> ConditioningFields:
        """Return what samples have beside them.

        Args:
            given: Latents or pixels that each backend gives, by name, to the samples that have
                a partner in it, in their order.
            latents: Latents of the samples, where they have any.
            target: Sizes the samples are cut to (width, height), px, int32 [B, 2].
        """
        if not self.rows:
            return ConditioningFields()
        found = {name: self._finished(self._partner(name), given[name]) for name in self.rows}
        if sampling_of(self.source.backend) == RANDOM:
            return _drawn(self.rows, found)
        beside = ConditioningFields()
        for name, of in self.rows.items():
            whole = found[name]
            places = np.flatnonzero(of >= 0)
            if len(places) < self.count:
                whole = _spread(whole, places, self.count, self._zeros(name, latents, target))
            beside.tensors[name] = whole
            if _backend(self._partner(name)).missing_partner == "keep":
                beside.valid[name] = torch.from_numpy(of >= 0)
        return beside

    def image_embeds(
        self, rows: Rows, crops: CropArrays, reading: VisionReader
    ) -> dict[str, torch.Tensor]:
        """Return embeddings of the samples' pictures by field, their partners' by set and field.

        They are zeros where a sample has no partner in a set.

        Args:
            rows: Rows of the samples, int64 [B].
            crops: How they are cut.
            reading: Reads them.
        """
        found = reading.read(self.source, rows, crops)
        if all(partner.vision is None for partner, _ in self.source.conditioning.values()):
            return found
        for name, of in self.rows.items():
            places = np.flatnonzero(of >= 0)
            partner = self._partner(name)
            # Where nobody has a partner, any of the set shows what shape the zeros have.
            some = of[places] if len(places) else partner.catalog.decisions.order[:1]
            fields = reading.read(partner, some) if len(some) else {}
            for field_name, values in fields.items():
                zeros = torch.zeros_like(values[0])
                every = len(places) == self.count
                whole = values if every else _spread(values, places, self.count, zeros)
                found[f"{name}.{field_name}"] = cast("torch.Tensor", whole)
        return found

    def _partner(self, name: str) -> PreparedBackend:
        return self.source.conditioning[name][0]

    def _finished(self, partner: PreparedBackend, values: Tensors) -> Tensors:
        """Return latents as they are, and pixels as the backend delivers them."""
        if partner.gives_latents:
            return values
        delivered = _backend(partner).delivered
        return [delivered(one) for one in values] if isinstance(values, list) else delivered(values)

    def _zeros(
        self, name: str, latents: torch.Tensor | None, target: NDArray[np.int32]
    ) -> torch.Tensor:
        """Return what stands for one missing partner; of loose references an empty tensor."""
        partner = self._partner(name)
        if not _backend(partner).strict:
            return torch.empty(0, device="cpu")
        if latents is not None and partner.gives_latents:
            return latents.new_zeros(latents.shape[-_LATENT_DIMS:])
        wide, tall = target[0].tolist()
        black = torch.zeros((tall, wide, _COLOURS), dtype=torch.uint8, device="cpu")
        return _backend(partner).delivered(black)


@dataclass(frozen=True)
class SampleReader:
    """Reads what one backend contributes to a batch: that of the samples, or of partners.

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
        """Return the values of the samples put, in the order of their places."""
        values = self.reading.finish()
        return list(values) if self._shapes_differ else values

    @property
    def _shapes_differ(self) -> bool:
        backend = self.source.backend
        return isinstance(backend, ConditioningBackend) and not backend.strict


def _backend(partner: PreparedBackend) -> ConditioningBackend:
    return cast("ConditioningBackend", partner.backend)


def _spread(values: Tensors, places: Rows, count: int, missing: torch.Tensor) -> Tensors:
    """Put values into their places among `count`, and what stands for missing ones elsewhere."""
    if missing.numel() == 0:
        given = dict(zip(places.tolist(), values, strict=True))
        return [given.get(n, missing) for n in range(count)]
    whole = missing.repeat(count, *[1] * missing.ndim)
    if len(places):
        whole[torch.from_numpy(places)] = cast("torch.Tensor", values)
    return whole


def _drawn(theirs: Mapping[str, Rows], found: Mapping[str, Tensors]) -> ConditioningFields:
    """Put what each sample drew into its place: one tensor if all are of one shape and type."""
    count = len(next(iter(theirs.values())))
    names, given = [""] * count, [torch.empty(0, device="cpu")] * count
    for name, of in theirs.items():
        for place, value in zip(np.flatnonzero(of >= 0).tolist(), found[name], strict=True):
            names[place], given[place] = name, value
    alike = len({(value.shape, value.dtype) for value in given}) == 1
    return ConditioningFields({DRAWN: torch.stack(given) if alike else given}, drawn=names)
