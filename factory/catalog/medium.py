"""What are the samples of a backend: which files count, and how is one measured?"""

from dataclasses import dataclass
from typing import Protocol

from factory.errors import MediaError
from factory.media.decode import decode
from factory.media.headers import HEAD_BYTES, NeedMoreBytes, measure
from factory.media.video import HEADER_BLOCK, measure_video, open_object
from factory.records import MediaFacts, ObjectInfo
from factory.storage.base import Storage

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class Medium(Protocol):
    """A kind of sample; a picklable value, so that any engine can measure with it."""

    @property
    def suffixes(self) -> tuple[str, ...] | None:
        """File suffixes that count, lower case; None leaves them to the metadata backend."""

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return what an object says about itself, decoding all of it with `verify`.

        Raises:
            MediaError: The object is not the sample it claims to be.
            StorageError: It cannot be read.
        """


@dataclass(frozen=True)
class Pictures:
    """Still pictures, measured by their first bytes."""

    suffixes: tuple[str, ...] | None = None

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size and format; see `Medium`."""
        if verify:
            data = storage.read(info.key)
            facts = measure(data, len(data), max_pixels=max_pixels)
            decode(data, max_pixels=max_pixels)
            return facts
        length = HEAD_BYTES
        while True:
            head = storage.read(info.key, 0, length)
            try:
                return measure(head, info.size, max_pixels=max_pixels)
            except NeedMoreBytes as more:
                if len(head) < length:
                    raise MediaError("truncated header", f"{info.key}: {more}") from more
                length = max(more.length, 2 * length)


@dataclass(frozen=True)
class Videos:
    """Videos, measured by their container's header and first frame.

    Attributes:
        suffixes: File suffixes that count as videos.
    """

    suffixes: tuple[str, ...] = VIDEOS

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size, format and number of frames; see `Medium`."""
        file = open_object(storage, info.key, info.size, HEADER_BLOCK)
        return measure_video(file, max_pixels=max_pixels, verify=verify)
