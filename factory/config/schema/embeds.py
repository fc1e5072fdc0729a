"""Schemas of embeddings backends: text_embeds, image_embeds, conditioning_image_embeds."""

from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from factory.backends.encode_mode import EncodeMode
from factory.config.schema.backends import BackendConfig, caption_mode_problems
from factory.config.schema.derived import SLOT, settings_of
from factory.config.schema.options import opt


@settings_of("factory.backends.embeddings.EmbedBackend")
class EmbedBackendConfig(BackendConfig):
    """Fields every store of embeddings shares."""

    _target_: str = MISSING
    cache = SLOT
    batch_size: int | None
    encode_mode: EncodeMode

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.batch_size is None:
            yield "batch_size is null; set batch_size=16"


@settings_of("factory.backends.embeddings.TextEmbedBackend")
class TextEmbedBackendConfig(EmbedBackendConfig):
    """Captions encoded once, shared by every backend that uses them."""

    batch_size: int | None

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        yield from caption_mode_problems("encode_mode", self.encode_mode)


@settings_of("factory.backends.embeddings.ImageEmbedBackend")
class ImageEmbedBackendConfig(EmbedBackendConfig):
    """Pictures encoded to latents once."""


@settings_of("factory.backends.embeddings.VisionEmbedBackend")
class ConditioningImageEmbedBackendConfig(EmbedBackendConfig):
    """Pictures encoded once to embeddings that a model is conditioned on."""

    default: bool = opt(False, "used by every backend trained or validated on that names no other")
    batch_size: int | None = opt(
        None, "pictures encoded at once; null: as many as the image_embeds backend"
    )
