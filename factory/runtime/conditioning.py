"""What do the samples of a batch have beside them: their partners, each in its sample's place?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.conditioning import RANDOM, ConditioningBackend, sampling_of
from factory.backends.sets import partner_rows
from factory.backends.source import Source
from factory.encoder.pixels import RawPixels

Rows: TypeAlias = NDArray[np.int64]
# One tensor for all samples, or one each where shapes differ.
Tensors: TypeAlias = torch.Tensor | list[torch.Tensor]

# Name of the one entry where a set is drawn for each sample.
DRAWN = "drawn"
_COLOURS = 3
# Dimensions of one picture's latents; a clip has frames in front.
_LATENT_DIMS = 3


class Pile:
    """Pixels of one backend, put in their places as they are read, from any thread's reader.

    They lie in one tensor as long as all have one shape.
    """

    def __init__(self, places: int) -> None:
        """Begin with nothing in any place."""
        self._places = places
        self._tensor: torch.Tensor | None = None
        self._apart: dict[int, torch.Tensor] = {}

    def put(self, place: int, image: NDArray[np.uint8]) -> None:
        """Copy a sample to its place."""
        if self._tensor is None:
            self._tensor = torch.zeros((self._places, *image.shape), dtype=torch.uint8)
        if image.shape == self._tensor.shape[1:]:
            self._tensor[place] = torch.from_numpy(image)
        else:
            self._apart[place] = torch.from_numpy(image)

    @property
    def tensor(self) -> torch.Tensor:
        """The pixels, uint8 [places, ...]; zeros where nothing was put.

        Raises:
            ValueError: Nothing was put anywhere, so that the shape is unknown.
        """
        if self._tensor is None:
            raise ValueError("no sample was read")
        return self._tensor

    def each(self, places: Sequence[int]) -> list[torch.Tensor]:
        """Return what was put at some places."""
        return [self._apart[n] if n in self._apart else self.tensor[n] for n in places]


@dataclass(frozen=True)
class Beside:
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
    """The partners that samples of a source have in an epoch.

    Attributes:
        source: The backend.
        seed: Seed of the run.
        epoch: The epoch, from 0.
    """

    source: Source
    seed: int
    epoch: int

    def rows(self, rows: Rows) -> dict[str, Rows]:
        """Return the partner's row of each row, by backend; -1 where there is none."""
        return partner_rows(self.source, rows, seed=self.seed, epoch=self.epoch)

    def read_as_pixels(self) -> list[Source]:
        """Return who is read as pixels: the source, or partners of it."""
        everyone = [self.source, *(each for each, _ in self.source.conditioning.values())]
        return [each for each in everyone if each.latents is None]

    def gather(
        self,
        rows: Rows,
        pixels: Mapping[str, Pile],
        latents: torch.Tensor | None,
        target: NDArray[np.int32],
    ) -> Beside:
        """Return what samples have beside them.

        Args:
            rows: Rows of the samples, int64 [B].
            pixels: What was read as pixels, by backend.
            latents: Latents of the samples, where they have any.
            target: Sizes the samples are cut to (width, height), px, int32 [B, 2].

        Raises:
            CacheError: A latent is missing or damaged.
        """
        if not self.source.conditioning:
            return Beside()
        theirs = self.rows(rows)
        found = {
            name: self._values(name, np.flatnonzero(of >= 0), of, pixels.get(name))
            for name, of in theirs.items()
        }
        if sampling_of(self.source.backend) == RANDOM:
            return _drawn(theirs, found)
        beside = Beside()
        for name, of in theirs.items():
            backend = _backend(self.source.conditioning[name][0])
            places = np.flatnonzero(of >= 0)
            whole = found[name]
            if len(places) < len(rows):
                whole = _spread(whole, places, len(rows), self._zeros(name, latents, target))
            beside.tensors[name] = whole
            if backend.missing_partner == "keep":
                beside.valid[name] = torch.from_numpy(of >= 0)
        return beside

    def _values(self, name: str, places: Rows, theirs: Rows, pile: Pile | None) -> Tensors:
        """Return what a set gives to the samples at some places."""
        partner = self.source.conditioning[name][0]
        backend = _backend(partner)
        if not len(places):
            return []
        if not backend.strict:
            return [self._finished(partner, one) for one in _loose(partner, places, theirs, pile)]
        if pile is None:
            return self._finished(partner, partner.read_latents(theirs[places])["latents"])
        every = len(places) == len(theirs)
        return self._finished(partner, pile.tensor if every else pile.tensor[places])

    def _finished(self, partner: Source, values: torch.Tensor) -> torch.Tensor:
        """Return latents as they are, and pixels as the backend delivers them."""
        return values if _is_encoded(partner) else _backend(partner).delivered(values)

    def _zeros(
        self, name: str, latents: torch.Tensor | None, target: NDArray[np.int32]
    ) -> torch.Tensor:
        """Return what stands for one missing partner; of loose references an empty tensor."""
        partner = self.source.conditioning[name][0]
        if not _backend(partner).strict:
            return torch.empty(0)
        if latents is not None and _is_encoded(partner):
            return latents.new_zeros(latents.shape[-_LATENT_DIMS:])
        wide, tall = target[0].tolist()
        return self._finished(partner, torch.zeros((tall, wide, _COLOURS), dtype=torch.uint8))


def _is_encoded(partner: Source) -> bool:
    store = partner.latents
    return store is not None and not isinstance(store.encoder, RawPixels)


def _backend(partner: Source) -> ConditioningBackend:
    return cast("ConditioningBackend", partner.backend)


def _loose(partner: Source, places: Rows, theirs: Rows, pile: Pile | None) -> list[torch.Tensor]:
    """Return the references of some places, whose shapes differ: those of one size at once."""
    if pile is not None:
        return pile.each(places.tolist())
    rows = theirs[places]
    sizes = partner.catalog.cuts(rows).target
    found: dict[int, torch.Tensor] = {}
    for size in np.unique(sizes, axis=0):
        alike = np.flatnonzero((sizes == size).all(axis=1))
        latents = partner.read_latents(rows[alike])["latents"]
        found.update(zip(alike.tolist(), latents, strict=True))
    return [found[n] for n in range(len(rows))]


def _spread(values: Tensors, places: Rows, count: int, missing: torch.Tensor) -> Tensors:
    """Put values into their places among `count`, and what stands for missing ones elsewhere."""
    if missing.numel() == 0:
        given = dict(zip(places.tolist(), values, strict=True))
        return [given.get(n, missing) for n in range(count)]
    whole = missing.repeat(count, *[1] * missing.ndim)
    if len(places):
        whole[torch.from_numpy(places)] = cast("torch.Tensor", values)
    return whole


def _drawn(theirs: Mapping[str, Rows], found: Mapping[str, Tensors]) -> Beside:
    """Put what each sample drew into its place: one tensor if all are of one shape and type."""
    count = len(next(iter(theirs.values())))
    names, given = [""] * count, [torch.empty(0)] * count
    for name, of in theirs.items():
        for place, value in zip(np.flatnonzero(of >= 0).tolist(), found[name], strict=True):
            names[place], given[place] = name, value
    alike = len({(value.shape, value.dtype) for value in given}) == 1
    return Beside({DRAWN: torch.stack(given) if alike else given}, drawn=names)
