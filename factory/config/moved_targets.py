"""Classes that `_target_` names by where version 0.1 had them, and where they are now."""

import logging
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, flag_override

logger = logging.getLogger("factory")

# What stands at the left is written in users' files and old run folders: it never changes. The
# right side follows the classes. Taken out with version 0.3.
MOVED = {
    "factory.backends.embeds.ImageEmbedBackend": "factory.backends.embeddings.ImageEmbedBackend",
    "factory.backends.embeds.TextEmbedBackend": "factory.backends.embeddings.TextEmbedBackend",
    "factory.backends.embeds.VisionEmbedBackend": "factory.backends.embeddings.VisionEmbedBackend",
    "factory.backends.stream.StreamBackend": "factory.backends.streaming.backend.StreamBackend",
    "factory.cache.place.CachePlace": "factory.workspace.Workspace",
    "factory.catalog.caption_json.JsonFileCaptions": (
        "factory.catalog.captions.json_file.JsonFileCaptions"
    ),
    "factory.catalog.caption_shuffle.Shuffle": "factory.catalog.captions.shuffle.Shuffle",
    "factory.catalog.caption_shuffle.shuffle_of": "factory.catalog.captions.shuffle.shuffle_of",
    "factory.catalog.captions.ColumnCaptions": "factory.catalog.captions.sources.ColumnCaptions",
    "factory.catalog.captions.FilenameCaptions": (
        "factory.catalog.captions.sources.FilenameCaptions"
    ),
    "factory.catalog.captions.InstanceCaptions": (
        "factory.catalog.captions.sources.InstanceCaptions"
    ),
    "factory.catalog.captions.TextFileCaptions": (
        "factory.catalog.captions.sources.TextFileCaptions"
    ),
    "factory.catalog.column_facts.ColumnFacts": "factory.catalog.scan.column_facts.ColumnFacts",
    "factory.catalog.discovery.Discovery": "factory.catalog.scan.discovery.Discovery",
    "factory.catalog.parquet.ParquetTable": "factory.catalog.scan.table.ParquetTable",
    "factory.datamodule.FactoryDataModule": "factory.lightning.datamodule.FactoryDataModule",
    "factory.engine.local.LocalEngine": "factory.engine.local_engine.LocalEngine",
    "factory.engine.ray_engine.RayEngine": "factory.engine.ray.ray_engine.RayEngine",
    "factory.media.limits.Limits": "factory.media.decode_limits.DecodeLimits",
    "factory.runtime.fetcher.Prefetch": "factory.runtime.prefetch.batch_fetcher.Prefetch",
    "factory.runtime.quarantine.QuarantineLimit": (
        "factory.runtime.batches.quarantine.QuarantineLimit"
    ),
    "factory.sampling.schedule.Window": "factory.sampling.active_window.ActiveWindow",
    "factory.sampling.weights.AutoWeighting": "factory.sampling.strategies.AutoWeighting",
    "factory.sampling.weights.UniformWeighting": "factory.sampling.strategies.UniformWeighting",
    "factory.storage.s3.S3Storage": "factory.storage.object_store.buckets.S3Storage",
    "factory.storage.s3.s3_storage.S3Storage": "factory.storage.object_store.buckets.S3Storage",
    "factory.storage.tar.TarStorage": "factory.storage.tar.tar_storage.TarStorage",
    "factory.storage.urls.UrlListStorage": (
        "factory.storage.url_list.url_list_storage.UrlListStorage"
    ),
}


def follow(config: Any) -> None:
    """Replace each old `_target_` of a config, in place, with a warning once a path."""
    if not isinstance(config, DictConfig | ListConfig):
        return
    with flag_override(config, "readonly", False):
        _follow(config)


def _follow(node: Any) -> None:
    content = node._content if isinstance(node, DictConfig | ListConfig) else None  # noqa: SLF001 - interpolations unresolved
    if isinstance(content, dict):
        target = content.get("_target_")
        if target is not None and (new := MOVED.get(str(target._value()))):  # noqa: SLF001
            _announce(str(target._value()), new)  # noqa: SLF001
            target._set_value(new)  # noqa: SLF001 - a struct's key may be set, whoever made it
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            _follow(part)


@cache
def _announce(old: str, new: str) -> None:
    logger.warning(
        "_target_: %s is now %s; the old path works in this version and is gone in the next: "
        "write the new one",
        old,
        new,
    )
