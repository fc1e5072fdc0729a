"""Schemas of captions: what a sample says."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from omegaconf import II, MISSING

from factory.catalog.captions.edits import edit_problems
from factory.config.schema.options import at_least, opt

# What shuffled tags may stand between.
SPLITS = ("comma", "space", "period")
# Which storages have rows of a table, and which have none.
TABLES = ("UrlListStorage", "HuggingFaceStorage")
NO_TABLES = ("LocalStorage", "S3Storage", "MemoryStorage", "TarStorage")


@dataclass
class ShuffleConfig:
    """Variants of each caption whose tags stand in another order."""

    _target_: str = "factory.catalog.captions.shuffle.shuffle_of"
    count: int = opt(0, "variants made of each caption, all encoded beforehand; 0 means none")
    seed: int = opt(II("data.seed"), "seed of the orders")
    split_on: str = opt("comma", "what parts the tags: comma | space | period")
    position_start: int = opt(0, "the first so many tags keep their place")
    include_original: bool = opt(True, "the caption as it was is one of the variants")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("count", self.count, 0)
        yield from at_least("position_start", self.position_start, 0)
        if self.split_on not in SPLITS:
            yield (
                f"split_on must be one of {', '.join(SPLITS)}; got {self.split_on!r}; "
                f"set split_on={(get_close_matches(self.split_on, SPLITS, 1) or SPLITS)[0]}"
            )


@dataclass
class CaptionConfig:
    """Fields every caption strategy shares."""

    _target_: str = MISSING
    prepend: str | None = opt(
        None, "text put before every caption, such as a trigger word; filters leave it alone"
    )
    filters: list[str] = opt(
        factory=list,
        meaning="edits of every caption, in order: s/regex/new/ replaces each match; any other "
        "entry is removed, as plain text and then as a regex",
    )
    filters_file: str | None = opt(
        None, "file with more filters: .txt, one a line, or .json, a list"
    )
    shuffle: ShuffleConfig = opt(
        factory=ShuffleConfig, meaning="variants of each caption with its tags in other orders"
    )
    dropout: float = opt(0.0, "probability (0 to 1) that a sample's caption is empty in an epoch")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if self.prepend is not None and not self.prepend.strip():
            yield f"prepend must be a text, not blank; got {self.prepend!r}; set prepend=null"
        yield from edit_problems(self.filters, "filters entry")
        if self.filters_file is not None and not self.filters_file.endswith((".txt", ".json")):
            yield f"filters_file must end in .txt or .json, got {self.filters_file!r}"
        if not 0 <= self.dropout <= 1:
            yield f"dropout must be a probability from 0 to 1, got {self.dropout:g}"


@dataclass
class TextFileCaptionConfig(CaptionConfig):
    """A text file of the same stem beside each picture."""

    _target_: str = "factory.catalog.captions.sources.TextFileCaptions"
    suffix: str = opt(".txt", "suffix of the text files")
    split_lines: bool = opt(True, "each line is a caption of its own; one is drawn per epoch")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if not self.suffix.startswith("."):
            yield f"suffix must start with a dot, got {self.suffix!r}; set suffix=.txt"


@dataclass
class JsonFileCaptionConfig(CaptionConfig):
    """Fields of a JSON file of the same stem beside each picture."""

    _target_: str = "factory.catalog.captions.json_file.JsonFileCaptions"
    fields: list[str] = opt(
        factory=lambda: ["caption"],
        meaning='fields that hold a caption or a list of them; "a.b" reaches into objects',
    )
    fallback_fields: list[str] = opt(
        factory=list, meaning="fields used where all of the above are empty"
    )
    suffix: str = opt(".json", "suffix of the JSON files")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if not self.fields or not all([*self.fields, *self.fallback_fields]):
            yield "fields must name at least one field, none of them blank; set fields=[caption]"
        if not self.suffix.startswith("."):
            yield f"suffix must start with a dot, got {self.suffix!r}; set suffix=.json"


@dataclass
class FilenameCaptionConfig(CaptionConfig):
    """The file's name, underscores read as spaces."""

    _target_: str = "factory.catalog.captions.sources.FilenameCaptions"


@dataclass
class InstanceCaptionConfig(CaptionConfig):
    """One prompt, or a list to draw from, for every sample."""

    _target_: str = "factory.catalog.captions.sources.InstanceCaptions"
    prompt: Any = opt(MISSING, "the prompt, or a list of prompts")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not any(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            yield f"prompt must be a text or a list of texts, not blank; got {self.prompt!r}"


@dataclass
class ColumnCaptionConfig(CaptionConfig):
    """Columns of the backend's own table: Parquet, CSV or Hugging Face."""

    _target_: str = "factory.catalog.captions.sources.ColumnCaptions"
    columns: list[str] = opt(factory=lambda: ["caption"], meaning="columns that hold captions")
    fallback_columns: list[str] = opt(
        factory=list, meaning="columns used where all of the above are empty"
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if not self.columns or not all([*self.columns, *self.fallback_columns]):
            yield (
                "columns must name at least one column, none of them blank; set columns=[caption]"
            )


def misplaced(caption: object, storage: object, metadata: object) -> Iterator[str]:
    """Yield why a strategy would find nothing where a backend's samples lie.

    Parts of other packages are taken to know what they do.
    """
    place = str(getattr(storage, "_target_", "")).rpartition(".")[2]
    facts = str(getattr(metadata, "_target_", "")).rpartition(".")[2]
    if isinstance(caption, ColumnCaptionConfig) and place in NO_TABLES and facts == "Discovery":
        yield (
            f"caption reads the columns {', '.join(caption.columns)} of a table, and "
            f"metadata=discovery in {place} has none; choose metadata=parquet, or "
            "data/caption=textfile"
        )
    if isinstance(caption, TextFileCaptionConfig | JsonFileCaptionConfig) and place in TABLES:
        yield (
            f"caption reads a {caption.suffix} file beside each sample, and the rows of {place} "
            "have none; choose data/caption=csv or data/caption=huggingface"
        )
