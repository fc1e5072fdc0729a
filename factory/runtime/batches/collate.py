"""Collation: from a request to the batch a training step receives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.encode_missing import EncodeCounts
from factory.backends.image_reader import ImageReader, LoadedSample, Tensors, VisionReader, reading
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.backends.streaming.source import StreamSource
from factory.engine.engine import Engine
from factory.runtime.batches.batch import Batch, Replacement
from factory.runtime.batches.buffer_pool import BufferPool
from factory.runtime.batches.conditioning import Partners
from factory.runtime.batches.quarantine import QuarantineLimit, none_left, too_many
from factory.runtime.batches.readers import SampleReader, sample_readers
from factory.runtime.batches.request import BatchMetadata, BatchRequest, Describe
from factory.runtime.batches.stream_collate import stream_batch
from factory.runtime.batches.substitution import Substitute, TooManyUnusableError, fill
from factory.sampling.substitutes import candidates


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

        What is not in the cache is encoded now. A picture that is damaged or gone is replaced
        by another one of its bucket, see `Batch.replaced`; where padding is marked (validation)
        the substitute is, too.

        Raises:
            CacheError: A latent or embedding that was encoded beforehand is missing or damaged,
                and cannot be encoded again; or an encoder gave unusable rows.
            QuarantineError: Too many samples cannot be used.
            StorageError: A storage, or a stream, cannot be read.
        """
        step = request.step
        stream = self.streams.get(step.backend)
        if stream is not None:
            return stream_batch(stream, request, self.engine, self.seed)
        source = self.sources[step.backend]
        describe: Describe = partial(BatchMetadata.of, source, seed=self.seed, epoch=step.epoch)
        known = request.metadata(describe)
        content = self._copied(source, request, known)
        if content is None:
            known, content = self._made(source, request, known, describe)
        return Batch(
            backend=step.backend,
            bucket=step.bucket,
            epoch=step.epoch,
            step=step.step,
            global_step=step.global_step,
            slider_strength=step.slider_strength,
            **known.fields(),
            **content,
        )

    def _copied(
        self, source: PreparedBackend, request: BatchRequest, known: BatchMetadata
    ) -> dict[str, Any] | None:
        """Return what else is in a batch where rows need only be copied, else None.

        That is so of every batch of a warm cache, and takes half as long as asking everyone.
        """
        latents, text = known.latents, known.text
        if source.conditioning or source.vision is not None:
            return None
        if latents is None or not latents.ready or (text is None) != (source.text is None):
            return None
        if text is not None and not text.ready:
            return None
        return {
            "valid": _valid(request, ()),
            "latents": latents.read(allocate=self.memory.tensor)["latents"],
            "text": {} if text is None else text.read(allocate=self.memory.tensor),
        }

    def _made(
        self,
        source: PreparedBackend,
        request: BatchRequest,
        known: BatchMetadata,
        describe: Describe,
    ) -> tuple[BatchMetadata, dict[str, Any]]:
        """Return what is known of the samples used, and what else is in their batch."""
        tally, allocate = EncodeCounts(), self.memory.tensor
        known, partners, values, substitutes = self._read(source, request, known, describe, tally)
        own = cast("torch.Tensor", values.pop(source.name))  # its samples are of one bucket
        latents = None if source.latents is None else own
        vision = VisionReader(self.engine, tally, allocate)
        beside = partners.gather(values, latents, known.crops.target)
        return known, {
            "valid": _valid(request, substitutes),
            "latents": latents,
            "pixels": own if source.latents is None else None,
            "text": source.read_text(known.captions, tally, located=known.text, allocate=allocate),
            "image_embeds": partners.image_embeds(known.rows, known.crops, vision),
            "conditioning": beside.tensors,
            "conditioning_valid": beside.valid,
            "conditioning_set": beside.drawn,
            "replaced": tuple(_replacement(source, request, each) for each in substitutes),
            # Last: captions and image embeddings are counted, too.
            "encoded": tally.encoded,
            "rebuilt": tally.rebuilt,
        }

    def _read(
        self,
        source: PreparedBackend,
        request: BatchRequest,
        known: BatchMetadata,
        describe: Describe,
        tally: EncodeCounts,
    ) -> tuple[BatchMetadata, Partners, dict[str, Tensors], list[Substitute]]:
        """Return what is known of the samples used, partners, values, and who stands in."""
        epoch, rows = request.step.epoch, known.rows

        def begin(each: PreparedBackend) -> ImageReader:
            return reading(each, self.engine, epoch, len(rows), tally, self.memory.tensor)

        everyone = sample_readers(source, begin)
        partners = self._partners(source, rows, epoch)
        stored = _stored(everyone, known, partners.rows)
        if stored is not None:
            return known, partners, stored, []
        substitutes = self._fill(source, request, everyone)
        if substitutes:
            for each in substitutes:
                rows[each.index] = each.used
            known, partners = describe(rows), self._partners(source, rows, epoch)
        return known, partners, {one.name: one.finish() for one in everyone}, substitutes

    def _partners(self, source: PreparedBackend, rows: NDArray[np.int64], epoch: int) -> Partners:
        theirs = source.partner_rows(rows, seed=self.seed, epoch=epoch)
        return Partners(source, len(rows), theirs)

    def _fill(
        self, source: PreparedBackend, request: BatchRequest, everyone: Sequence[SampleReader]
    ) -> list[Substitute]:
        """Have a sample for every place read by everyone; return what stands in for what."""

        def read(
            some: NDArray[np.int64],
        ) -> Iterator[tuple[LoadedSample | None, ...] | UnusableSample]:
            """Read some rows, planned or standing in, each with the partners that it has."""
            partners = self._partners(source, some, request.step.epoch)
            return _read_together(everyone, some, partners.rows)

        def put(place: int, pieces: Sequence[LoadedSample | None]) -> None:
            """Hand each its part of a sample while others are still being decoded."""
            for one, piece in zip(everyone, pieces, strict=True):
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
    everyone: Sequence[SampleReader],
    known: BatchMetadata,
    partners: Mapping[str, NDArray[np.int64]],
) -> dict[str, Tensors] | None:
    """Return what all give, if none of them has to read a sample."""
    found = {}
    # Pixels are never there; asked first, they keep others from gathering in vain.
    for one in sorted(everyone, key=lambda one: one.source.latents is not None):
        if one.name in partners:
            values = one.stored(partners[one.name])
        else:
            values = one.reading.stored(known.rows, known.crops, known.latents)
        if values is None:
            return None
        found[one.name] = values
    return found


def _read_together(
    everyone: Sequence[SampleReader],
    rows: NDArray[np.int64],
    partners: Mapping[str, NDArray[np.int64]],
) -> Iterator[tuple[LoadedSample | None, ...] | UnusableSample]:
    """Yield each row as all who give have it; what one lacks spoils the sample.

    Nothing is read, and None given, of a partner that a row has not.
    """
    streams = [one.read(partners.get(one.name, rows)) for one in everyone]
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
