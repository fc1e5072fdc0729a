"""Schemas of embeddings backends: text_embeds, image_embeds, conditioning_image_embeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.backends.encode_mode import EncodeMode
from factory.config.schema.backends import BackendConfig, caption_mode_problems
from factory.config.schema.options import at_least, opt


@dataclass
class EmbedBackendConfig(BackendConfig):
    """Fields every store of embeddings shares."""

    default: bool = opt(False, "used by every backend that names no other")
    cache: Any = opt(MISSING, "slot: where the tensors are kept")
    encoder: Any = opt(MISSING, "what makes the tensors")
    batch_size: int | None = opt(16, "samples encoded at once")
    write_batch_size: int | None = opt(
        None, "rows a shard is published with, if cache.shard_mb are not reached before; null: none"
    )
    encode_mode: EncodeMode = opt(
        EncodeMode.precompute,
        "precompute: all before the first step | on_demand: each when a batch needs it, then kept "
        "| transient: each time, never kept | each_epoch: on_demand, with random cuts drawn anew "
        "in each epoch, and forgotten at its end (pictures only)",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.batch_size is None:
            yield "batch_size is null; set batch_size=16"
        yield from at_least("batch_size", self.batch_size, 1)
        yield from at_least("write_batch_size", self.write_batch_size, 1)


@dataclass
class TextEmbedBackendConfig(EmbedBackendConfig):
    """Captions encoded once, shared by every backend that uses them."""

    _target_: str = "factory.backends.embeddings.TextEmbedBackend"
    batch_size: int | None = opt(64, "captions encoded at once")
    prompts: list[str] = opt(
        factory=list, meaning="texts encoded with the captions, such as those to validate with"
    )
    prompts_file: str | None = opt(None, "file of this machine with more of them, one a line")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        yield from caption_mode_problems("encode_mode", self.encode_mode)


@dataclass
class ImageEmbedBackendConfig(EmbedBackendConfig):
    """Pictures encoded to latents once."""

    _target_: str = "factory.backends.embeddings.ImageEmbedBackend"


@dataclass
class ConditioningImageEmbedBackendConfig(EmbedBackendConfig):
    """Pictures encoded once to embeddings that a model is conditioned on."""

    _target_: str = "factory.backends.embeddings.VisionEmbedBackend"
    default: bool = opt(False, "used by every backend trained or validated on that names no other")
    batch_size: int | None = opt(
        None, "pictures encoded at once; null: as many as the image_embeds backend"
    )
