"""Backends of embeddings: an encoder, and the store its rows are kept in."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from factory.backends.picture import Picture, Reader
from factory.cache.gathering import Empty, new_memory
from factory.cache.place import CachePlace
from factory.cache.recipe import Keys, recipe_keys
from factory.cache.store import TensorStore
from factory.encoder.base import ImageEncoder, TextEncoder
from factory.errors import CacheError

# Encoders are modules of torch, on a device: asked by one thread at a time.
_ENCODING = threading.Lock()


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
        return recipe_keys(self.recipe, {"caption": captions})

    def batches(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """Yield the places of captions that are encoded together, each place once."""
        for start in range(0, len(captions), self.batch_size):
            yield list(range(start, min(start + self.batch_size, len(captions))))

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to the fields of their rows, [B, ...] on any device.

        Raises:
            Exception: The encoder failed; a note says what it was given.
        """
        with _ENCODING, torch.no_grad(), self.encoding(captions):
            return self.encoder.encode(captions)

    def gather(
        self, captions: Sequence[str], *, empty: Empty = new_memory
    ) -> dict[str, torch.Tensor]:
        """Return the fields of the captions, [B, ...] in their order; `empty` makes them."""
        return self.store.gather(self.keys(captions), pad=True, empty=empty)


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

    def encode(self, pixels: torch.Tensor, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode samples of one bucket to the fields of their rows, [B, ...] on any device.

        Args:
            pixels: uint8 RGB [B, H, W, 3], or [B, F, H, W, 3] of clips.
            labels: Storage keys of the samples, B long, for messages.

        Raises:
            CacheError: The encoder gave no latents.
            Exception: The encoder failed; a note says what it was given.
        """
        with _ENCODING, torch.no_grad(), self.encoding(labels):
            fields = self._encode_frames(pixels)
        if "latents" not in fields:
            raise CacheError(
                f"image encoder of {self.name!r} gave the fields {sorted(fields)} for "
                f"{labels[0]!r}; it must give 'latents'"
            )
        return fields

    def _encode_frames(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode pictures [B, H, W, 3], or clips [B, F, H, W, 3] picture by picture."""
        rows = pixels.shape[:-3]
        parts = torch.split(pixels.flatten(0, -4), self.batch_size)
        encoded = [self.encoder.encode(part) for part in parts]
        fields = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        if len(rows) == 1 or any(len(field) != rows.numel() for field in fields.values()):
            return fields  # the writer refuses what has too few rows, or too many
        return {name: field.reshape(*rows, *field.shape[1:]) for name, field in fields.items()}

    def gather(
        self, reader: Reader, pictures: Sequence[Picture], *, empty: Empty = new_memory
    ) -> dict[str, torch.Tensor]:
        """Return the fields of pictures of one bucket, [B, ...] in their order.

        `empty` makes the tensors.
        """
        return self.store.gather(self.keys(reader, pictures), empty=empty)


def _is_out_of_memory(error: Exception) -> bool:
    # The allocator of the CPU raises a plain RuntimeError, told by its words alone.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
