"""How do the samples of one batch come from a backend: gathered, or read and encoded?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeds import ImageEmbedBackend
from factory.backends.on_demand import EncodedRows, Found, Tally, Wanted
from factory.backends.picture import Picture
from factory.backends.source import Source, Unusable
from factory.bulk import Engine
from factory.cache.gathering import Empty, new_memory
from factory.cache.open_rows import Row
from factory.cache.recipe import Keys
from factory.cache.store import UnusableRowsError
from factory.catalog.cuts import CutArrays

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """One sample on its way into a batch: its row, or the pixels that give one.

    Attributes:
        pixels: uint8 [H, W, 3], or [F, H, W, 3] of a clip; None where there is a row.
        row: Its encoded row; None where it has none yet, or none is wanted.
        key: The row's key, V16 [1].
        label: Storage key of the sample.
        lost: Why the row that should be there cannot be used.
    """

    pixels: Pixels | None
    row: Row | None = None
    key: Keys | None = None
    label: str = ""
    lost: UnusableRowsError | None = None


class Reading(Protocol):
    """What one backend gives to one batch of B samples.

    It is asked for everything at once first. Where it has not all of it, samples are read one
    by one, and what cannot be used is replaced by others, until there is one for each place.
    """

    def stored(
        self, rows: NDArray[np.int64], cuts: CutArrays | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Return the fields of B rows, [B, ...]; None where samples have to be read."""

    def read(self, rows: NDArray[np.int64]) -> Iterator[Piece | Unusable]:
        """Yield what becomes of some rows, in their order."""

    def put(self, place: int, piece: Piece) -> None:
        """Take the sample of a place, from 0 to B - 1."""

    def finish(self) -> dict[str, torch.Tensor]:
        """Return the fields of the samples put, [B, ...]: at least "latents", or "pixels"."""


def reading(
    source: Source,
    engine: Engine,
    epoch: int,
    count: int,
    tally: Tally,
    empty: Empty = new_memory,
) -> Reading:
    """Return how a backend gives `count` samples to a batch of an epoch.

    Args:
        source: The backend.
        engine: Reads and decodes what is not encoded yet.
        epoch: The epoch.
        count: Samples of the batch.
        tally: Counts what is encoded.
        empty: Makes the tensors of the batch.
    """
    if source.latents is None:
        return PixelReading(source, engine, epoch, count, empty)
    return EncodedReading(source, source.latents, engine, epoch, count, tally, empty)


class PixelReading:
    """Pixels, for a backend without an image encoder."""

    def __init__(
        self, source: Source, engine: Engine, epoch: int, count: int, empty: Empty
    ) -> None:
        """Store the parts; nothing is read yet."""
        self._source, self._engine, self._epoch, self._count = source, engine, epoch, count
        self._empty = empty
        self._pixels: torch.Tensor | None = None

    def stored(self, *_: object) -> dict[str, torch.Tensor] | None:
        """Return None: pixels are read each time."""
        return None

    def read(self, rows: NDArray[np.int64]) -> Iterator[Piece | Unusable]:
        """Yield the pixels of some rows, in their order."""
        for outcome in self._source.samples(rows, self._engine, self._epoch):
            yield outcome if isinstance(outcome, Unusable) else Piece(outcome)

    def put(self, place: int, piece: Piece) -> None:
        """Copy a sample to its place while others are still being decoded."""
        pixels = torch.from_numpy(piece.pixels)
        if self._pixels is None:
            self._pixels = self._empty((self._count, *pixels.shape), dtype=torch.uint8)
        self._pixels[place] = pixels

    def finish(self) -> dict[str, torch.Tensor]:
        """Return {"pixels": uint8 [B, H, W, 3], or [B, F, H, W, 3]}."""
        return {} if self._pixels is None else {"pixels": self._pixels}


class EncodedReading:
    """Latents: those in the cache, and those encoded now because they are not."""

    def __init__(
        self,
        source: Source,
        embeds: ImageEmbedBackend,
        engine: Engine,
        epoch: int,
        count: int,
        tally: Tally,
        empty: Empty,
    ) -> None:
        """Store the parts; nothing is read yet."""
        self._source, self._embeds, self._engine = source, embeds, engine
        self._epoch, self._tally, self._empty = epoch, tally, empty
        self._rows = EncodedRows(embeds, source.encode_mode, source.name)
        self._pieces: list[Piece] = [Piece(None)] * count

    def stored(
        self, rows: NDArray[np.int64], cuts: CutArrays | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Return the latents of all rows, if they are in the cache and may be used."""
        if not self._source.encode_mode.keeps:
            return None
        try:
            return self._source.read_latents(rows, cuts, self._epoch, empty=self._empty)
        except UnusableRowsError:
            return None  # looked at one by one in `read`

    def read(self, rows: NDArray[np.int64]) -> Iterator[Piece | Unusable]:
        """Yield the encoded rows, and the pixels of those that are not encoded.

        Raises:
            UnusableRowsError: A row that was encoded beforehand is damaged or gone, and the
                sample cannot be encoded again, or `cache.damaged` is "stop".
            StorageError: A storage cannot be read.
        """
        different, places = np.unique(rows, return_inverse=True)
        pictures = self._source.pictures(different, self._source.cuts(different, self._epoch))
        wanted = self._wanted(pictures)
        found = self._rows.find(wanted)
        missing = [n for n, row in enumerate(found.rows) if row is None]
        outcomes = self._source.samples(different[missing], self._engine, self._epoch)
        read = dict(zip(missing, outcomes, strict=True))
        for n in places.tolist():
            yield self._piece(wanted, found, n, read.get(n))

    def put(self, place: int, piece: Piece) -> None:
        """Take the sample of a place."""
        self._pieces[place] = piece

    def finish(self) -> dict[str, torch.Tensor]:
        """Encode what is not encoded, and return the latents of all, [B, ...].

        Raises:
            CacheError: The encoder gave rows of another count or shape, or NaN.
            StorageError: Encoded rows cannot be written.
            Exception: The encoder failed; a note says what it was given.
        """
        pieces = self._pieces
        keys = np.concatenate([piece.key for piece in pieces if piece.key is not None])
        labels = [piece.label for piece in pieces]
        found = Found(
            [piece.row for piece in pieces],
            {n: piece.lost for n, piece in enumerate(pieces) if piece.lost is not None},
        )

        def encode(
            places: Sequence[int],
        ) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
            """Encode the pixels of some places, which are of one shape."""
            pixels = np.stack([p for n in places if (p := pieces[n].pixels) is not None])
            yield places, self._embeds.encode(torch.from_numpy(pixels), [labels[n] for n in places])

        return self._rows.complete(Wanted(keys, labels, self._recipe), found, encode, self._tally)

    @property
    def _recipe(self) -> dict[str, object]:
        marks = self._source.marks(self._epoch)
        return dict(self._embeds.recipe(self._source.backend.reader, **marks))

    def _wanted(self, pictures: list[Picture]) -> Wanted:
        marks = self._source.marks(self._epoch)
        keys = self._embeds.keys(self._source.backend.reader, pictures, **marks)
        return Wanted(keys, [picture.key for picture in pictures], self._recipe)

    def _piece(
        self, wanted: Wanted, found: Found, n: int, outcome: Pixels | Unusable | None
    ) -> Piece | Unusable:
        lost = found.lost.get(n)
        if isinstance(outcome, Unusable):
            if lost is None or not self._source.encode_mode.ahead:
                return outcome
            lost.add_note(
                f"and {outcome.key!r} of {outcome.backend!r} cannot be encoded anew: "
                f"{outcome.stage} failed: {outcome.reason}"
            )
            raise lost
        return Piece(outcome, found.rows[n], wanted.keys[n : n + 1], wanted.labels[n], lost)
