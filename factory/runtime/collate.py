"""From planned rows to the batch a training step receives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.on_demand import Tally
from factory.backends.reading import Piece, Reading, reading
from factory.backends.source import Source, Unusable
from factory.backends.stream_source import StreamSource
from factory.bulk import Engine
from factory.cache.gathering import Empty
from factory.catalog.cuts import CutArrays
from factory.runtime.batch import Batch, Replacement
from factory.runtime.filling import StandIn, TooManyUnusableError, fill
from factory.runtime.memory import BatchMemory
from factory.runtime.part import Part
from factory.runtime.quarantine import QuarantineLimit, none_left, too_many
from factory.runtime.stream_batch import stream_batch
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

    sources: Mapping[str, Source]
    engine: Engine
    seed: int
    streams: Mapping[str, StreamSource] = field(default_factory=dict)
    limit: QuarantineLimit = field(default_factory=QuarantineLimit)
    known: dict[str, dict[int, Unusable]] = field(default_factory=dict)
    memory: BatchMemory = field(default_factory=BatchMemory)

    def __call__(self, part: Part) -> Batch:
        """Return the batch of a part of a planned step, in the order of its places.

        What is not in the cache is encoded now. A picture that is damaged or gone is replaced
        by another one of its bucket, see `Batch.replaced`; where padding is marked (validation)
        the substitute is, too.

        Raises:
            CacheError: A latent or embedding that was encoded beforehand is missing or damaged,
                and cannot be encoded again; or an encoder gave unusable rows.
            QuarantineError: Too many samples cannot be used.
            StorageError: A storage, or a stream, cannot be read.
        """
        step = part.step
        stream = self.streams.get(step.backend)
        if stream is not None:
            return stream_batch(stream, part, self.engine, self.seed)
        source = self.sources[step.backend]
        tally = Tally()
        rows, cuts, fields, stand_ins = self._read(source, part, tally)
        catalog, facts = source.catalog, source.catalog.facts
        captions = catalog.captions_of(rows, seed=self.seed, epoch=step.epoch)
        own, empty = fields.pop(source.name), self.memory.tensor
        size = np.stack([facts.take("width", rows), facts.take("height", rows)], axis=1)
        return Batch(
            backend=step.backend,
            bucket=step.bucket,
            epoch=step.epoch,
            step=step.step,
            global_step=step.global_step,
            rows=torch.from_numpy(rows),
            keys=facts.keys(rows),
            captions=captions,
            original_size=torch.from_numpy(size.astype(np.int32)),
            target_size=torch.from_numpy(cuts.target),
            crop_top_left=torch.from_numpy(cuts.crop),
            valid=torch.from_numpy(_valid(part, stand_ins)),
            latents=own.get("latents"),
            pixels=own.get("pixels"),
            text=source.read_text(captions, tally, empty=empty),
            image_embeds=_image_embeds(source, rows, cuts, empty),
            conditioning={name: _main(theirs) for name, theirs in fields.items()},
            slider_strength=step.slider_strength,
            replaced=tuple(_replacement(source, part, each) for each in stand_ins),
            encoded=tally.encoded,
            rebuilt=tally.rebuilt,
        )

    def _read(
        self, source: Source, part: Part, tally: Tally
    ) -> tuple[NDArray[np.int64], CutArrays, dict[str, dict[str, torch.Tensor]], list[StandIn]]:
        """Return the rows used, their cuts, fields by backend, and what stands in for what."""
        rows, epoch = part.rows, part.step.epoch
        everyone = _everyone(
            source,
            lambda each: reading(each, self.engine, epoch, len(rows), tally, self.memory.tensor),
        )
        cuts = source.cuts(rows, epoch)
        stored = _stored(everyone, rows, cuts)
        if stored is not None:
            return rows, cuts, stored, []
        stand_ins = self._fill(source, part, everyone)
        for each in stand_ins:
            rows[each.index] = each.substitute
        cuts = source.cuts(rows, epoch) if stand_ins else cuts
        return rows, cuts, {one.name: one.reading.finish() for one in everyone}, stand_ins

    def _fill(self, source: Source, part: Part, everyone: Sequence["_Giver"]) -> list[StandIn]:
        """Have a sample for every place read by everyone; return what stands in for what."""

        def put(place: int, pieces: Sequence[Piece]) -> None:
            """Hand each its part of a sample while others are still being decoded."""
            for one, piece in zip(everyone, pieces, strict=True):
                one.reading.put(place, piece)

        try:
            return fill(
                part.rows,
                lambda index: _draw(source, part, index),
                lambda some: _read_together(everyone, some),
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


class _Giver(NamedTuple):
    """A backend that gives to a batch: the one planned, or one it is conditioned on."""

    name: str
    reading: Reading
    partners: NDArray[np.int64] | None

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return its own rows for those of the backend planned."""
        return rows if self.partners is None else self.partners[rows]


def _everyone(source: Source, begin: Callable[[Source], Reading]) -> list[_Giver]:
    partners = source.conditioning.items()
    return [
        _Giver(source.name, begin(source), None),
        *(_Giver(name, begin(partner), rows) for name, (partner, rows) in partners),
    ]


def _stored(
    everyone: Sequence[_Giver], rows: NDArray[np.int64], cuts: CutArrays
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Return the fields of all who give, if none of them has to read a sample."""
    found = {}
    for one in everyone:
        # Partners are cut alike, but have their own way to say so.
        fields = one.reading.stored(one.rows(rows), cuts if one.partners is None else None)
        if fields is None:
            return None
        found[one.name] = fields
    return found


def _main(fields: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the latents among the fields of a conditioning backend, or the pixels."""
    return fields["latents"] if "latents" in fields else fields["pixels"]


def _read_together(
    everyone: Sequence[_Giver], rows: NDArray[np.int64]
) -> Iterator[tuple[Piece, ...] | Unusable]:
    """Yield each row as all who give have it; what one lacks spoils the sample."""
    streams = [one.reading.read(one.rows(rows)) for one in everyone]
    for outcomes in zip(*streams, strict=True):
        unusable = [outcome for outcome in outcomes if isinstance(outcome, Unusable)]
        pieces = tuple(outcome for outcome in outcomes if not isinstance(outcome, Unusable))
        yield unusable[0] if unusable else pieces


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


def _image_embeds(
    source: Source, rows: NDArray[np.int64], cuts: CutArrays, empty: Empty
) -> dict[str, torch.Tensor]:
    """Return embeddings of the samples' pictures by field, their partners' by backend and field."""
    found = source.read_image_embeds(rows, cuts, empty=empty)
    for name, (partner, partner_rows) in source.conditioning.items():
        fields = partner.read_image_embeds(partner_rows[rows], empty=empty)
        found |= {f"{name}.{field}": tensor for field, tensor in fields.items()}
    return found


def batch_bytes(batch: Batch) -> int:
    """Return how many bytes the tensors of a batch hold."""
    tensors: Sequence[torch.Tensor | None] = [
        batch.latents,
        batch.pixels,
        *batch.text.values(),
        *batch.image_embeds.values(),
        *batch.conditioning.values(),
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
