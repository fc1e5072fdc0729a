"""Readers of images for one batch: rows gathered from the cache, or images read and encoded."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeddings import ImageEmbedBackend
from factory.backends.encode_missing import EncodeCounts, EncodedRows, FoundRows, RowRequest
from factory.backends.encode_mode import EncodeMode
from factory.backends.pixels import Picture
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.cache.format.recipe import Keys
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.gather.gather_rows import Allocator, new_tensor
from factory.cache.store import UnusableRowsError
from factory.cache.write_buffer import EncodedRow
from factory.catalog.crops import CropArrays
from factory.engine.engine import Engine

Pixels: TypeAlias = NDArray[np.uint8]
Rows: TypeAlias = NDArray[np.int64]
# One tensor for all samples, or one each where shapes differ.
Tensors: TypeAlias = torch.Tensor | list[torch.Tensor]


@dataclass(frozen=True)
class LoadedSample:
    """One sample on its way into a batch: its row, or the pixels that give one.

    Attributes:
        pixels: uint8 [H, W, 3], or [F, H, W, 3] of a clip; None where there is a row.
        row: Its encoded row; None where it has none yet, or none is wanted.
        key: The row's key, V16 [1].
        size: Size it is cut to, (width, height), px.
        label: Storage key of the sample.
        lost: Why the row that should be there cannot be used.
    """

    pixels: Pixels | None
    row: EncodedRow | None = None
    key: Keys | None = None
    size: tuple[int, int] = (0, 0)
    label: str = ""
    lost: UnusableRowsError | None = None


class ImageReader(Protocol):
    """What one backend gives to one batch of B samples.

    It is asked for everything at once first. Where it has not all of it, samples are read one
    by one, and what cannot be used is replaced by others, until there is one for each place.
    """

    def stored(
        self, rows: Rows, crops: CropArrays | None = None, located: GatherPlan | None = None
    ) -> torch.Tensor | None:
        """Return what is there of B rows of one shape, [B, ...]; None if samples must be read."""

    def read(self, rows: Rows) -> Iterator[LoadedSample | UnusableSample]:
        """Yield what becomes of some rows, in their order."""

    def put(self, place: int, piece: LoadedSample) -> None:
        """Take the sample of a place, from 0 to B - 1."""

    def finish(self) -> Tensors:
        """Return the latents or pixels of the samples put, in the order of their places."""


def reading(
    source: PreparedBackend,
    engine: Engine,
    epoch: int,
    count: int,
    tally: EncodeCounts,
    allocate: Allocator = new_tensor,
) -> ImageReader:
    """Return how a backend gives `count` samples to a batch of an epoch.

    Args:
        source: The backend.
        engine: Reads and decodes what is not encoded yet.
        epoch: The epoch.
        count: Samples of the batch.
        tally: Counts what is encoded.
        allocate: Makes the tensors of the batch.
    """
    if source.latents is None:
        return PixelReader(source, engine, epoch, count, allocate)
    return LatentReader(source, source.latents, engine, epoch, tally, allocate)


class PixelReader:
    """Pixels, for a backend without an image encoder.

    They lie in one tensor as long as all have one shape.
    """

    def __init__(
        self, source: PreparedBackend, engine: Engine, epoch: int, count: int, allocate: Allocator
    ) -> None:
        """Store the parts; nothing is read yet."""
        self._source, self._engine, self._epoch, self._count = source, engine, epoch, count
        self._allocate = allocate
        self._pixels: torch.Tensor | None = None
        self._places: set[int] = set()
        self._apart: dict[int, torch.Tensor] = {}

    def stored(self, *_: object) -> torch.Tensor | None:
        """Return None: pixels are read each time."""
        return None

    def read(self, rows: Rows) -> Iterator[LoadedSample | UnusableSample]:
        """Yield the pixels of some rows, in their order."""
        for outcome in self._source.samples(rows, self._engine, self._epoch):
            yield outcome if isinstance(outcome, UnusableSample) else LoadedSample(outcome)

    def put(self, place: int, piece: LoadedSample) -> None:
        """Copy a sample to its place while others are still being decoded."""
        pixels = torch.from_numpy(piece.pixels)
        if self._pixels is None:
            self._pixels = self._allocate((self._count, *pixels.shape), dtype=torch.uint8)
        if pixels.shape == self._pixels.shape[1:]:
            self._pixels[place] = pixels
        else:
            self._apart[place] = pixels
        self._places.add(place)

    def finish(self) -> Tensors:
        """Return pixels, uint8 [n, H, W, 3] or [n, F, H, W, 3] of the n samples put."""
        places, pixels = sorted(self._places), self._pixels
        if pixels is None:
            return []
        if self._apart:
            return [self._apart[n] if n in self._apart else pixels[n] for n in places]
        return pixels if len(places) == self._count else pixels[places]


class LatentReader:
    """Latents: those in the cache, and those encoded now because they are not."""

    def __init__(
        self,
        source: PreparedBackend,
        embeds: ImageEmbedBackend,
        engine: Engine,
        epoch: int,
        tally: EncodeCounts,
        allocate: Allocator,
    ) -> None:
        """Store the parts; nothing is read yet."""
        self._source, self._embeds, self._engine = source, embeds, engine
        self._epoch, self._tally, self._allocate = epoch, tally, allocate
        self._pieces: dict[int, LoadedSample] = {}

    def stored(
        self, rows: Rows, crops: CropArrays | None = None, located: GatherPlan | None = None
    ) -> torch.Tensor | None:
        """Return the latents of all rows, if they are in the cache and may be used."""
        if not self._source.encode_mode.keeps:
            return None
        try:
            fields = self._source.gather(
                self._embeds, rows, crops, self._epoch, located=located, allocate=self._allocate
            )
        except UnusableRowsError:
            return None  # looked at one by one in `read`
        return fields["latents"]

    def read(self, rows: Rows) -> Iterator[LoadedSample | UnusableSample]:
        """Yield the encoded rows, and the pixels of those that are not encoded.

        Raises:
            UnusableRowsError: A row that was encoded beforehand is damaged or gone, and the
                sample cannot be encoded again, or `cache.damaged` is "stop".
            StorageError: A storage cannot be read.
        """
        different, places = np.unique(rows, return_inverse=True)
        pictures = self._source.pictures(different, self._source.crops(different, self._epoch))
        wanted = self._wanted(pictures)
        found = self._find(wanted, [picture.crop.target for picture in pictures])
        missing = [n for n, row in enumerate(found.rows) if row is None]
        outcomes = self._source.samples(different[missing], self._engine, self._epoch)
        read = dict(zip(missing, outcomes, strict=True))
        for n in places.tolist():
            yield self._piece(wanted, found, n, pictures[n].crop.target, read.get(n))

    def put(self, place: int, piece: LoadedSample) -> None:
        """Take the sample of a place."""
        self._pieces[place] = piece

    def finish(self) -> Tensors:
        """Encode what is not encoded, and return the latents of all, those of one shape together.

        Raises:
            CacheError: The encoder gave rows of another count or shape, or NaN.
            StorageError: Encoded rows cannot be written.
            Exception: The encoder failed; a note says what it was given.
        """
        places = sorted(self._pieces)
        alike = _alike([self._pieces[place].size for place in places])
        if len(alike) == 1:
            return self._finished(places)
        found: dict[int, torch.Tensor] = {}
        for some in alike:
            found.update(zip(some, self._finished([places[n] for n in some]), strict=True))
        return [found[n] for n in range(len(places))]

    def _find(self, wanted: RowRequest, sizes: Sequence[tuple[int, int]]) -> FoundRows:
        """Return the rows that are there: looked for by shape, since a store gives one at once."""
        rows: list[EncodedRow | None] = [None] * len(sizes)
        lost: dict[int, UnusableRowsError] = {}
        for some in _alike(sizes):
            labels = [wanted.labels[n] for n in some]
            found = self._rows.find(RowRequest(wanted.keys[some], labels, wanted.recipe))
            for n, row in zip(some, found.rows, strict=True):
                rows[n] = row
            lost.update((some[n], why) for n, why in found.lost.items())
        return FoundRows(rows, lost)

    def _finished(self, places: list[int]) -> torch.Tensor:
        """Return the latents of samples of one shape, [n, ...]."""
        pieces = [self._pieces[place] for place in places]
        keys = np.concatenate([piece.key for piece in pieces if piece.key is not None])
        labels = [piece.label for piece in pieces]
        found = FoundRows(
            [piece.row for piece in pieces],
            {n: piece.lost for n, piece in enumerate(pieces) if piece.lost is not None},
        )

        def encode(
            places: Sequence[int],
        ) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
            """Encode the pixels of some places, which are of one shape."""
            pixels = np.stack([p for n in places if (p := pieces[n].pixels) is not None])
            yield places, self._embeds.encode(torch.from_numpy(pixels), [labels[n] for n in places])

        wanted = RowRequest(keys, labels, self._recipe)
        return self._rows.complete(wanted, found, encode, self._tally)["latents"]

    @property
    def _rows(self) -> EncodedRows:
        return EncodedRows(self._embeds, self._source.encode_mode, self._source.name)

    @property
    def _recipe(self) -> dict[str, object]:
        marks = self._source.marks(self._epoch)
        return dict(self._embeds.recipe(self._source.backend.reader, **marks))

    def _wanted(self, pictures: list[Picture]) -> RowRequest:
        marks = self._source.marks(self._epoch)
        keys = self._embeds.keys(self._source.backend.reader, pictures, **marks)
        return RowRequest(keys, [picture.key for picture in pictures], self._recipe)

    def _piece(
        self,
        wanted: RowRequest,
        found: FoundRows,
        n: int,
        size: tuple[int, int],
        outcome: Pixels | UnusableSample | None,
    ) -> LoadedSample | UnusableSample:
        lost = found.lost.get(n)
        if isinstance(outcome, UnusableSample):
            if lost is None or not self._source.encode_mode.ahead:
                return outcome
            raise beyond_repair(lost, outcome)
        return LoadedSample(
            outcome, found.rows[n], wanted.keys[n : n + 1], size, wanted.labels[n], lost
        )


def beyond_repair(lost: UnusableRowsError, why: UnusableSample) -> UnusableRowsError:
    """Return the error of a lost row whose sample cannot be encoded again either."""
    lost.add_note(
        f"and {why.key!r} of {why.backend!r} cannot be encoded anew: {why.stage} failed: "
        f"{why.reason}"
    )
    return lost


def _alike(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the places of equal sizes together."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        by_size.setdefault(size, []).append(place)
    return list(by_size.values())


@dataclass(frozen=True)
class VisionReader:
    """Reads the image embeddings of one batch.

    Attributes:
        engine: Decodes pictures whose row was lost.
        tally: Counts those.
        allocate: Makes the tensors that rows are gathered into.
    """

    engine: Engine
    tally: EncodeCounts
    allocate: Allocator

    def read(
        self, source: PreparedBackend, rows: NDArray[np.int64], crops: CropArrays | None = None
    ) -> dict[str, torch.Tensor]:
        """Return image embeddings of some rows in their order: fields [B, ...]; empty for none.

        They are encoded once, beforehand: where cuts are drawn anew in each epoch, they are of
        those of the first one.

        Args:
            source: The backend.
            rows: Rows of its catalog, int64 [B].
            crops: How they are cut, where that is known already.

        Raises:
            UnusableRowsError: A row is missing or damaged, and the picture cannot be encoded
                again, or `cache.damaged` is "stop".
            StorageError: A storage cannot be read.
        """
        vision, reader = source.vision, source.backend.reader
        if vision is None:
            return {}
        crops = None if source.redraws else crops
        with suppress(UnusableRowsError):  # looked at one by one below
            return source.gather(vision, rows, crops, allocate=self.allocate)
        pictures = source.columns(rows, crops)
        keys = vision.keys(reader, pictures)
        wanted = RowRequest(keys, pictures.keys, vision.recipe(reader))
        encoded = EncodedRows(vision, EncodeMode.precompute, source.name)
        found = encoded.find(wanted)

        def encode(
            places: Sequence[int],
        ) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
            """Encode what was lost, pictures of one shape together."""
            outcomes = source.samples(rows[list(places)], self.engine)
            alike: dict[tuple[int, ...], dict[int, NDArray[np.uint8]]] = {}
            for place, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, UnusableSample):
                    raise beyond_repair(found.lost[place], outcome)
                alike.setdefault(outcome.shape, {})[place] = outcome
            for some in alike.values():
                labels = [wanted.labels[place] for place in some]
                pixels = torch.from_numpy(np.stack(list(some.values())))
                yield list(some), vision.encode(pixels, labels)

        return encoded.complete(wanted, found, encode, self.tally)
