"""From planned rows to the batch a training step receives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.source import Source, Unusable
from factory.backends.stream_source import StreamSource
from factory.bulk import Engine
from factory.runtime.batch import Batch, Replacement
from factory.runtime.conditioning import Partners, Pile
from factory.runtime.filling import StandIn, TooManyUnusableError, fill
from factory.runtime.part import Part
from factory.runtime.quarantine import QuarantineLimit, none_left, too_many
from factory.runtime.stream_batch import stream_batch
from factory.sampling.substitutes import candidates

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Collate:
    """Puts batches together; safe to call from several threads.

    Attributes:
        sources: The backends made ready, by name.
        engine: Reads pixels where no image encoder is set.
        seed: Seed of the choice among a sample's captions.
        streams: The streams, by name.
        limit: How many samples may be unusable.
        known: Unusable samples met so far, by backend and row; not read again.
    """

    sources: Mapping[str, Source]
    engine: Engine
    seed: int
    streams: Mapping[str, StreamSource] = field(default_factory=dict)
    limit: QuarantineLimit = field(default_factory=QuarantineLimit)
    known: dict[str, dict[int, Unusable]] = field(default_factory=dict)

    def __call__(self, part: Part) -> Batch:
        """Return the batch of a part of a planned step, in the order of its places.

        A picture that is damaged or gone is replaced by another one of its bucket, see
        `Batch.replaced`; where padding is marked (validation) the substitute is, too.

        Raises:
            CacheError: A latent or embedding is missing or damaged.
            QuarantineError: Too many samples cannot be used.
            StorageError: A storage, or a stream, cannot be read.
        """
        step = part.step
        stream = self.streams.get(step.backend)
        if stream is not None:
            return stream_batch(stream, part, self.engine, self.seed)
        source = self.sources[step.backend]
        partners = Partners(source, self.seed, step.epoch)
        rows, pixels, stand_ins = self._read(source, part, partners)
        catalog = source.catalog
        facts, cuts = catalog.facts, catalog.cuts(rows)
        captions = [catalog.caption(row, seed=self.seed, epoch=step.epoch) for row in rows.tolist()]
        latents = None if source.latents is None else source.read_latents(rows, cuts)["latents"]
        beside = partners.gather(rows, pixels, latents, cuts.target)
        size = np.stack([facts.take("width", rows), facts.take("height", rows)], axis=1)
        return Batch(
            backend=step.backend,
            bucket=step.bucket,
            epoch=step.epoch,
            step=step.step,
            global_step=step.global_step,
            rows=torch.from_numpy(rows),
            keys=facts.texts("key", rows),
            captions=captions,
            original_size=torch.from_numpy(size.astype(np.int32)),
            target_size=torch.from_numpy(cuts.target),
            crop_top_left=torch.from_numpy(cuts.crop),
            valid=torch.from_numpy(_valid(part, stand_ins)),
            latents=latents,
            pixels=None if latents is not None else pixels[source.name].tensor,
            text=source.read_text(captions),
            conditioning=beside.tensors,
            conditioning_valid=beside.valid,
            conditioning_set=beside.drawn,
            slider_strength=step.slider_strength,
            replaced=tuple(_replacement(source, part, each) for each in stand_ins),
        )

    def _read(
        self, source: Source, part: Part, partners: Partners
    ) -> tuple[NDArray[np.int64], dict[str, Pile], list[StandIn]]:
        """Return the rows that are used, pixels by backend, and what stands in for what."""
        rows = part.rows
        wanted = partners.read_as_pixels()
        piles = {each.name: Pile(len(rows)) for each in wanted}
        if not wanted:
            return rows, piles, []

        def put(place: int, pixels: Sequence[Pixels | None]) -> None:
            """Copy a sample to its place while others are still being decoded."""
            for pile, image in zip(piles.values(), pixels, strict=True):
                if image is not None:
                    pile.put(place, image)

        try:
            stand_ins = fill(
                rows,
                lambda index: _draw(source, part, index),
                lambda some: _read_together(wanted, some, partners.rows(some), self.engine),
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
            raise none_left(source.name, found, part.step.bucket) from None
        for each in stand_ins:
            rows[each.index] = each.substitute
        return rows, piles, stand_ins


def _read_together(
    wanted: Sequence[Source],
    rows: NDArray[np.int64],
    partners: Mapping[str, NDArray[np.int64]],
    engine: Engine,
) -> Iterator[tuple[Pixels | None, ...] | Unusable]:
    """Yield the pixels of each row from all who are read; what one lacks spoils the sample.

    Nothing is read, and None given, of a partner that a row has not.
    """
    streams = [_read_those(each, partners.get(each.name, rows), engine) for each in wanted]
    for outcomes in zip(*streams, strict=True):
        unusable = [outcome for outcome in outcomes if isinstance(outcome, Unusable)]
        pixels = tuple(outcome for outcome in outcomes if not isinstance(outcome, Unusable))
        yield unusable[0] if unusable else pixels


def _read_those(
    source: Source, rows: NDArray[np.int64], engine: Engine
) -> Iterator[Pixels | Unusable | None]:
    read = source.samples(rows[rows >= 0], engine)
    return (next(read) if row >= 0 else None for row in rows.tolist())


def _draw(source: Source, part: Part, index: int) -> Iterator[int]:
    """Return who may stand in at a place: others of the bucket, those of the batch last.

    Never one that is excluded at this step.
    """
    step = part.step
    bucket = next(b for b in source.catalog.decisions.buckets if b.name == step.bucket)
    key = part.substitute_key(index)
    drawn = candidates(bucket.rows, key, frozenset(step.rows.tolist()))
    return (row for row in drawn if row not in step.barred)


def _replacement(source: Source, part: Part, stand_in: StandIn) -> Replacement:
    why, facts = stand_in.why, source.catalog.facts
    key = facts.key(stand_in.row)
    partner = "" if why.backend == source.name else f"its partner {why.key} in {why.backend}: "
    return Replacement(
        place=int(part.places[stand_in.index]),
        row=stand_in.row,
        key=key,
        stage=why.stage,
        reason=partner + why.reason,
        substitute=stand_in.substitute,
        substitute_key=facts.key(stand_in.substitute),
    )


def _valid(part: Part, stand_ins: Sequence[StandIn]) -> NDArray[np.bool_]:
    """Return which samples count, bool [B]: in validation no substitute does."""
    if part.valid is None:
        return np.ones(len(part.places), dtype=np.bool_)
    valid = part.valid.copy()
    valid[[each.index for each in stand_ins]] = False
    return valid


def batch_bytes(batch: Batch) -> int:
    """Return how many bytes the tensors of a batch hold."""
    beside = batch.conditioning.values()
    tensors: Sequence[torch.Tensor | None] = [
        batch.latents,
        batch.pixels,
        *batch.text.values(),
        *(tensor for one in beside for tensor in (one if isinstance(one, list) else [one])),
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
