"""Collation of streams: from their samples to the batch a training step receives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.encode_missing import EncodeCounts, EncodedRows, RowRequest, read_captions
from factory.backends.encode_mode import EncodeMode
from factory.backends.pixels import ReadPicture
from factory.backends.prepared import UnusableSample
from factory.backends.streaming.blocks import StreamSample
from factory.backends.streaming.source import StreamSource
from factory.cache.format.recipe import recipe_keys
from factory.catalog.captions.draws import choose, dropped
from factory.catalog.scan.sample_fault import sample_fault
from factory.engine.engine import Engine
from factory.errors import MediaError
from factory.runtime.batches.batch import Batch, Replacement
from factory.runtime.batches.request import BatchRequest
from factory.runtime.batches.substitution import Substitute, TooManyUnusableError, fill
from factory.sampling.substitutes import candidates


@dataclass(frozen=True)
class ReadSample:
    """Turns a waiting sample into pixels; picklable, so that any engine can run it.

    Attributes:
        reader: How the stream's pictures are decoded and cut.
    """

    reader: ReadPicture

    def __call__(self, sample: StreamSample) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The bytes are not the picture they claim to be.
        """
        return self.reader.shaped(sample.data, sample.picture)


def stream_batch(source: StreamSource, request: BatchRequest, engine: Engine, seed: int) -> Batch:
    """Return the requested batch of a stream, samples in the order of its places.

    A picture that turns out damaged, since nobody has looked at it before, is replaced by
    another one of its global batch.

    Args:
        source: The stream.
        request: Says which samples of a planned step.
        engine: Decodes the pictures.
        seed: Seed of the choice among a sample's captions.

    Raises:
        MediaError: All pictures of the global batch are damaged.
        StorageError: The stream cannot be read.
    """
    step = request.step
    made = source.batch(step.epoch, step.number)
    pixels, substitutes = _read(source, made.samples, request, engine)
    places = request.places.copy()
    for each in substitutes:
        places[each.index] = each.used
    samples = [made.samples[place] for place in places.tolist()]
    captions = [_caption(source, sample, seed, step.epoch) for sample in samples]
    keys = [sample.picture.key for sample in samples]
    tally = EncodeCounts()
    encoded = _encode(source, pixels, samples, tally)
    crops = [sample.picture.crop for sample in samples]
    text: dict[str, torch.Tensor] = {}
    if source.text is not None:
        text = read_captions(source.text, captions, EncodeMode.transient, source.name, tally)
    vision = {} if source.vision is None else source.vision.encode(pixels, keys)
    return Batch(
        **{**request.fields(), "bucket": made.bucket},
        rows=torch.from_numpy(step.rows[places]),
        keys=keys,
        captions=captions,
        original_size=torch.tensor([sample.size for sample in samples], dtype=torch.int32),
        target_size=torch.tensor([crop.target for crop in crops], dtype=torch.int32),
        crop_top_left=torch.tensor([crop.offset for crop in crops], dtype=torch.int32),
        valid=torch.ones(len(samples), dtype=torch.bool),
        latents=encoded,
        pixels=pixels if encoded is None else None,
        text=text,
        image_embeds={name: field.cpu() for name, field in vision.items()},
        replaced=tuple(_replacement(made.samples, step.rows, each) for each in substitutes),
        encoded=tally.encoded,
    )


def _caption(source: StreamSource, sample: StreamSample, seed: int, epoch: int) -> str:
    """Return the caption a sample has in an epoch, by the rule of stored samples."""
    key = sample.picture.key
    if dropped(source.backend.caption.dropout, seed=seed, epoch=epoch, key=key):
        return ""
    return choose(sample.captions, seed=seed, epoch=epoch, key=key)


def _read(
    source: StreamSource, samples: Sequence[StreamSample], request: BatchRequest, engine: Engine
) -> tuple[torch.Tensor, list[Substitute]]:
    """Return pixels, uint8 [B, H, W, 3], and which samples of the batch stand in for others."""
    reader = ReadSample(source.backend.picture_reader)
    good: dict[int, NDArray[np.uint8]] = {}

    def read(places: NDArray[np.int64]) -> Iterator[NDArray[np.uint8] | UnusableSample]:
        """Decode the samples at some places of the global batch."""
        wanted = [samples[place] for place in places.tolist()]
        for sample, outcome in engine.map(reader, wanted):
            key = sample.picture.key
            if isinstance(outcome, Exception):
                work = f"reading {key!r} of stream {source.name!r}"
                fault = sample_fault(outcome, source.backend.storage, work)
                yield UnusableSample(source.name, key, *fault)
            else:
                yield outcome

    def draw(index: int) -> Iterator[int]:
        """Return who may stand in: any other of the global batch, on whichever rank it is."""
        return candidates(np.arange(len(samples)), request.substitute_key(index))

    try:
        substitutes = fill(request.places, draw, read, good.__setitem__, {}, len(samples))
    except TooManyUnusableError as error:
        first = next(iter(error.met.values()))
        raise MediaError(
            first.reason, f"{first.key}, and so are all {len(samples)} samples of a batch of "
            f"stream {source.name!r}"
        ) from None  # fmt: skip
    return torch.from_numpy(np.stack([good[index] for index in range(len(good))])), substitutes


def _replacement(
    samples: Sequence[StreamSample], rows: NDArray[np.int64], substitute: Substitute
) -> Replacement:
    return Replacement(
        place=substitute.row,
        row=int(rows[substitute.row]),
        key=samples[substitute.row].picture.key,
        stage=substitute.why.stage,
        reason=substitute.why.reason,
        substitute=int(rows[substitute.used]),
        substitute_key=samples[substitute.used].picture.key,
    )


def _encode(
    source: StreamSource, pixels: torch.Tensor, samples: Sequence[StreamSample], tally: EncodeCounts
) -> torch.Tensor | None:
    """Return latents [B, C, h, w] where an image encoder is set."""
    store = source.latents
    if store is None:
        return None
    labels = [sample.picture.key for sample in samples]
    # A sample is identified by its row in the dataset; names may come twice.
    keys = recipe_keys({}, [{"row": sample.picture.row} for sample in samples])
    rows, wanted = (
        EncodedRows(store, EncodeMode.transient, source.name),
        RowRequest(keys, labels, {}),
    )

    def encode(places: Sequence[int]) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
        """Encode the samples at some places."""
        yield places, store.encode(pixels[list(places)], [labels[place] for place in places])

    return rows.complete(wanted, rows.find(wanted), encode, tally)["latents"]
