"""Training data for diffusion and multimodal models: declared in YAML, provable, exact.

Names are imported on first use, so `import factory` costs little and brings no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.backends.conditioning import ConditioningBackend
    from factory.backends.embeddings import ImageEmbedBackend, TextEmbedBackend, VisionEmbedBackend
    from factory.backends.image import Crop, EvalBackend, ImageBackend
    from factory.backends.streaming.backend import StreamBackend
    from factory.backends.video import VideoBackend
    from factory.config.build import build
    from factory.config.compose import compose
    from factory.errors import ConfigError, FactoryError
    from factory.lightning.datamodule import FactoryDataModule
    from factory.runtime.batches.batch import Batch
    from factory.runtime.prefetch.batch_fetcher import Prefetch
    from factory.sampling.exclusion import Exclude
    from factory.sampling.mixture import Mixture
    from factory.workspace import Workspace

_HOMES = {
    "Batch": "factory.runtime.batches.batch",
    "CachePlace": "factory.workspace",  # name of version 0.1, kept for one version
    "ConditioningBackend": "factory.backends.conditioning",
    "ConfigError": "factory.errors",
    "Crop": "factory.backends.image",
    "EvalBackend": "factory.backends.image",
    "Exclude": "factory.sampling.exclusion",
    "FactoryDataModule": "factory.lightning.datamodule",
    "FactoryError": "factory.errors",
    "ImageBackend": "factory.backends.image",
    "ImageEmbedBackend": "factory.backends.embeddings",
    "Mixture": "factory.sampling.mixture",
    "Prefetch": "factory.runtime.prefetch.batch_fetcher",
    "StreamBackend": "factory.backends.streaming.backend",
    "TextEmbedBackend": "factory.backends.embeddings",
    "VideoBackend": "factory.backends.video",
    "VisionEmbedBackend": "factory.backends.embeddings",
    "Workspace": "factory.workspace",
    "build": "factory.config.build",
    "compose": "factory.config.compose",
}

__all__ = [
    "Batch",
    "ConditioningBackend",
    "ConfigError",
    "Crop",
    "EvalBackend",
    "Exclude",
    "FactoryDataModule",
    "FactoryError",
    "ImageBackend",
    "ImageEmbedBackend",
    "Mixture",
    "Prefetch",
    "StreamBackend",
    "TextEmbedBackend",
    "VideoBackend",
    "VisionEmbedBackend",
    "Workspace",
    "build",
    "compose",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'factory' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
