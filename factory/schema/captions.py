"""Schemas of captions and crops: what a sample says, and how it is cut."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
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


class CropAspect(StrEnum):
    """Which shape a picture is cut to."""

    preserve = "preserve"
    square = "square"
    closest = "closest"
    random = "random"


class CropStyle(StrEnum):
    """Where the cut is placed."""

    center = "center"  # type: ignore[assignment]  # hides str.center, which nobody calls
    random = "random"
    corner = "corner"


@dataclass
class CropConfig:
    """How a picture is cut to its bucket."""

    _target_: str = "factory.backends.image.Crop"
    aspect: CropAspect = opt(
        CropAspect.preserve, "shape: preserve | square | closest | random (of aspect_buckets)"
    )
    style: CropStyle = opt(CropStyle.center, "place of the cut: center | random | corner")
    aspect_buckets: list[float] = field(
        default_factory=list,
        metadata={"meaning": "width/height ratios that closest and random choose from"},
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        chooses = self.aspect in (CropAspect.closest, CropAspect.random)
        if chooses and not self.aspect_buckets:
            yield (
                f"aspect={self.aspect.value} chooses from aspect_buckets, which is empty; "
                "set aspect_buckets=[0.75,1.0,1.33]"
            )
        for ratio in self.aspect_buckets:
            if ratio <= 0:
                yield f"aspect_buckets must be positive width/height ratios, got {ratio:g}"
