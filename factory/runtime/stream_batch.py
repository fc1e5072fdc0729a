"""From a stream's samples to the batch a training step receives."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.picture import ReadPicture
from factory.backends.stream_source import StreamSource
from factory.backends.waiting import StreamSample
from factory.bulk import Engine
from factory.catalog.caption_draws import choose, dropped
from factory.errors import MediaError
from factory.runtime.batch import Batch
from factory.sampling.plan import PlanStep

logger = logging.getLogger("factory")

# Encoders are modules of torch, on a device: asked by one thread at a time.
_ENCODING = threading.Lock()


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


def stream_batch(
    source: StreamSource, step: PlanStep, rows: NDArray[np.int64], engine: Engine, seed: int
) -> Batch:
    """Return the batch of some rows of a stream's planned step, in their order.

    A picture that turns out damaged is replaced by another one of these rows, and logged:
    nobody has looked at it before.

    Args:
        source: The stream.
        step: The planned step.
        rows: This rank's share of its rows, int64 [B].
        engine: Decodes the pictures.
        seed: Seed of the choice among a sample's captions.

    Raises:
        MediaError: All pictures are damaged.
        StorageError: The stream cannot be read.
    """
    made = source.batch(step.epoch, step.number)
    wanted = [made.samples[place] for place in (rows - step.rows[0]).tolist()]
    samples, pixels = _read(source, wanted, engine)
    captions = [_caption(source, sample, seed, step.epoch) for sample in samples]
    encoded = _encode(source, pixels)
    cuts = [sample.picture.cut for sample in samples]
    return Batch(
        backend=step.backend,
        bucket=made.bucket,
        epoch=step.epoch,
        step=step.step,
        keys=[sample.picture.key for sample in samples],
        captions=captions,
        original_size=torch.tensor([sample.size for sample in samples], dtype=torch.int32),
        target_size=torch.tensor([cut.target for cut in cuts], dtype=torch.int32),
        crop_top_left=torch.tensor([cut.crop for cut in cuts], dtype=torch.int32),
        valid=torch.ones(len(samples), dtype=torch.bool),
        latents=encoded,
        pixels=pixels if encoded is None else None,
        text=_encode_text(source, captions),
        slider_strength=step.slider_strength,
    )


def _caption(source: StreamSource, sample: StreamSample, seed: int, epoch: int) -> str:
    """Return the caption a sample has in an epoch, by the rule of stored samples."""
    key = sample.picture.key
    if dropped(source.backend.caption.dropout, seed=seed, epoch=epoch, key=key):
        return ""
    return choose(sample.captions, seed=seed, epoch=epoch, key=key)


def _read(
    source: StreamSource, wanted: Sequence[StreamSample], engine: Engine
) -> tuple[list[StreamSample], torch.Tensor]:
    """Return the samples that are used, and their pixels, uint8 [B, H, W, 3]."""
    reader = ReadSample(source.backend.picture_reader)
    good: list[tuple[StreamSample, NDArray[np.uint8]]] = []
    damaged: dict[int, MediaError] = {}
    for place, (sample, outcome) in enumerate(engine.map(reader, wanted)):
        if isinstance(outcome, MediaError):
            damaged[place] = outcome
            logger.warning(
                "stream %s: %s is damaged (%s); another sample of its batch stands in",
                source.name, sample.picture.key, outcome,
            )  # fmt: skip
        elif isinstance(outcome, Exception):
            outcome.add_note(f"while reading {sample.picture.key!r} of stream {source.name!r}")
            raise outcome
        else:
            good.append((sample, outcome))
    if not good:
        error = next(iter(damaged.values()))
        error.add_note(f"and so are all {len(wanted)} samples of a batch of {source.name!r}")
        raise error
    whole = tuple(good)
    for number, place in enumerate(damaged):
        good.insert(place, whole[number % len(whole)])
    return [sample for sample, _ in good], torch.from_numpy(np.stack([p for _, p in good]))


def _encode(source: StreamSource, pixels: torch.Tensor) -> torch.Tensor | None:
    """Return latents [B, C, h, w] where an image encoder is set."""
    store = source.latents
    if store is None:
        return None
    with _ENCODING, torch.no_grad():
        parts = [store.encoder.encode(part) for part in torch.split(pixels, store.batch_size)]
        return torch.cat([part["latents"] for part in parts]).cpu()


def _encode_text(source: StreamSource, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the fields of the captions, [B, ...], where a text encoder is set."""
    if source.text is None:
        return {}
    with _ENCODING, torch.no_grad():
        fields = source.text.encoder.encode(list(captions))
        return {name: field.cpu() for name, field in fields.items()}
