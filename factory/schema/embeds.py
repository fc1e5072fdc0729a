"""Fields of the stores of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.schema.backends import BackendConfig
from factory.schema.options import at_least, opt


@dataclass
class EmbedBackendConfig(BackendConfig):
    """Fields every store of embeddings shares."""

    default: bool = opt(False, "used by every backend that names no other")
    cache: Any = opt(MISSING, "slot: where the tensors are kept")
    encoder: Any = opt(MISSING, "what makes the tensors")
    batch_size: int = opt(16, "samples encoded at once")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("batch_size", self.batch_size, 1)


@dataclass
class TextEmbedBackendConfig(EmbedBackendConfig):
    """Captions encoded once, shared by every backend that uses them."""

    _target_: str = "factory.backends.embeds.TextEmbedBackend"
    batch_size: int = opt(64, "captions encoded at once")


@dataclass
class ImageEmbedBackendConfig(EmbedBackendConfig):
    """Pictures encoded to latents once."""

    _target_: str = "factory.backends.embeds.ImageEmbedBackend"
