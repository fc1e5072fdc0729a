"""Schemas of captions: what a sample says."""

from collections.abc import Iterator
from typing import Annotated, Any

from omegaconf import II, MISSING

from factory.catalog.captions import edits
from factory.config.schema.derived import settings_of
from factory.config.schema.options import opt
from factory.limits import AtLeast

# Which storages have rows of a table, and which have none.
TABLES = ("UrlListStorage", "HuggingFaceStorage")
NO_TABLES = (
    "LocalStorage",
    "S3Storage",
    "GcsStorage",
    "AzureStorage",
    "MemoryStorage",
    "TarStorage",
)


@settings_of("factory.catalog.captions.shuffle.Shuffle")
class ShuffleConfig:
    """Variants of each caption whose tags stand in another order."""

    _target_: str = "factory.catalog.captions.shuffle.shuffle_of"
    count: Annotated[int, AtLeast(0)] = opt(
        0, "variants made of each caption, all encoded beforehand; 0 means none"
    )
    seed = II("data.seed")
    split_on: str


@settings_of("factory.catalog.captions.sources.Captions")
class CaptionConfig:
    """Fields every caption strategy shares."""

    _target_: str = MISSING
    shuffle: ShuffleConfig = opt(
        factory=ShuffleConfig, meaning="variants of each caption with its tags in other orders"
    )

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with what every strategy does to its texts."""
        if self.prepend is not None and not self.prepend.strip():
            yield f"prepend must be a text, not blank; got {self.prepend!r}; set prepend=null"
        yield from edits.filter_problems(self)


@settings_of("factory.catalog.captions.sources.TextFileCaptions")
class TextFileCaptionConfig(CaptionConfig):
    """A text file of the same stem beside each picture."""


@settings_of("factory.catalog.captions.json_file.JsonFileCaptions")
class JsonFileCaptionConfig(CaptionConfig):
    """Fields of a JSON file of the same stem beside each picture."""


@settings_of("factory.catalog.captions.sources.FilenameCaptions")
class FilenameCaptionConfig(CaptionConfig):
    """The file's name, underscores read as spaces."""


@settings_of("factory.catalog.captions.sources.InstanceCaptions")
class InstanceCaptionConfig(CaptionConfig):
    """One prompt, or a list to draw from, for every sample."""

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the texts."""
        yield from super().problems()
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not any(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            yield f"prompt must be a text or a list of texts, not blank; got {self.prompt!r}"


@settings_of("factory.catalog.captions.sources.ColumnCaptions")
class ColumnCaptionConfig(CaptionConfig):
    """Columns of the backend's own table: Parquet, CSV or Hugging Face."""


def target_name(part: object) -> str:
    """Return the name of the class that a part of a config builds; "" if it has none."""
    return str(getattr(part, "_target_", "")).rpartition(".")[2]


def misplaced(caption: Any, storage: object, metadata: object) -> Iterator[str]:
    """Yield why a strategy would find nothing where a backend's samples lie.

    Parts of other packages are taken to know what they do.
    """
    place, facts, kind = target_name(storage), target_name(metadata), type(caption)
    if issubclass(kind, ColumnCaptionConfig) and place in NO_TABLES and facts == "Discovery":
        yield (
            f"caption reads the columns {', '.join(caption.columns)} of a table, and "
            f"metadata=discovery in {place} has none; choose metadata=parquet, or "
            "data/caption=textfile"
        )
    if issubclass(kind, TextFileCaptionConfig | JsonFileCaptionConfig) and place in TABLES:
        yield (
            f"caption reads a {caption.suffix} file beside each sample, and the rows of {place} "
            "have none; choose data/caption=csv or data/caption=huggingface"
        )
