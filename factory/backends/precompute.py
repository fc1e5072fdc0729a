"""Encoding what a store of embeddings lacks, before training begins."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeds import PictureEmbedBackend, TextEmbedBackend
from factory.backends.picture import Picture, Reader
from factory.bulk import Engine
from factory.cache.writer import Writer
from factory.catalog.facts import NOT_READABLE
from factory.catalog.misfortune import is_own
from factory.errors import MediaError
from factory.telemetry import progress

# A picture to encode, and its pixels.
Job: TypeAlias = tuple[Picture, NDArray[np.uint8]]

# Pictures described at once while latents are looked for: each takes about a kilobyte.
PIECE = 2**16


def fill_captions(embeds: TextEmbedBackend, captions: Iterable[str]) -> int:
    """Encode the captions that are not in the store yet; return how many those were.

    Raises:
        CacheError: The encoder gave rows of another count or shape, or NaN.
    """
    wanted = list(dict.fromkeys(captions))
    keys = embeds.keys(wanted)
    missing = np.flatnonzero(~embeds.store.contains(keys)).tolist()
    with (
        progress(f"encode {embeds.name}", len(missing), "captions") as advance,
        embeds.store.writer(recipe=embeds.recipe) as writer,
    ):
        for places in embeds.batches([wanted[n] for n in missing]):
            batch = [missing[place] for place in places]
            labels = [wanted[n] for n in batch]
            writer.add(keys[batch], embeds.encode(labels), labels=labels)
            advance(len(batch))
    embeds.store.refresh()
    return len(missing)


def fill_pictures(
    embeds: PictureEmbedBackend,
    reader: Reader,
    pictures: Sequence[Picture],
    engine: Engine,
    title: str,
) -> tuple[int, dict[int, str]]:
    """Encode the pictures that are not in the store yet.

    Pictures are taken in the order given, which keeps those of one bucket together. While
    one batch is encoded, the engine reads and decodes the next ones. They are asked for
    `PIECE` at a time, and may be made then: all of a large backend need not be in memory.

    Returns:
        How many were encoded, and for rows that could not be read the reason.

    Raises:
        StorageError: The storage failed for reasons that are not one picture's own.
        CacheError: The encoder gave rows of another count or shape, or NaN.
    """
    missing = _missing(embeds, reader, pictures)
    errors: dict[int, str] = {}
    with (
        progress(f"encode {title}", len(missing), "pictures") as advance,
        embeds.store.writer(recipe=embeds.recipe(reader)) as writer,
    ):
        jobs = _readable(engine, reader, _chosen(pictures, missing), errors)
        for batch in _same_shape(jobs, embeds.batch_size):
            _encode(embeds, writer, reader, batch)
            advance(len(batch))
    embeds.store.refresh()
    return len(missing) - len(errors), errors


def _missing(
    embeds: PictureEmbedBackend, reader: Reader, pictures: Sequence[Picture]
) -> NDArray[np.int64]:
    """Return which pictures are not in the store, ascending: int64 [missing]."""
    found = [np.zeros(0, dtype=np.int64)]
    for at in range(0, len(pictures), PIECE):
        keys = embeds.keys(reader, pictures[at : at + PIECE])
        found.append(at + np.flatnonzero(~embeds.store.contains(keys)))
    return np.concatenate(found)


def _encode(embeds: PictureEmbedBackend, writer: Writer, reader: Reader, batch: list[Job]) -> None:
    pictures = [picture for picture, _ in batch]
    labels = [picture.key for picture in pictures]
    pixels = torch.from_numpy(np.stack([image for _, image in batch]))
    writer.add(embeds.keys(reader, pictures), embeds.encode(pixels, labels), labels=labels)


def _chosen(pictures: Sequence[Picture], numbers: NDArray[np.int64]) -> Iterator[Picture]:
    """Yield some of the pictures, whose numbers ascend, making no piece without one."""
    ends = np.searchsorted(numbers, range(PIECE, len(pictures) + PIECE, PIECE))
    for piece, here in enumerate(np.split(numbers, ends)[:-1]):
        if here.size:
            part = pictures[piece * PIECE : (piece + 1) * PIECE]
            yield from (part[number] for number in (here - piece * PIECE).tolist())


def _readable(
    engine: Engine, reader: Reader, wanted: Iterable[Picture], errors: dict[int, str]
) -> Iterator[Job]:
    """Yield (picture, pixels) of what can be read; note the reason of what cannot."""
    for picture, outcome in engine.map(reader, wanted):
        if not isinstance(outcome, Exception):
            yield picture, outcome
        elif isinstance(outcome, MediaError):
            errors[picture.row] = str(outcome)
        elif is_own(outcome, reader.storage):
            errors[picture.row] = f"{NOT_READABLE}: {outcome}"
        else:
            outcome.add_note(f"while reading {picture.key!r} in {reader.storage.identity}")
            raise outcome


def _same_shape(jobs: Iterator[Job], size: int) -> Iterator[list[Job]]:
    """Cut a stream into batches of equal shape and at most `size` pictures, but one clip."""
    batch: list[Job] = []
    for job in jobs:
        frames = math.prod(job[1].shape[:-3])
        full = (len(batch) + 1) * frames > size
        if batch and (full or batch[0][1].shape != job[1].shape):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch
