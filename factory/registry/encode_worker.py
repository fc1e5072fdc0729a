"""Encode workers: read ahead, encode, and write behind.

The same worker runs in this process or in many others; it is all that a store of embeddings and
the samples need. A unit is a row of portions, and a portion is what is encoded at once, so what
is encoded together does not depend on where the work is done.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain, islice, tee
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeddings import PictureEmbedBackend, TextEmbedBackend
from factory.backends.pixels import MediaReader, Picture, PictureColumns, read_pixels
from factory.cache.format.recipe import Keys, rows_of
from factory.cache.writer import ShardWriter
from factory.catalog.scan.sample_fault import sample_fault
from factory.engine.engine import Engine
from factory.engine.pipeline import Ahead, Behind

Sample = TypeVar("Sample")

# Pixels that wait for the encoder: two batches of 32 pictures of 1024 x 1024 px fit.
READY_BYTES = 256 * 2**20
# Encoded rows that wait to be written: as many as come while a shard of the default size is
# written, at the speed a disk writes.
WRITING_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class EncodeBatch(Generic[Sample]):
    """Samples that are encoded at once.

    Attributes:
        samples: The samples; all of one shape.
        keys: Recipe keys of their rows, V16 [n].
    """

    samples: Sequence[Sample]
    keys: Keys


Unit: TypeAlias = Sequence[EncodeBatch[Sample]]


@dataclass(frozen=True)
class EncodeReport:
    """What became of some samples.

    Attributes:
        encoded: How many were encoded.
        bytes: Size of their rows.
        errors: Why others cannot be read, by their row in the catalog.
    """

    encoded: int = 0
    bytes: int = 0
    errors: Mapping[int, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples it tells of."""
        return self.encoded + len(self.errors)


Reports: TypeAlias = Generator[EncodeReport, None, None]


@dataclass(frozen=True, eq=False)
class _EncodedRows:
    """Rows that were encoded, and what is told of them; there may be none."""

    keys: Keys
    labels: Sequence[str]
    parts: Sequence[Mapping[str, object]]
    fields: Mapping[str, torch.Tensor]
    errors: Mapping[int, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.fields.values())


@dataclass(frozen=True)
class CaptionWorker:
    """Encodes captions; picklable, so that any engine can run it.

    Attributes:
        embeds: What encodes them, and where their rows are kept.
    """

    embeds: TextEmbedBackend

    def __call__(self, units: Iterable[Unit[str]], engine: Engine) -> Reports:
        """Encode units while the rows of earlier ones are written.

        Raises:
            CacheError: The encoder gave rows of another count or shape, or NaN.
            StorageError: A shard could not be published.
        """
        del engine
        made = (
            _EncodedRows(
                portion.keys,
                portion.samples,
                [{"caption": caption} for caption in portion.samples],
                self.embeds.encode(portion.samples),
            )
            for portion in chain.from_iterable(units)
        )
        return _stored(lambda: self.embeds.store.writer(recipe=self.embeds.recipe), made)


@dataclass(frozen=True)
class PictureWorker:
    """Reads and encodes pictures or clips; picklable, so that any engine can run it.

    Attributes:
        embeds: What encodes them, and where their rows are kept.
        reader: How they become pixels.
    """

    embeds: PictureEmbedBackend
    reader: MediaReader

    def __call__(self, units: Iterable[Unit[Picture]], engine: Engine) -> Reports:
        """Encode units while later pictures are read and the rows of earlier ones written.

        Raises:
            StorageError: The storage failed for reasons that are not one picture's own, or a
                shard could not be published.
            CacheError: The encoder gave rows of another count or shape, or NaN.
        """
        return _stored(
            lambda: self.embeds.store.writer(recipe=self.embeds.recipe(self.reader)),
            self._encoded(units, engine),
        )

    def _encoded(
        self, units: Iterable[Unit[Picture]], engine: Engine
    ) -> Generator[_EncodedRows, None, None]:
        batches = self._batches(units, engine)
        with Ahead(batches, size=_PixelBatch.size, limit=READY_BYTES, name="factory-read") as ahead:
            for batch in ahead:
                fields: Mapping[str, torch.Tensor] = {}
                if batch.pixels is not None:
                    fields = self.embeds.encode(batch.pixels, batch.labels)
                labels = batch.labels
                yield _EncodedRows(batch.keys, labels, self._parts(batch), fields, batch.errors)

    def _parts(self, batch: "_PixelBatch") -> list[dict[str, object]]:
        """Return what shaped each row, for `why`."""
        return rows_of(self.reader.parts(PictureColumns.of(batch.pictures)))

    def _batches(
        self, units: Iterable[Unit[Picture]], engine: Engine
    ) -> Generator["_PixelBatch", None, None]:
        wanted, read = tee(units)
        runs = ([p for portion in unit for p in portion.samples] for unit in read)
        storage = self.reader.storage
        with closing(read_pixels(self.reader, runs, engine)) as outcomes:
            for portion in chain.from_iterable(wanted):
                found = list(islice(outcomes, len(portion.samples)))
                errors = {
                    picture.row: sample_fault(
                        outcome, storage, f"reading {picture.key!r} in {storage.identity}"
                    ).fact
                    for picture, outcome in zip(portion.samples, found, strict=True)
                    if isinstance(outcome, Exception)
                }
                yield _batch(portion, found, errors)


@dataclass(frozen=True, eq=False)
class _PixelBatch:
    """Pictures that were read; `pixels` is uint8 [n, ...], or None where none could be."""

    keys: Keys
    pictures: list[Picture]
    pixels: torch.Tensor | None
    errors: dict[int, str]

    @property
    def labels(self) -> list[str]:
        return [picture.key for picture in self.pictures]

    def size(self) -> int:
        return 0 if self.pixels is None else self.pixels.nbytes


def _batch(
    portion: EncodeBatch[Picture],
    outcomes: list[NDArray[np.uint8] | Exception],
    errors: dict[int, str],
) -> _PixelBatch:
    places = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
    images = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    pictures = [portion.samples[n] for n in places]
    pixels = None
    if images:
        # Pinned, a GPU fetches them without a copy in between.
        pinned = torch.cuda.is_available()
        pixels = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=pinned)
        np.stack(images, out=pixels.numpy())
    return _PixelBatch(portion.keys[places], pictures, pixels, errors)


def _stored(
    open_writer: Callable[[], ShardWriter], made: Generator[_EncodedRows, None, None]
) -> Reports:
    """Write rows behind, and tell of them; all are published when the iterator has ended."""

    def write(rows: _EncodedRows) -> None:
        writer.add(rows.keys, rows.fields, labels=rows.labels, parts=rows.parts)

    with ExitStack() as stack:  # the last one first
        writer = stack.enter_context(open_writer())
        behind = stack.enter_context(Behind(write, limit=WRITING_BYTES, name="factory-write"))
        stack.callback(made.close)
        for rows in made:
            if rows.fields:
                behind.put(rows, rows.bytes)
            yield EncodeReport(len(rows.labels), rows.bytes, rows.errors)
