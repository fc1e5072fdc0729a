"""The text of `--help`: every option with its default, meaning and unit, read off the schemas."""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass

from omegaconf import MISSING

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
from factory.config.schema.options import meanings

# Key before the option's name, what the section is about, and the schema that declares it.
SECTIONS: tuple[tuple[str, str, type], ...] = (
    ("", "The run", run.RunConfig),
    ("paths", "Places on this machine", run.PathsConfig),
    ("data", "All backends", data.DataConfig),
    ("data.quarantine", "Samples that cannot be used", data.QuarantineConfig),
    ("data.exclude.0", "Samples not used from a step on", data.ExcludeConfig),
    ("data.backends.NAME", "A backend of pictures", backends.ImageBackendConfig),
    ("data.backends.NAME.window", "When it takes part", backends.WindowConfig),
    ("data.backends.NAME.filters.0", "Conditions on a table's columns", metadata.RowFilterConfig),
    ("data.backends.NAME.composite", "Pictures side by side", crop.CompositeConfig),
    ("data.backends.NAME", "data/backend=video, clips of videos", backends.VideoBackendConfig),
    ("data.backends.NAME", "data/backend=stream, read as it is", backends.StreamBackendConfig),
    (
        "data.backends.NAME",
        "data/backend=eval, pictures to validate on",
        backends.EvalBackendConfig,
    ),
    ("data.backends.NAME", "data/backend=conditioning", conditioning.ConditioningBackendConfig),
    ("data.backends.NAME.generate", "data/generator=canny, edges", conditioning.CannyConfig),
    (
        "data.backends.NAME.generate",
        "data/generator=jpeg_artifacts, the picture compressed too much",
        conditioning.JpegArtifactsConfig,
    ),
    (
        "data.backends.NAME.generate",
        "data/generator=superresolution, the picture at a lower resolution",
        conditioning.SuperresolutionConfig,
    ),
    (
        "data.backends.NAME.generate",
        "data/generator=random_masks, for inpainting",
        conditioning.RandomMasksConfig,
    ),
    ("data.backends.NAME", "data/backend=text_embeds", embeds.TextEmbedBackendConfig),
    ("data.backends.NAME", "data/backend=image_embeds", embeds.ImageEmbedBackendConfig),
    (
        "data.backends.NAME",
        "data/backend=conditioning_image_embeds",
        embeds.ConditioningImageEmbedBackendConfig,
    ),
    ("data.caption", "Every caption strategy", captions.CaptionConfig),
    ("data.caption.shuffle", "Captions with tags in other orders", captions.ShuffleConfig),
    (
        "data.crop",
        "data/crop=preserve|square|closest|random|random_aspect|corner|face",
        crop.CropConfig,
    ),
    ("data.caption", "data/caption=textfile", captions.TextFileCaptionConfig),
    ("data.caption", "data/caption=jsonfile", captions.JsonFileCaptionConfig),
    ("data.caption", "data/caption=instance", captions.InstanceCaptionConfig),
    ("data.caption", "data/caption=parquet|csv|huggingface", captions.ColumnCaptionConfig),
    ("storage", "storage=local", storage.LocalConfig),
    ("storage", "storage=s3", storage.S3Config),
    ("storage", "storage=gcs", storage.GcsConfig),
    ("storage", "storage=azure", storage.AzureConfig),
    ("storage", "storage=fsspec", storage.FsspecConfig),
    ("storage", "storage=http", storage.HttpConfig),
    ("storage", "storage@data.backends.NAME=csv", storage.CsvConfig),
    ("storage", "storage@data.backends.NAME=huggingface", storage.HuggingFaceConfig),
    ("storage", "storage@data.backends.NAME=webdataset", storage.WebDatasetConfig),
    ("metadata", "metadata=discovery", metadata.DiscoveryConfig),
    ("metadata", "metadata=parquet", metadata.ParquetConfig),
    ("metadata", "metadata=columns", metadata.ColumnsConfig),
    ("sampling", "sampling=uniform|auto", run.SamplingConfig),
    ("cache", "Facts and encoded tensors", run.CacheConfig),
    ("prefetch", "prefetch=thread|process|inline", run.PrefetchConfig),
    ("engine", "engine=local, threads of this machine", run.LocalEngineConfig),
    ("engine", "engine=ray, processes of a cluster", run.RayEngineConfig),
)
WIDTH = 100
NAME_WIDTH = 26
VALUE_WIDTH = 22


def help_text() -> str:
    """Return every section with its options."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    said: set[tuple[type, str]] = set()
    for prefix, title, schema in SECTIONS:
        new = [o for o in meanings(schema) if _declared(schema, o[0]) not in said]
        said |= {_declared(schema, name) for name, _, _ in new}
        if not new:
            continue
        yield f"{title} ({prefix}.*)" if prefix else title
        for name, meaning, default in new:
            yield from _option(name, _value(default), meaning)
        yield ""


def _declared(schema: type, name: str) -> tuple[type, str]:
    """Return the class that declares an option last, so that an inherited one is said once."""
    owner = next(cls for cls in schema.__mro__ if name in inspect.get_annotations(cls))
    return owner, name


def _option(name: str, value: str, meaning: str) -> Iterator[str]:
    left = f"  {name:<{NAME_WIDTH}} {value:<{VALUE_WIDTH}} "
    lines = textwrap.wrap(meaning, WIDTH - len(left)) or [""]
    yield left + lines[0]
    for line in lines[1:]:
        yield " " * len(left) + line


def _value(default: object) -> str:
    """Return a default as it is written on the command line; "" where there is none."""
    if default == MISSING or is_dataclass(default) or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        shown = [str(item) for item in default[:1]] + ["..."] * (len(default) > 1)
        return f"[{', '.join(shown)}]"
    text = "null" if default is None else str(default)
    if text == "${own_name:}":
        return "NAME"
    if text.startswith("${"):
        # Follows another option; '$' would also start a placeholder of Hydra's template.
        return f"= {text.strip('${}')}"
    return text.lower() if isinstance(default, bool) else text
