"""Dataclass schemas for every config group; `register` files them for Hydra."""

from hydra.core.config_store import ConfigStore
from omegaconf import Node, OmegaConf

from factory.config.schema import (
    backends,
    captions,
    conditioning,
    crop,
    data,
    embeds,
    metadata,
    run,
    storage,
)

SCHEMAS: dict[str, type] = {
    "run": run.RunConfig,
    "paths": run.PathsConfig,
    "data": data.DataConfig,
    "storage/local": storage.LocalConfig,
    "storage/memory": storage.MemoryConfig,
    "storage/s3": storage.S3Config,
    "storage/gcs": storage.GcsConfig,
    "storage/azure": storage.AzureConfig,
    "storage/fsspec": storage.FsspecConfig,
    "storage/http": storage.HttpConfig,
    "storage/csv": storage.CsvConfig,
    "storage/huggingface": storage.HuggingFaceConfig,
    "storage/webdataset": storage.WebDatasetConfig,
    "metadata/discovery": metadata.DiscoveryConfig,
    "metadata/parquet": metadata.ParquetConfig,
    "metadata/columns": metadata.ColumnsConfig,
    "caption/textfile": captions.TextFileCaptionConfig,
    "caption/jsonfile": captions.JsonFileCaptionConfig,
    "caption/filename": captions.FilenameCaptionConfig,
    "caption/instance": captions.InstanceCaptionConfig,
    "caption/column": captions.ColumnCaptionConfig,
    "crop": crop.CropConfig,
    "backend/image": backends.ImageBackendConfig,
    "backend/video": backends.VideoBackendConfig,
    "backend/stream": backends.StreamBackendConfig,
    "backend/eval": backends.EvalBackendConfig,
    "backend/conditioning": conditioning.ConditioningBackendConfig,
    "generator/canny": conditioning.CannyConfig,
    "generator/jpeg_artifacts": conditioning.JpegArtifactsConfig,
    "generator/superresolution": conditioning.SuperresolutionConfig,
    "generator/random_masks": conditioning.RandomMasksConfig,
    "backend/text_embeds": embeds.TextEmbedBackendConfig,
    "backend/image_embeds": embeds.ImageEmbedBackendConfig,
    "backend/conditioning_image_embeds": embeds.ConditioningImageEmbedBackendConfig,
    "sampling": run.SamplingConfig,
    "cache": run.CacheConfig,
    "encoder": run.EncoderConfig,
    "prefetch": run.PrefetchConfig,
    "engine/local": run.LocalEngineConfig,
    "engine/ray": run.RayEngineConfig,
}


def store(path: str, node: type) -> None:
    """File one schema under `schema/<path>`."""
    group, _, name = f"schema/{path}".rpartition("/")
    ConfigStore.instance().store(group=group, name=name, node=node, provider="factory")


def own_name(*, _parent_: Node) -> str:
    """Return the key the enclosing config is filed under: a backend's name."""
    return str(_parent_._key())  # noqa: SLF001 - how OmegaConf tells a resolver its place


def options_guide() -> str:
    """Return the options part of `--help`."""
    from factory.config.schema.help_text import help_text  # reads every schema

    return help_text()


def register() -> None:
    """Register resolvers and schemas; safe to call twice."""
    OmegaConf.register_new_resolver("options_guide", options_guide, replace=True)
    OmegaConf.register_new_resolver("own_name", own_name, replace=True)
    filed = ConfigStore.instance().repo.get("schema", {})
    if "run.yaml" in filed and "engine" in filed:  # the first and the last of them
        return  # analysing every dataclass again takes longer than composing a small config
    for path, node in SCHEMAS.items():
        store(path, node)
