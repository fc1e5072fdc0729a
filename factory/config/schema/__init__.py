"""Dataclass schemas for every config group; `register` files them for Hydra."""

from hydra.core.config_store import ConfigStore

from factory.config.schema import (
    backends,
    captions,
    conditioning,
    crop,
    data,
    embeds,
    metadata,
    resolvers,
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
    "storage/csv": storage.CsvConfig,
    "storage/huggingface": storage.HuggingFaceConfig,
    "storage/webdataset": storage.WebDatasetConfig,
    "metadata/discovery": run.DiscoveryConfig,
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


def register() -> None:
    """Register resolvers and schemas; safe to call twice."""
    resolvers.register()
    for path, node in SCHEMAS.items():
        store(path, node)
