"""Conditioning images generated from a source's images: readers, and a store of embeddings."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeddings import ImageEmbedBackend
from factory.backends.pixels import ByteReader, MediaReader, Picture, PictureColumns
from factory.cache.store import TensorStore
from factory.cache.write_buffer import WriteBuffer
from factory.conditioning.generator import (
    BatchGenerator,
    Generator,
    as_rgb,
    check_made,
    drawing,
)
from factory.media.decode_limits import DecodeLimits
from factory.storage.base import Storage

# Models of torch, on a device: asked by one thread at a time.
_GENERATING = threading.Lock()
# Dimensions of one picture; a clip has frames in front.
_PICTURE_DIMS = 3


@dataclass(frozen=True)
class ReadUngenerated:
    """Reads the pictures a `BatchGenerator` begins with; picklable.

    What is generated of them is made batch by batch, see `GeneratedEmbeds`; it is named here
    already, so that keys of caches are those of the result.

    Attributes:
        source: How samples of the source become pixels.
        generator: What makes conditioning pictures of them.
        seed: Seed of what it draws.
    """

    source: MediaReader
    generator: Generator
    seed: int

    @property
    def takes_bytes(self) -> bool:
        """As the source's."""
        return self.source.takes_bytes

    @property
    def limits(self) -> DecodeLimits:
        """Those of the source."""
        return cast("ByteReader", self.source).limits

    @property
    def storage(self) -> Storage:
        """Where the source's objects are."""
        return self.source.storage

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes every picture: what shapes the source's, and the generator."""
        made = dict(self.generator.fingerprint)
        if self.generator.random:
            made["seed"] = self.seed
        return {**self.source.recipe, "generator": made}

    def parts(self, pictures: PictureColumns) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
        """Return what shapes each picture, as columns: what shapes the source's."""
        return self.source.parts(pictures)

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size, as the source's reader does; see there."""
        return self.made(self.source(picture), picture)

    def shaped(self, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size from a picture's bytes.

        Raises:
            MediaError: They are not the picture they claim to be.
        """
        return self.made(cast("ByteReader", self.source).shaped(data, picture), picture)

    def made(self, pixels: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:  # noqa: ARG002 - for subclasses
        """Return what is made of the pixels of a sample."""
        return pixels


@dataclass(frozen=True)
class ReadGenerated(ReadUngenerated):
    """Reads pictures and makes conditioning of each one; picklable, so that any engine can."""

    def made(self, pixels: NDArray[np.uint8], picture: Picture) -> NDArray[np.uint8]:
        """Return what is made of a picture [H, W, 3], or of each frame of a clip, as RGB.

        Raises:
            ValueError: The generator gave something else than it promises.
        """
        frames = pixels.reshape(-1, *pixels.shape[-_PICTURE_DIMS:])
        each = [
            check_made(self.generator(one, drawing(self.seed, picture.key)), one, self.generator)
            for one in frames
        ]
        made = as_rgb(np.stack(each))
        return np.ascontiguousarray(made.reshape(pixels.shape))


@dataclass(kw_only=True)
class GeneratedEmbeds(ImageEmbedBackend):
    """A store whose rows are made by a `BatchGenerator` first, and then encoded.

    Attributes:
        of: The store its rows are kept in; its cache and encoder are those of this one.
        generator: What makes conditioning pictures.
        seed: Seed of what it draws.
    """

    of: ImageEmbedBackend
    generator: BatchGenerator
    seed: int

    @property
    def store(self) -> TensorStore:
        """The tensors encoded so far, shared with others that use the store."""
        return self.of.store

    @property
    def write_buffer(self) -> WriteBuffer:
        """The tensors encoded by this process that are not in the store yet, likewise shared."""
        return self.of.write_buffer

    def release(self) -> None:
        """Free the memory of the encoder, and of the generator."""
        super().release()
        self.generator.release()

    def encode(self, pixels: torch.Tensor, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Generate and encode samples of one bucket to the fields of their rows.

        Args:
            pixels: The source's uint8 RGB [B, H, W, 3], or [B, F, H, W, 3] of clips.
            labels: Storage keys of the samples, B long.

        Raises:
            ValueError: The generator gave something else than it promises.
            Exception: The generator or the encoder failed; a note says what it was given.
        """
        frames = pixels.numpy().reshape(-1, *pixels.shape[-_PICTURE_DIMS:])
        each = len(frames) // len(labels)
        draws = [drawing(self.seed, key) for key in labels for _ in range(each)]
        made = []
        with _GENERATING, torch.no_grad(), self.encoding(labels):
            for at in range(0, len(frames), self.batch_size):
                part = slice(at, at + self.batch_size)
                given = self.generator.generate_batch(frames[part], draws[part])
                made.append(check_made(given, frames[part], self.generator))
        rgb = np.ascontiguousarray(as_rgb(np.concatenate(made)).reshape(pixels.shape))
        return super().encode(torch.from_numpy(rgb), labels)


def generated_embeds(
    of: ImageEmbedBackend, generator: BatchGenerator, seed: int
) -> GeneratedEmbeds:
    """Return a store of what a generator makes, kept where others are."""
    return GeneratedEmbeds(
        name=of.name, cache=of.cache, batch_size=of.batch_size, encoder=of.encoder,
        of=of, generator=generator, seed=seed,
    )  # fmt: skip
