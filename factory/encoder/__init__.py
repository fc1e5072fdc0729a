"""Encoders: pictures to latents, captions to embeddings.

Importing this package costs nothing: torch and the model libraries come with the first
name that is taken from it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.encoder.base import ImageEncoder, TextEncoder
    from factory.encoder.dct import BlockDCT
    from factory.encoder.hashed_text import HashedText
    from factory.encoder.pretrained import AutoencoderKLEncoder, TransformersTextEncoder

__all__ = [
    "AutoencoderKLEncoder",
    "BlockDCT",
    "HashedText",
    "ImageEncoder",
    "TextEncoder",
    "TransformersTextEncoder",
]

_HOMES = {
    "AutoencoderKLEncoder": "factory.encoder.pretrained",
    "BlockDCT": "factory.encoder.dct",
    "HashedText": "factory.encoder.hashed_text",
    "ImageEncoder": "factory.encoder.base",
    "TextEncoder": "factory.encoder.base",
    "TransformersTextEncoder": "factory.encoder.pretrained",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
