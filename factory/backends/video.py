"""Backends of videos: clips of equal length, taken from the middle of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from factory.backends.image import ImageBackend
from factory.backends.pixels import MediaReader, Picture, PictureColumns, cut_parts
from factory.catalog.decisions import TOO_SHORT
from factory.catalog.facts import Facts
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.media_type import VIDEOS, MediaType, Videos
from factory.engine.engine import Engine
from factory.errors import MediaError
from factory.limits import AtLeast, FileSuffix, Names
from factory.media.composite import Composite
from factory.media.crop import fit
from factory.media.headers import MAX_PIXELS
from factory.media.video import CLIP_VERSION, FRAMES_BLOCK, Clip, decode_clip, open_object, pyav
from factory.storage.base import Storage


@dataclass(frozen=True)
class ReadClip:
    """Reads one video and cuts its clip; picklable, so that any engine can run it.

    Attributes:
        storage: Where the objects are.
        clip: Which frames are taken.
        composite: Which part of each frame is the sample.
    """

    storage: Storage
    clip: Clip
    composite: Composite = field(default_factory=Composite)

    @property
    def takes_bytes(self) -> bool:
        """Videos are read in parts."""
        return False

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes the frames of every clip."""
        return {
            "decode": CLIP_VERSION,
            "storage": self.storage.identity,
            "frames": self.clip.frames,
            "frame_interval": self.clip.interval,
            **self.composite.parts,
        }

    def parts(self, pictures: PictureColumns) -> Mapping[str, Sequence[Any] | NDArray[Any]]:
        """Return what shapes the frames of each clip: the cut, and where it begins."""
        starts = [self.clip.numbers(total).start for total in pictures.frames.tolist()]
        return {**cut_parts(pictures), "first": np.array(starts, np.int64)}

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB frames [F, H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the video it claims to be, is of another size, or
                ends too early.
            StorageError: It cannot be read.
            MissingExtraError: PyAV is not installed.
        """
        crop = picture.crop

        def shaped(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
            part = self.composite.of(frame)
            picture.check(part.shape[1], part.shape[0])
            return fit(part, crop.intermediary, crop.offset, crop.target)

        return decode_clip(
            open_object(self.storage, picture.key, picture.size, FRAMES_BLOCK),
            lambda count: self._numbers(picture, count),
            each=shaped,
            max_pixels=max(MAX_PIXELS, picture.pixels * self.composite.image_count),
        )

    def _numbers(self, picture: Picture, count: int) -> range:
        """Return the frames of a clip by how many the video has, whatever a table claims."""
        if count < self.clip.minimum_frames:
            raise MediaError(
                TOO_SHORT,
                f"it holds {count} frames, of which its catalog claims {picture.frames}, and a "
                f"clip needs {self.clip.minimum_frames}",
            )
        return self.clip.numbers(count)


@dataclass(frozen=True, kw_only=True)
class VideoBackend(ImageBackend):
    """Clips of videos to train on, each of as many frames.

    Attributes:
        frames: Frames of a clip, taken around the middle of each video.
        frame_interval: Every n-th frame is taken; videos below (frames-1)*n+1 frames are dropped.
        suffixes: File suffixes that count as videos. Rows of tables always do.
    """

    what: ClassVar[str] = "video"

    frames: Annotated[int, AtLeast(1)] = 16
    frame_interval: Annotated[int, AtLeast(1)] = 1
    suffixes: Annotated[Sequence[str], Names(1), FileSuffix()] = VIDEOS

    def __post_init__(self) -> None:
        """Check the settings, and accept any sequence of suffixes."""
        object.__setattr__(self, "suffixes", tuple(suffix.lower() for suffix in self.suffixes))
        super().__post_init__()

    @property
    def clip(self) -> Clip:
        """Which frames of each video are taken."""
        return Clip(self.frames, self.frame_interval)

    @property
    def minimum_frames(self) -> int:
        """Videos of fewer frames are dropped as "too few frames"."""
        return self.clip.minimum_frames

    @property
    def medium(self) -> MediaType:
        """Files that count are videos."""
        return Videos(tuple(self.suffixes))

    @property
    def reader(self) -> MediaReader:
        """Samples are read as clips."""
        return ReadClip(self.storage, self.clip, self.composite)

    def scan(self, known: Facts | None, engine: Engine, journal: Journal | None = None) -> Facts:
        """Measure what is new or changed since `known`.

        Raises:
            MissingExtraError: PyAV is not installed.
            ObjectNotFoundError: The folder does not exist.
            EmptyBackendError: It holds no video.
        """
        pyav()  # before anything is listed
        return super().scan(known, engine, journal)

    def advice(self) -> dict[str, str]:
        """Return how to keep samples, by the reason they are dropped for."""
        where = f"data.backends.{self.name}"
        shorter = (
            f"a clip needs {self.minimum_frames} frames: lower {where}.frames={self.frames} or "
            f"{where}.frame_interval={self.frame_interval}; with metadata=parquet set "
            "metadata.frames_column"
        )
        return {**super().advice(), TOO_SHORT: shorter}
