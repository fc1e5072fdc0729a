"""Collation: from a request to the batch a training step receives."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.encode_missing import EncodeCounts
from factory.backends.image_reader import LoadedSample, Tensors, VisionReader, reading
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.backends.streaming.source import StreamSource
from factory.cache.store import UnusableRowsError
from factory.engine.engine import Engine
from factory.runtime.batches.batch import Batch, Replacement
from factory.runtime.batches.buffer_pool import BufferPool
from factory.runtime.batches.conditioning import Partners, SampleReader
from factory.runtime.batches.quarantine import QuarantineLimit, none_left, too_many
from factory.runtime.batches.request import BatchMetadata, BatchRequest, Describe
from factory.runtime.batches.stream_collate import stream_batch
from factory.runtime.batches.substitution import Substitute, TooManyUnusableError, fill
from factory.sampling.substitutes import candidates

NO_SUBSTITUTES: Sequence[Substitute] = ()


@dataclass(frozen=True)
class Collate:
    """Puts batches together; safe to call from several threads.

    Attributes:
        sources: The backends made ready, by name.
        engine: Reads pixels that are not encoded yet, or are not to be.
        seed: Seed of the choice among a sample's captions.
        streams: The streams, by name.
        limit: How many samples may be unusable.
        known: Unusable samples met so far, by backend and row; not read again.
        memory: Where the large tensors of batches come from.
    """

    sources: Mapping[str, PreparedBackend]
    engine: Engine
    seed: int
    streams: Mapping[str, StreamSource] = field(default_factory=dict)
    limit: QuarantineLimit = field(default_factory=QuarantineLimit)
    known: dict[str, dict[int, UnusableSample]] = field(default_factory=dict)
    memory: BufferPool = field(default_factory=BufferPool)

    def __call__(self, request: BatchRequest) -> Batch:
        """Return the requested batch, samples in the order of its places.

        Rows that lie ready are copied, all else is read, and what is not in the cache encoded
        now. A picture that is damaged or gone is replaced by another one of its bucket, see
        `Batch.replaced`; where padding is marked (validation) the substitute is, too.

        Raises:
            CacheError: A latent or embedding that was encoded beforehand is missing or damaged,
                and cannot be encoded again; or an encoder gave unusable rows.
            QuarantineError: Too many samples cannot be used.
            StorageError: A storage, or a stream, cannot be read.
        """
        step = request.step
        if step.backend in self.streams:
            return stream_batch(self.streams[step.backend], request, self.engine, self.seed)
        source, allocate = self.sources[step.backend], self.memory.tensor
        describe: Describe = partial(BatchMetadata.of, source, seed=self.seed, epoch=step.epoch)
        known, counts = request.metadata(describe), EncodeCounts()
        partners, substitutes = Partners(source, len(request.places), {}), NO_SUBSTITUTES
        values: Mapping[str, Tensors] | None = None
        if known.latents is not None and known.latents.ready and not source.conditioning:
            # So it is for every batch of a warm cache.
            with suppress(UnusableRowsError):
                values = {source.name: known.latents.read(allocate=allocate)["latents"]}
        if values is None:
            known, partners, values, substitutes = self._read(
                source, request, known, describe, counts
            )
        own = cast("torch.Tensor", values[source.name])  # its samples are of one bucket
        latents, pixels = (own, None) if source.latents is not None else (None, own)
        beside = partners.gather(values, latents, known.crops.target)
        vision = VisionReader(self.engine, counts, allocate)
        return Batch(
            **request.fields(),
            **known.fields(),
            valid=_valid(request, substitutes),
            latents=latents,
            pixels=pixels,
            text=source.read_text(known.captions, counts, located=known.text, allocate=allocate),
            image_embeds=partners.image_embeds(known.rows, known.crops, vision),
            conditioning=beside.tensors,
            conditioning_valid=beside.valid,
            conditioning_set=beside.drawn,
            replaced=tuple(_replacement(source, request, each) for each in substitutes),
            # Last: captions and image embeddings are counted, too.
            encoded=counts.encoded,
            rebuilt=counts.rebuilt,
        )

    def _read(
        self,
        source: PreparedBackend,
        request: BatchRequest,
        known: BatchMetadata,
        describe: Describe,
        counts: EncodeCounts,
    ) -> tuple[BatchMetadata, Partners, Mapping[str, Tensors], Sequence[Substitute]]:
        """Gather samples and their partners where all are stored, else read them one by one.

        Returns:
            What is known of the samples used, their partners, the values of each backend, and
            which samples stand in for others.
        """
        epoch, rows, allocate = request.step.epoch, known.rows, self.memory.tensor
        readers = [
            SampleReader(each, reading(each, self.engine, epoch, len(rows), counts, allocate))
            for each in (source, *(partner for partner, _ in source.conditioning.values()))
        ]
        partners = self._partners(source, rows, epoch)
        stored = _stored(readers, known, partners.rows)
        if stored is not None:
            return known, partners, stored, NO_SUBSTITUTES
        substitutes = self._fill(source, request, readers)
        if substitutes:
            for each in substitutes:
                rows[each.index] = each.used
            known, partners = describe(rows), self._partners(source, rows, epoch)
        return known, partners, {one.name: one.finish() for one in readers}, substitutes

    def _partners(self, source: PreparedBackend, rows: NDArray[np.int64], epoch: int) -> Partners:
        theirs = source.partner_rows(rows, seed=self.seed, epoch=epoch)
        return Partners(source, len(rows), theirs)

    def _fill(
        self, source: PreparedBackend, request: BatchRequest, readers: Sequence[SampleReader]
    ) -> list[Substitute]:
        """Have every reader read a sample for every place; return which stand in for others."""

        def read(
            some: NDArray[np.int64],
        ) -> Iterator[tuple[LoadedSample | None, ...] | UnusableSample]:
            """Read some rows, planned or standing in, each with the partners that it has."""
            partners = self._partners(source, some, request.step.epoch)
            return _read_together(readers, some, partners.rows)

        def put(place: int, pieces: Sequence[LoadedSample | None]) -> None:
            """Hand each its part of a sample while others are still being decoded."""
            for one, piece in zip(readers, pieces, strict=True):
                one.put(place, piece)

        try:
            return fill(
                request.rows,
                lambda index: _draw(source, request, index),
                read,
                put,
                self.known.setdefault(source.name, {}),
                self.limit.allowed(len(source.catalog)),
            )
        except TooManyUnusableError as error:
            found = {
                source.catalog.facts.key(row): f"{why.stage} failed: {why.reason}"
                for row, why in error.met.items()
            }
            kept = len(source.catalog)
            if len(found) > self.limit.allowed(kept):
                raise too_many(source.name, found, kept, self.limit) from None
            raise none_left(source.name, found, request.step.bucket) from None


def _stored(
    readers: Sequence[SampleReader],
    known: BatchMetadata,
    partners: Mapping[str, NDArray[np.int64]],
) -> dict[str, Tensors] | None:
    """Return the values of all readers, if none of them has to read a sample."""
    found = {}
    # Pixels are never there; asked first, they keep others from gathering in vain.
    for one in sorted(readers, key=lambda one: one.source.latents is not None):
        if one.name in partners:
            values = one.stored(partners[one.name])
        else:
            values = one.reading.stored(known.rows, known.crops, known.latents)
        if values is None:
            return None
        found[one.name] = values
    return found


def _read_together(
    readers: Sequence[SampleReader],
    rows: NDArray[np.int64],
    partners: Mapping[str, NDArray[np.int64]],
) -> Iterator[tuple[LoadedSample | None, ...] | UnusableSample]:
    """Yield what all readers have of each row; what one of them cannot read spoils the sample.

    Of a partner that a row has not nothing is read, and None yielded.
    """
    streams = [one.read(partners.get(one.name, rows)) for one in readers]
    for outcomes in zip(*streams, strict=True):
        unusable = [outcome for outcome in outcomes if isinstance(outcome, UnusableSample)]
        pieces = tuple(outcome for outcome in outcomes if not isinstance(outcome, UnusableSample))
        yield unusable[0] if unusable else pieces


def _draw(source: PreparedBackend, request: BatchRequest, index: int) -> Iterator[int]:
    """Return who may stand in at a place: others of the bucket, those of the batch last.

    Never one that is excluded at this step.
    """
    step = request.step
    bucket = next(b for b in source.catalog.decisions.buckets if b.name == step.bucket)
    key = request.substitute_key(index)
    drawn = candidates(bucket.rows, key, frozenset(step.rows.tolist()))
    return (row for row in drawn if row not in step.barred)


def _replacement(
    source: PreparedBackend, request: BatchRequest, substitute: Substitute
) -> Replacement:
    why, facts = substitute.why, source.catalog.facts
    key = facts.key(substitute.row)
    partner = "" if why.backend == source.name else f"its partner {why.key} in {why.backend}: "
    return Replacement(
        place=int(request.places[substitute.index]),
        row=substitute.row,
        key=key,
        stage=why.stage,
        reason=partner + why.reason,
        substitute=substitute.used,
        substitute_key=facts.key(substitute.used),
    )


def _valid(request: BatchRequest, substitutes: Sequence[Substitute]) -> torch.Tensor:
    """Return which samples count, bool [B]: in validation no substitute does."""
    if request.valid is None:
        return torch.ones(len(request.places), dtype=torch.bool, device="cpu")
    valid = request.valid.copy()
    valid[[each.index for each in substitutes]] = False
    return torch.from_numpy(valid)


def batch_bytes(batch: Batch) -> int:
    """Return how many bytes the tensors of a batch hold."""
    beside = batch.conditioning.values()
    tensors: Sequence[torch.Tensor | None] = [
        batch.latents,
        batch.pixels,
        *batch.text.values(),
        *batch.image_embeds.values(),
        *(tensor for one in beside for tensor in (one if isinstance(one, list) else [one])),
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
