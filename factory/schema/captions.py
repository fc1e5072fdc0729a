"""Schemas of captions: what a sample says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.schema.options import opt


@dataclass
class CaptionConfig:
    """Fields every caption strategy shares."""

    _target_: str = MISSING
    prepend: str | None = opt(None, "text put before every caption, such as a trigger word")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()


@dataclass
class TextFileCaptionConfig(CaptionConfig):
    """A text file of the same stem beside each picture."""

    _target_: str = "factory.catalog.captions.TextFileCaptions"
    suffix: str = opt(".txt", "suffix of the text files")
    split_lines: bool = opt(True, "each line is a caption of its own; one is drawn per epoch")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not self.suffix.startswith("."):
            yield f"suffix must start with a dot, got {self.suffix!r}; set suffix=.txt"


@dataclass
class FilenameCaptionConfig(CaptionConfig):
    """The file's name, underscores read as spaces."""

    _target_: str = "factory.catalog.captions.FilenameCaptions"


@dataclass
class InstanceCaptionConfig(CaptionConfig):
    """One prompt, or a list to draw from, for every sample."""

    _target_: str = "factory.catalog.captions.InstanceCaptions"
    prompt: Any = opt(MISSING, "the prompt, or a list of prompts")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not any(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            yield f"prompt must be a text or a list of texts, not blank; got {self.prompt!r}"


@dataclass
class ColumnCaptionConfig(CaptionConfig):
    """Columns of the backend's own table: Parquet, CSV or Hugging Face."""

    _target_: str = "factory.catalog.captions.ColumnCaptions"
    columns: list[str] = opt(factory=lambda: ["caption"], meaning="columns that hold captions")
    fallback_columns: list[str] = opt(
        factory=list, meaning="columns used where all of the above are empty"
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not self.columns:
            yield "columns must name at least one column; set columns=[caption]"
