"""Schemas of backends: named sources of samples, and of embeddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from omegaconf import II, MISSING

from factory.backends.encode_mode import EncodeMode
from factory.config.schema.backend_fit import face_problems, filter_problems
from factory.config.schema.captions import CaptionConfig, TextFileCaptionConfig, misplaced
from factory.config.schema.crop import CompositeConfig, CropConfig
from factory.config.schema.derived import settings_of
from factory.config.schema.metadata import RowFilterConfig
from factory.config.schema.options import above, at_least, opt
from factory.config.schema.sizes import size_problems
from factory.config.schema.storage import HuggingFaceConfig, StorageConfig


class ResolutionType(StrEnum):
    """What `resolution` measures."""

    pixel = "pixel"
    area = "area"
    pixel_area = "pixel_area"


class DecodeMode(StrEnum):
    """How faithfully pictures are decoded and resized."""

    fast = "fast"
    exact = "exact"


class ConditioningSampling(StrEnum):
    """Which of several conditioning backends a sample has in an epoch."""

    combined = "combined"
    random = "random"


@dataclass
class BackendConfig:
    """One named source, of samples or of embeddings."""

    _target_: str = MISSING
    name: str = "${own_name:}"

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()

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


@settings_of("factory.sampling.active_window.ActiveWindow")
class WindowConfig:
    """When a backend takes part; epochs and optimizer steps count from 1, ends inclusive."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from at_least("start_epoch", given.start_epoch, 1)
        yield from at_least("start_step", given.start_step, 0)
        if given.end_epoch is not None and given.end_epoch < given.start_epoch:
            yield f"end_epoch {given.end_epoch} comes before start_epoch {given.start_epoch}"
        if given.end_step is not None and given.end_step < max(given.start_step, 1):
            yield f"end_step {given.end_step} comes before start_step {given.start_step}"
        yield from self._fade_problems()

    def _fade_problems(self) -> Iterator[str]:
        given: Any = self
        yield from at_least("fade_from_step", given.fade_from_step, 0)
        end = given.fade_to_step
        if end is None:
            if given.fade_from_step > 0:
                yield (
                    f"fade_from_step {given.fade_from_step} needs an end; set fade_to_step to the "
                    "last step that draws from the backend"
                )
            return
        for name in ("fade_from_step", "start_step"):
            start = getattr(given, name)
            if end < max(start, 1):
                yield f"fade_to_step {end} comes before {name} {start}"


@dataclass
class SampleBackendConfig(BackendConfig):
    """Fields every source of samples shares."""

    prefix: str = opt("${own_name:}", "folder of the samples in the storage")
    # Slots: filled by an option of their group, `inherit` unless pinned.
    storage: StorageConfig = opt(MISSING, "slot: where the bytes live")
    metadata: Any = opt(MISSING, "slot: how samples are found and measured")
    caption: CaptionConfig = opt(MISSING, "slot: what the samples say")
    crop: CropConfig = opt(MISSING, "slot: how samples are cut to their bucket")
    resolution: float = opt(II("data.resolution"), "target size; unit set by resolution_type")
    resolution_type: ResolutionType = opt(
        II("data.resolution_type"),
        "pixel: short edge, px | pixel_area: edge of the square of equal area, px | area: MP",
    )
    alignment: int = opt(II("data.alignment"), "target edges are multiples of this, px")
    minimum_image_size: float | None = opt(None, "smaller samples are dropped; px, or MP with area")
    maximum_image_size: float | None = opt(
        None, "larger samples are shrunk to target_downsample_size before the cut; px, or MP"
    )
    target_downsample_size: float | None = opt(
        None, "their size then: more of a large sample stays in the cut; px, or MP with area"
    )
    minimum_aspect_ratio: float | None = opt(None, "least width/height of a bucket")
    maximum_aspect_ratio: float | None = opt(None, "greatest width/height of a bucket")
    maximum_canvas: float | None = opt(II("data.maximum_canvas"), "largest area of a target, MP")
    aspect_sizes: Any = opt(
        II("data.aspect_sizes"),
        "forced targets, px, by the label they replace: {0.75: [768,1024]}",
    )
    max_samples: int | None = opt(None, "keep at most this many samples, chosen by name")
    decode: DecodeMode = opt(
        DecodeMode.fast,
        "fast: JPEGs at a reduced scale where that is enough | exact: whole, resized by Lanczos; "
        "videos are not affected",
    )
    text_embeds: str | None = opt(None, "text_embeds backend to use; null means the default one")
    image_embeds: str | None = opt(None, "image_embeds backend to use; null: the default one")
    conditioning_image_embeds: str | None = opt(
        None,
        "conditioning_image_embeds backend its pictures are also encoded by; null: the default "
        "one, if there is one and the backend is not of type conditioning",
    )
    encode_mode: EncodeMode | None = opt(
        None,
        "when pictures are encoded: precompute | on_demand | transient | each_epoch; null: as the "
        "image_embeds backend says",
    )
    encode_text_mode: EncodeMode | None = opt(
        None, "when captions are encoded; null: as the text_embeds backend says"
    )
    composite: CompositeConfig = opt(
        factory=CompositeConfig, meaning="which part of each picture is the sample"
    )
    filters: list[RowFilterConfig] = opt(
        factory=list,
        meaning="conditions on the table's columns, as [{column: NAME, minimum: 0.5}]",
    )
    limits: Any = opt(II("data.limits"), "what decoding one picture may take")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from above("resolution", self.resolution, 0)
        yield from at_least("alignment", self.alignment, 1)
        yield from at_least("max_samples", self.max_samples, 1)
        yield from aspect_problems(self.minimum_aspect_ratio, self.maximum_aspect_ratio)
        yield from size_problems(self)
        yield from self._misplaced_captions()
        yield from filter_problems(self)
        yield from caption_mode_problems("encode_text_mode", self.encode_text_mode)
        yield from self._mode_problems()
        yield from self._unseen_faces()

    def _mode_problems(self) -> Iterator[str]:
        """Refuse to draw cuts anew where none is drawn."""
        style = getattr(self.crop, "style", None)
        if self.encode_mode == EncodeMode.each_epoch and style not in ("random", "face"):
            yield (
                "encode_mode=each_epoch draws random cuts anew in each epoch, and with "
                f"crop.style={style} there are none; set encode_mode=on_demand, or draw them: "
                f"data/crop@data.backends.{self.name}=random"
            )

    def _misplaced_captions(self) -> Iterator[str]:
        yield from misplaced(self.caption, self.storage, self.metadata)

    def _unseen_faces(self) -> Iterator[str]:
        yield from face_problems(self)

    def references(self) -> Iterator[tuple[str, str]]:
        """Yield (field, name) of every other backend this one needs built before it."""
        for key in ("text_embeds", "image_embeds", "conditioning_image_embeds"):
            name = getattr(self, key)
            if name is not None:
                yield key, name


def aspect_problems(least: float | None, greatest: float | None) -> Iterator[str]:
    """Yield what is wrong with the limits of a bucket's shape."""
    yield from above("minimum_aspect_ratio", least, 0)
    yield from above("maximum_aspect_ratio", greatest, 0)
    if least is not None and greatest is not None and least > greatest:
        yield f"minimum_aspect_ratio {least:g} is above maximum_aspect_ratio {greatest:g}"


@dataclass
class ImageBackendConfig(SampleBackendConfig):
    """Still pictures to train on."""

    _target_: str = "factory.backends.image.ImageBackend"
    probability: float = opt(1.0, "weight in the mixture, relative to other backends")
    repeats: int = opt(0, "extra passes over the samples in each epoch")
    window: WindowConfig = opt(factory=WindowConfig, meaning="when the backend takes part")
    batch_size: int | None = opt(
        None, "samples of its optimizer steps, over all ranks and accumulation; null: the run's"
    )
    slider_strength: float | None = opt(
        None,
        "above, below or at 0: backends of equal sign form a group, and groups take turns as "
        "soon as one is not at 0; null: at 0, and batches say nothing",
    )
    conditioning_sampling: ConditioningSampling = opt(
        II("data.conditioning_sampling"),
        "of several conditioning backends, combined: all in every batch | random: one for each "
        "sample and epoch",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        yield from at_least("probability", self.probability, 0)
        yield from at_least("repeats", self.repeats, 0)
        yield from at_least("batch_size", self.batch_size, 1)
        if self.slider_strength is not None and not isfinite(self.slider_strength):
            yield f"slider_strength must be a finite number, got {self.slider_strength}"


@dataclass
class VideoBackendConfig(ImageBackendConfig):
    """Clips of videos to train on, each of as many frames."""

    _target_: str = "factory.backends.video.VideoBackend"
    frames: int = opt(16, "frames of a clip, taken around the middle of each video")
    frame_interval: int = opt(
        1, "every n-th frame is taken; videos below (frames-1)*n+1 frames are dropped"
    )
    suffixes: list[str] = opt(
        factory=lambda: [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"],
        meaning="file suffixes that count as videos",
    )

    @property
    def minimum_frames(self) -> int:
        """Frames a video must have: from the first one taken to the last."""
        return (self.frames - 1) * self.frame_interval + 1

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        yield from at_least("frames", self.frames, 1)
        yield from at_least("frame_interval", self.frame_interval, 1)
        if not self.suffixes:
            yield "suffixes is empty; set suffixes=[.mp4]"
        for suffix in self.suffixes:
            if not suffix.startswith("."):
                yield f"suffixes must start with a dot, got {suffix!r}"

    def _unseen_faces(self) -> Iterator[str]:
        yield from face_problems(self, still=False)


@dataclass
class StreamBackendConfig(ImageBackendConfig):
    """A Hugging Face dataset too large to download, trained on while it is read."""

    _target_: str = "factory.backends.streaming.backend.StreamBackend"
    prefix: str = opt("", "always empty: datasets have no folders")
    samples: int | None = opt(
        None, "samples of one pass in an epoch; null: as many as the dataset says it has"
    )
    shuffle_buffer: int = opt(
        1000, "rows shuffled among themselves, and shards among themselves; 0: dataset's order"
    )
    buffer: int = opt(4096, "rows a sample may wait for others of its bucket")
    buffer_mb: float = opt(1024.0, "memory that waiting pictures may hold, MiB")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        yield from at_least("samples", self.samples, 1)
        yield from at_least("shuffle_buffer", self.shuffle_buffer, 0)
        yield from at_least("buffer", self.buffer, 1)
        yield from at_least("buffer_mb", self.buffer_mb, 1)
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

    def _mode_problems(self) -> Iterator[str]:
        for name in ("encode_mode", "encode_text_mode"):
            value = getattr(self, name)
            if value not in (None, EncodeMode.transient):
                yield (
                    f"{name}={value} is for stored samples; a stream is encoded as it is read: "
                    f"set {name}=null"
                )

    def _unseen_faces(self) -> Iterator[str]:
        yield from face_problems(self, still=False)


@dataclass
class EvalBackendConfig(SampleBackendConfig):
    """Pictures to validate on: every one once, in a fixed order, never trained on."""

    _target_: str = "factory.backends.image.EvalBackend"
    conditioning_sampling: ConditioningSampling = opt(
        II("data.conditioning_sampling"), "as of pictures to train on"
    )

    def _mode_problems(self) -> Iterator[str]:
        if self.encode_mode == EncodeMode.each_epoch:
            yield (
                "encode_mode=each_epoch draws cuts anew, and validation compares the same ones "
                "over time; set encode_mode=precompute"
            )
