"""Backends of embeddings: an encoder, and the store its rows are kept in."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.picture import Picture, Reader
from factory.bulk import Engine
from factory.cache.place import CachePlace
from factory.cache.recipe import Keys, recipe_keys
from factory.cache.store import TensorStore, Writer
from factory.catalog.facts import NOT_READABLE
from factory.catalog.misfortune import is_own
from factory.encoder.base import ImageEncoder, TextEncoder
from factory.errors import CacheError, MediaError
from factory.telemetry import progress

# A picture to encode, and its pixels.
Job: TypeAlias = tuple[Picture, NDArray[np.uint8]]

# Pictures described at once while latents are looked for: each takes about a kilobyte.
PIECE = 2**16


@dataclass(kw_only=True)
class EmbedBackend:
    """A store of embeddings; its two kinds differ in what they encode.

    Attributes:
        name: The backend's name, unique in a run.
        cache: Where the tensors are kept.
        default: Used by every backend that names no other.
        batch_size: Samples encoded at once.
    """

    name: str
    cache: CachePlace
    default: bool = False
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse a batch of nothing."""
        if self.batch_size < 1:
            raise ValueError(
                f"data.backends.{self.name}.batch_size must be at least 1, got {self.batch_size}"
            )

    @cached_property
    def store(self) -> TensorStore:
        """The tensors encoded so far."""
        return self.cache.store(self.name)

    @contextmanager
    def encoding(self, labels: Sequence[str]) -> Iterator[None]:
        """Say, if the encoder fails, what it was given, and what helps against full memory.

        Args:
            labels: Storage keys or captions of what is encoded at once.
        """
        try:
            yield
        except Exception as error:
            memory = (
                f"; they do not fit into memory: lower data.backends.{self.name}.batch_size="
                f"{self.batch_size}"
                if _is_out_of_memory(error)
                else ""
            )
            error.add_note(
                f"while the encoder of {self.name!r} had {len(labels)} samples at once, the first "
                f"{labels[0]!r}{memory}"
            )
            raise

    def close(self) -> None:
        """Let go of memory maps, and close the cache's storage."""
        self.store.close()
        self.cache.storage.close()


@dataclass(kw_only=True)
class TextEmbedBackend(EmbedBackend):
    """Captions encoded once, shared by every backend that uses them.

    Attributes:
        encoder: What makes the embeddings.
    """

    encoder: TextEncoder
    batch_size: int = 64

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shaped every row of this store, whatever its caption."""
        return {"kind": "text", "encoder": self.encoder.fingerprint}

    def keys(self, captions: Sequence[str]) -> Keys:
        """Return the recipe key of each caption, 16 bytes each."""
        return recipe_keys(self.recipe, [{"caption": caption} for caption in captions])

    def fill(self, captions: Iterable[str]) -> int:
        """Encode the captions that are not in the store yet; return how many those were.

        Raises:
            CacheError: The encoder gave rows of another count or shape, or NaN.
        """
        wanted = list(dict.fromkeys(captions))
        keys = self.keys(wanted)
        missing = np.flatnonzero(~self.store.contains(keys)).tolist()
        with (
            progress(f"encode {self.name}", len(missing), "captions") as advance,
            self.store.writer(recipe=self.recipe) as writer,
        ):
            for batch in _batches(missing, self.batch_size):
                labels = [wanted[n] for n in batch]
                with self.encoding(labels):
                    fields = self.encoder.encode(labels)
                writer.add(keys[batch], fields, labels=labels)
                advance(len(batch))
        self.store.refresh()
        return len(missing)

    def gather(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the fields of the captions, [B, ...] in their order."""
        return self.store.gather(self.keys(captions))


@dataclass(kw_only=True)
class ImageEmbedBackend(EmbedBackend):
    """Pictures, and frames of clips, encoded to latents once.

    Attributes:
        encoder: What makes the latents.
        batch_size: Pictures encoded at once; each frame of a clip is one.
    """

    encoder: ImageEncoder

    def recipe(self, reader: Reader) -> Mapping[str, object]:
        """Return what shaped every row that a reader's pictures have in this store."""
        return {"kind": "latents", "encoder": self.encoder.fingerprint, **reader.recipe}

    def keys(self, reader: Reader, pictures: Sequence[Picture]) -> Keys:
        """Return the recipe key of each picture, 16 bytes each."""
        return recipe_keys(self.recipe(reader), [reader.parts(p) for p in pictures])

    def fill(
        self, reader: Reader, pictures: Sequence[Picture], engine: Engine, title: str
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
        missing = self._missing(reader, pictures)
        errors: dict[int, str] = {}
        with (
            progress(f"encode {title}", len(missing), "pictures") as advance,
            self.store.writer(recipe=self.recipe(reader)) as writer,
        ):
            jobs = _readable(engine, reader, _chosen(pictures, missing), errors)
            for batch in _same_shape(jobs, self.batch_size):
                self._encode(writer, reader, batch)
                advance(len(batch))
        self.store.refresh()
        return len(missing) - len(errors), errors

    def _missing(self, reader: Reader, pictures: Sequence[Picture]) -> NDArray[np.int64]:
        """Return which pictures are not in the store, ascending: int64 [missing]."""
        found = [np.zeros(0, dtype=np.int64)]
        for at in range(0, len(pictures), PIECE):
            keys = self.keys(reader, pictures[at : at + PIECE])
            found.append(at + np.flatnonzero(~self.store.contains(keys)))
        return np.concatenate(found)

    def _encode(self, writer: Writer, reader: Reader, batch: list[Job]) -> None:
        pictures = [picture for picture, _ in batch]
        labels = [picture.key for picture in pictures]
        pixels = torch.from_numpy(np.stack([image for _, image in batch]))
        with self.encoding(labels):
            fields = self._encode_frames(pixels)
        if "latents" not in fields:
            raise CacheError(
                f"image encoder of {self.name!r} gave the fields {sorted(fields)} for "
                f"{labels[0]!r}; it must give 'latents'"
            )
        writer.add(self.keys(reader, pictures), fields, labels=labels)

    def _encode_frames(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode pictures [B, H, W, 3], or clips [B, F, H, W, 3] picture by picture."""
        rows = pixels.shape[:-3]
        parts = torch.split(pixels.flatten(0, -4), self.batch_size)
        encoded = [self.encoder.encode(part) for part in parts]
        fields = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        if len(rows) == 1 or any(len(field) != rows.numel() for field in fields.values()):
            return fields  # the writer refuses what has too few rows, or too many
        return {name: field.reshape(*rows, *field.shape[1:]) for name, field in fields.items()}

    def gather(self, reader: Reader, pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
        """Return the fields of pictures of one bucket, [B, ...] in their order."""
        return self.store.gather(self.keys(reader, pictures))


def _is_out_of_memory(error: Exception) -> bool:
    # The allocator of the CPU raises a plain RuntimeError, told by its words alone.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    stream = iter(numbers)
    while batch := list(islice(stream, size)):
        yield batch
