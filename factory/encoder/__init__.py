"""Encoders: pictures to latents, captions and pictures to embeddings.

Importing this package costs nothing: torch and the model libraries come with the first
name that is taken from it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.encoder.autoencoder import DiffusersImageEncoder, DiffusersVideoEncoder
    from factory.encoder.base import ClipEncoder, ImageEncoder, TextEncoder, VisionEncoder
    from factory.encoder.dct import BlockDCT
    from factory.encoder.hashed_text import HashedText
    from factory.encoder.several_texts import SeveralTexts
    from factory.encoder.transformers_text import TransformersTextEncoder
    from factory.encoder.transformers_vision import TransformersVisionEncoder

__all__ = [
    "BlockDCT",
    "ClipEncoder",
    "DiffusersImageEncoder",
    "DiffusersVideoEncoder",
    "HashedText",
    "ImageEncoder",
    "SeveralTexts",
    "TextEncoder",
    "TransformersTextEncoder",
    "TransformersVisionEncoder",
    "VisionEncoder",
]

_HOMES = {
    "BlockDCT": "factory.encoder.dct",
    "ClipEncoder": "factory.encoder.base",
    "DiffusersImageEncoder": "factory.encoder.autoencoder",
    "DiffusersVideoEncoder": "factory.encoder.autoencoder",
    "HashedText": "factory.encoder.hashed_text",
    "ImageEncoder": "factory.encoder.base",
    "SeveralTexts": "factory.encoder.several_texts",
    "TextEncoder": "factory.encoder.base",
    "TransformersTextEncoder": "factory.encoder.transformers_text",
    "TransformersVisionEncoder": "factory.encoder.transformers_vision",
    "VisionEncoder": "factory.encoder.base",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
