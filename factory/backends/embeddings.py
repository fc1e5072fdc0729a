"""Backends of embeddings: an encoder, and the store its rows are kept in."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch

from factory.backends.encode_mode import EncodeMode, as_mode, check_caption_mode
from factory.backends.pixels import MediaReader, Picture, PictureColumns
from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.gather.gather_rows import Allocator, new_tensor
from factory.cache.store import TensorStore
from factory.cache.write_buffer import WriteBuffer
from factory.catalog.local_text import read_local_text
from factory.encoder.base import (
    ClipEncoder,
    ImageEncoder,
    LengthClassEncoder,
    SizedImageEncoder,
    SizedRowEncoder,
    TextEncoder,
    Truncating,
    Truncation,
    VisionEncoder,
)
from factory.encoder.kinds import check_kind
from factory.errors import CacheError, ConfigError, MissingExtraError
from factory.limits import AtLeast, check_limits
from factory.workspace import Workspace

# Encoders are modules of torch, on a device: asked by one thread at a time.
_ENCODING = threading.Lock()
# Samples, frames, height, width, colours.
_CLIP_DIMS = 5
# A model's config is out of reach, or not fit: encoding says why, foretelling need not.
_UNTOLD = (ConfigError, MissingExtraError, OSError)


@dataclass(kw_only=True)
class EmbedBackend:
    """A store of embeddings; its kinds differ in what they encode.

    Attributes:
        name: The backend's name, unique in a run.
        default: Used by every backend that names no other.
        cache: Where the tensors are kept.
        batch_size: Samples encoded at once.
        write_batch_size: Rows a shard is published with, if cache.shard_mb are not reached before;
            None: none.
        encode_mode: precompute: all before the first step | on_demand: each when a batch needs it,
            then kept | transient: each time, never kept | each_epoch: on_demand, with random cuts
            drawn anew in each epoch, and forgotten at its end (pictures only). So for backends
            that say nothing themselves.
        encoder: What makes the tensors.
        pads: Whether its rows differ in length, and are filled up to the longest of a batch.
        takes: Which kind of encoder it takes, as the config group `encoder` names it.
    """

    pads: ClassVar[bool] = False
    takes: ClassVar[str]

    name: str
    default: bool = False
    cache: Workspace
    encoder: ImageEncoder | TextEncoder | VisionEncoder
    batch_size: Annotated[int, AtLeast(1)] = 16
    write_batch_size: Annotated[int | None, AtLeast(1)] = None
    encode_mode: str = EncodeMode.precompute

    def __post_init__(self) -> None:
        """Refuse batches of nothing, modes there are not, and encoders of another kind."""
        check_limits(self, f"data.backends.{self.name}")
        self.encode_mode = as_mode(self.encode_mode, f"data.backends.{self.name}.encode_mode")
        check_kind(self.name, self.takes, self.encoder)

    @cached_property
    def store(self) -> TensorStore:
        """The tensors encoded so far."""
        return self.cache.store(self.name, self.write_batch_size)

    @cached_property
    def write_buffer(self) -> WriteBuffer:
        """The tensors encoded by this process that are not in the store yet."""
        return WriteBuffer(self.store)

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
        """Publish what is open, let go of memory maps, and close the cache's storage.

        Raises:
            StorageError: What was open could not be published.
        """
        with ExitStack() as stack:  # the last one first
            stack.callback(self.cache.storage.close)
            stack.callback(self.store.close)
            stack.callback(self.write_buffer.publish)


@dataclass(kw_only=True)
class TextEmbedBackend(EmbedBackend):
    """Captions encoded once, shared by every backend that uses them.

    Attributes:
        encoder: What makes the embeddings.
        batch_size: Captions encoded at once.
        prompts: Texts encoded with the captions, such as those to validate with.
        prompts_file: File of this machine with more of them, one a line.
    """

    pads: ClassVar[bool] = True
    takes: ClassVar[str] = "text"

    encoder: TextEncoder
    batch_size: Annotated[int, AtLeast(1)] = 64
    prompts: Sequence[str] = ()
    prompts_file: str | None = None

    def __post_init__(self) -> None:
        """Refuse what captions cannot have."""
        super().__post_init__()
        check_caption_mode(self.encode_mode, f"data.backends.{self.name}.encode_mode")
        self.prompts = tuple(self.prompts)

    def own_texts(self) -> list[str]:
        """Return what is in the store whatever the captions: "" and the prompts, each once.

        A caption that is dropped becomes "".

        Raises:
            ObjectNotFoundError: There is no file `prompts_file`.
            ConfigError: It cannot be read.
        """
        listed = () if self.prompts_file is None else read_prompts(self.prompts_file)
        return list(dict.fromkeys(["", *self.prompts, *listed]))

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shaped every row of this store, whatever its caption."""
        return {"kind": "text", "encoder": self.encoder.fingerprint}

    def keys(self, captions: Sequence[str]) -> Keys:
        """Return the recipe key of each caption, 16 bytes each."""
        return recipe_keys(self.recipe, {"caption": captions})

    def batches(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """Yield the places of captions that are encoded together, each place once."""
        classes = np.zeros(len(captions), dtype=np.int64)
        if isinstance(self.encoder, LengthClassEncoder):
            classes = self.encoder.length_classes_of(captions)
        order = np.argsort(classes, kind="stable")
        ends = np.flatnonzero(np.diff(classes[order])) + 1
        for group in np.split(order, ends):
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size].tolist()

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to the fields of their rows, [B, ...] on any device.

        Raises:
            Exception: The encoder failed; a note says what it was given.
        """
        with _ENCODING, torch.no_grad(), self.encoding(captions):
            return self.encoder.encode(captions)

    def truncations(self) -> list[Truncation]:
        """Return which captions the encoder has cut since it was last released."""
        encoder = self.encoder
        return encoder.truncations() if isinstance(encoder, Truncating) else []

    def row_bytes(self) -> int | None:
        """Return the bytes of a caption's row at most; None where the encoder cannot tell."""
        return _foretold(self.encoder)

    def gather(
        self, captions: Sequence[str], *, allocate: Allocator = new_tensor
    ) -> dict[str, torch.Tensor]:
        """Return the fields of the captions, [B, ...] in their order; `allocate` makes them."""
        return self.store.gather(self.keys(captions), pad=self.pads, allocate=allocate)


@dataclass(kw_only=True)
class PictureEmbedBackend(EmbedBackend):
    """Pictures encoded once, as they are cut; its two kinds differ in what they become.

    Attributes:
        encoder: What makes the embeddings.
        kind: What they are called in recipes.
    """

    kind: ClassVar[str]

    encoder: ImageEncoder | VisionEncoder

    def recipe(self, reader: MediaReader, **marks: object) -> Mapping[str, object]:
        """Return what shaped every row that a reader's pictures have in this store.

        Args:
            reader: How the pictures become pixels.
            marks: What else tells these rows from others.
        """
        shared = {"kind": self.kind, "encoder": self.encoder.fingerprint, **reader.recipe}
        return {**shared, **marks}

    def keys(
        self, reader: MediaReader, pictures: PictureColumns | Sequence[Picture], **marks: object
    ) -> Keys:
        """Return the recipe key of each picture, 16 bytes each."""
        if not isinstance(pictures, PictureColumns):
            pictures = PictureColumns.of(pictures)
        return recipe_keys(self.recipe(reader, **marks), reader.parts(pictures))

    def encode(self, pixels: torch.Tensor, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode samples of one bucket to the fields of their rows, [B, ...] on any device.

        Args:
            pixels: uint8 RGB [B, H, W, 3], or [B, F, H, W, 3] of clips.
            labels: Storage keys of the samples, B long, for messages.

        Raises:
            CacheError: The encoder gave other fields than it must.
            Exception: The encoder failed; a note says what it was given.
        """
        with _ENCODING, torch.no_grad(), self.encoding(labels):
            return self._encode(pixels)

    def _encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def release(self) -> None:
        """Free the memory of what encodes; it is loaded again when it is needed."""
        self.encoder.release()

    def row_bytes(self, width: int, height: int, frames: int = 1) -> int | None:
        """Return the bytes of a sample's row, edges in px; None where the encoder cannot tell."""
        raise NotImplementedError

    def gather(
        self,
        reader: MediaReader,
        pictures: PictureColumns | Sequence[Picture],
        *,
        allocate: Allocator = new_tensor,
        **marks: object,
    ) -> dict[str, torch.Tensor]:
        """Return the fields of pictures of one bucket, [B, ...] in their order.

        `allocate` makes the tensors; `marks` are those of `recipe`.
        """
        return self.store.gather(self.keys(reader, pictures, **marks), allocate=allocate)


@dataclass(kw_only=True)
class ImageEmbedBackend(PictureEmbedBackend):
    """Pictures, and frames of clips, encoded to latents once.

    Attributes:
        encoder: What makes the latents.
        batch_size: Pictures encoded at once; each frame of a clip is one.
    """

    kind: ClassVar[str] = "latents"
    takes: ClassVar[str] = "image"

    encoder: ImageEncoder

    def encode(self, pixels: torch.Tensor, labels: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode samples of one bucket to the fields of their rows, "latents" among them.

        Clips go whole to an encoder that takes them so, else picture by picture.

        Args:
            pixels: uint8 RGB [B, H, W, 3], or [B, F, H, W, 3] of clips.
            labels: Storage keys of the samples, B long, for messages.

        Raises:
            CacheError: The encoder gave no latents.
            Exception: The encoder failed; a note says what it was given.
        """
        fields = super().encode(pixels, labels)
        if "latents" not in fields:
            raise CacheError(
                f"image encoder of {self.name!r} gave the fields {sorted(fields)} for "
                f"{labels[0]!r}; it must give 'latents'"
            )
        return fields

    def _encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        clips = pixels.ndim == _CLIP_DIMS
        if clips and isinstance(self.encoder, ClipEncoder):
            whole = max(1, self.batch_size // pixels.shape[1])
            return _joined(map(self.encoder.encode_clips, torch.split(pixels, whole)))
        rows = pixels.shape[:-3]
        parts = torch.split(pixels.flatten(0, -4), self.batch_size)
        fields = _joined(map(self.encoder.encode, parts))
        if not clips or any(len(field) != rows.numel() for field in fields.values()):
            return fields  # the writer refuses what has too few rows, or too many
        return {name: field.reshape(*rows, *field.shape[1:]) for name, field in fields.items()}

    def row_bytes(self, width: int, height: int, frames: int = 1) -> int | None:
        """Return the bytes of a sample's row, edges in px; None where the encoder cannot tell."""
        try:
            if frames > 1 and isinstance(self.encoder, ClipEncoder):
                return self.encoder.clip_bytes(width, height, frames)
            if isinstance(self.encoder, SizedImageEncoder):
                return self.encoder.row_bytes(width, height) * frames
        except _UNTOLD:
            pass
        return None


@dataclass(kw_only=True)
class VisionEmbedBackend(PictureEmbedBackend):
    """Pictures encoded once to embeddings that a model is conditioned on, whatever their shape.

    Of a clip the first frame is encoded.

    Attributes:
        encoder: What makes the embeddings.
        batch_size: Pictures encoded at once.
    """

    kind: ClassVar[str] = "image embeds"
    takes: ClassVar[str] = "vision"

    encoder: VisionEncoder

    def _encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if pixels.ndim == _CLIP_DIMS:
            pixels = pixels[:, 0]
        return _joined(map(self.encoder.encode, torch.split(pixels, self.batch_size)))

    def row_bytes(self, width: int, height: int, frames: int = 1) -> int | None:  # noqa: ARG002 - rows are alike
        """Return the bytes of any sample's row; None where the encoder cannot tell."""
        return _foretold(self.encoder)


def _joined(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the rows of several calls of an encoder as one."""
    encoded = list(parts)
    return {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}


def _foretold(encoder: TextEncoder | VisionEncoder) -> int | None:
    try:
        return encoder.row_bytes() if isinstance(encoder, SizedRowEncoder) else None
    except _UNTOLD:
        return None


def _is_out_of_memory(error: Exception) -> bool:
    # The allocator of the CPU raises a plain RuntimeError, told by its words alone.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def read_prompts(path: str) -> list[str]:
    """Read a file of this machine, one prompt a line; blank lines are none.

    Raises:
        ObjectNotFoundError: There is no such file.
        ConfigError: It cannot be read as text.
    """
    text = read_local_text(
        path, "prompts_file", kind="file of prompts", wanted="a text file of one prompt a line"
    )
    return [line for line in (line.strip() for line in text.splitlines()) if line]
