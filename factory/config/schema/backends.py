"""Schemas of backends: named sources of samples, and of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from omegaconf import II, MISSING

from factory.backends.encode_mode import EncodeMode
from factory.config.schema.captions import (
    NO_TABLES,
    CaptionConfig,
    TextFileCaptionConfig,
    misplaced,
    target_name,
)
from factory.config.schema.crop import CompositeConfig, CropConfig
from factory.config.schema.derived import SLOT, settings_of
from factory.config.schema.metadata import RowFilterConfig
from factory.config.schema.options import opt
from factory.config.schema.storage import HuggingFaceConfig, StorageConfig
from factory.media.geometry.validation import resolution_problems, size_problems


@dataclass
class BackendConfig:
    """One named source, of samples or of embeddings."""

    _target_: str = MISSING
    name: str = "${own_name:}"

    def references(self) -> Iterator[tuple[str, str]]:
        """Yield (field, name) of every other backend this one needs built before it."""
        yield from ()


def caption_mode_problems(name: str, mode: EncodeMode | None) -> Iterator[str]:
    """Yield what is wrong with a mode for captions."""
    if mode == EncodeMode.each_epoch:
        yield (
            f"{name}=each_epoch draws cuts of pictures anew, and captions have none; set "
            f"{name}=precompute"
        )


@settings_of("factory.sampling.active_window.ActiveWindow", rules=True)
class WindowConfig:
    """When a backend takes part; epochs and optimizer steps count from 1, ends inclusive."""


@settings_of("factory.backends.image.SampleBackend")
class SampleBackendConfig(BackendConfig):
    """Fields every source of samples shares."""

    _target_: str = MISSING
    prefix = "${own_name:}"
    # Slots: filled by an option of their group, `inherit` unless pinned.
    storage: StorageConfig = SLOT
    metadata = SLOT
    caption: CaptionConfig = SLOT
    crop: CropConfig = SLOT
    resolution = II("data.resolution")
    resolution_type = II("data.resolution_type")
    alignment = II("data.alignment")
    maximum_canvas = II("data.maximum_canvas")
    aspect_sizes = II("data.aspect_sizes")
    encode_mode: EncodeMode | None
    encode_text_mode: EncodeMode | None
    composite: CompositeConfig
    filters: list[RowFilterConfig]
    limits = II("data.limits")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from size_problems(self)
        yield from resolution_problems(self.resolution, str(self.resolution_type))
        yield from misplaced(self.caption, self.storage, self.metadata)
        yield from filter_problems(self)
        yield from caption_mode_problems("encode_text_mode", self.encode_text_mode)
        yield from self.mode_problems()
        yield from self.face_problems()

    def mode_problems(self: Any) -> Iterator[str]:
        """Yield why cuts would be drawn anew where none is drawn."""
        style = getattr(self.crop, "style", None)
        if self.encode_mode == EncodeMode.each_epoch and style not in ("random", "face"):
            yield (
                "encode_mode=each_epoch draws random cuts anew in each epoch, and with "
                f"crop.style={style} there are none; set encode_mode=on_demand, or draw them: "
                f"data/crop@data.backends.{self.name}=random"
            )

    def face_problems(self: Any) -> Iterator[str]:
        """Yield why no face can be looked for, so that every cut would be at random."""
        if getattr(self.crop, "style", None) != "face":
            return
        instead = f"choose another data/crop@data.backends.{self.name}, such as square"
        facts = target_name(self.metadata)
        sized = getattr(self.metadata, "width_column", None) is not None
        if isinstance(self, VideoBackendConfig | StreamBackendConfig):
            yield f"crop.style=face looks at stored pictures, not at videos or streams; {instead}"
        elif self.composite.image_count > 1:
            yield f"crop.style=face looks at whole files, and composite uses a part; {instead}"
        elif facts == "ParquetTable" and sized:
            yield (
                "crop.style=face looks at every picture, and metadata=parquet opens none where the "
                "table has sizes; set metadata.width_column=null and metadata.height_column=null, "
                f"or {instead}"
            )
        elif facts == "ColumnFacts":
            yield (
                "crop.style=face looks at every picture, and metadata=columns opens none; choose "
                f"metadata@data.backends.{self.name}=discovery, or {instead}"
            )

    def references(self: Any) -> Iterator[tuple[str, str]]:
        """Yield (field, name) of every other backend this one needs built before it."""
        for key in ("text_embeds", "image_embeds", "conditioning_image_embeds"):
            name = getattr(self, key)
            if name is not None:
                yield key, name


def filter_problems(backend: Any) -> Iterator[str]:
    """Yield why row filters have no column to look at."""
    place, facts = target_name(backend.storage), target_name(backend.metadata)
    if backend.filters and place in NO_TABLES and facts == "Discovery":
        columns = ", ".join(str(one.column) for one in backend.filters)
        yield (
            f"filters look at the columns {columns} of a table, and metadata=discovery in {place} "
            f"has none; choose metadata@data.backends.{backend.name}=parquet, or set filters=[]"
        )


@settings_of("factory.backends.image.ImageBackend")
class ImageBackendConfig(SampleBackendConfig):
    """Still pictures to train on."""

    window: WindowConfig
    conditioning_sampling = II("data.conditioning_sampling")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if self.slider_strength is not None and not isfinite(self.slider_strength):
            yield f"slider_strength must be a finite number, got {self.slider_strength}"


@settings_of("factory.backends.video.VideoBackend")
class VideoBackendConfig(ImageBackendConfig):
    """Clips of videos to train on, each of as many frames."""

    @property
    def minimum_frames(self: Any) -> int:
        """Frames a video must have: from the first one taken to the last."""
        return int((self.frames - 1) * self.frame_interval + 1)


@settings_of("factory.backends.streaming.backend.StreamBackend")
class StreamBackendConfig(ImageBackendConfig):
    """A Hugging Face dataset too large to download, trained on while it is read."""

    prefix: str = opt("", "always empty: datasets have no folders")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        if not isinstance(self.storage, HuggingFaceConfig):
            yield (
                "storage must be huggingface for a stream; pin it: "
                f"storage@data.backends.{self.name}=huggingface"
            )
        if isinstance(self.caption, TextFileCaptionConfig):
            yield (
                "caption cannot be textfile, since a stream has no files beside its samples; "
                f"pin another: data/caption@data.backends.{self.name}=huggingface"
            )
        if self.max_samples is not None:
            yield "max_samples is for stored samples; set samples for the length of an epoch"

    def mode_problems(self: Any) -> Iterator[str]:
        """Yield why a stream cannot be encoded beforehand."""
        for name in ("encode_mode", "encode_text_mode"):
            value = getattr(self, name)
            if value not in (None, EncodeMode.transient):
                yield (
                    f"{name}={value} is for stored samples; a stream is encoded as it is read: "
                    f"set {name}=null"
                )


@settings_of("factory.backends.image.EvalBackend")
class EvalBackendConfig(SampleBackendConfig):
    """Pictures to validate on: every one once, in a fixed order, never trained on."""

    conditioning_sampling = II("data.conditioning_sampling")

    def mode_problems(self: Any) -> Iterator[str]:
        """Yield why no cut is drawn anew for validation."""
        if self.encode_mode == EncodeMode.each_epoch:
            yield (
                "encode_mode=each_epoch draws cuts anew, and validation compares the same ones "
                "over time; set encode_mode=precompute"
            )
