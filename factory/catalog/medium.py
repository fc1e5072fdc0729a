"""What are the samples of a backend: which files count, and how is one measured?"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from factory.errors import MediaError, StorageError
from factory.media.decode import decode
from factory.media.faces import find_face
from factory.media.headers import NeedMoreBytes, measure
from factory.media.video import HEADER_BLOCK, measure_video, open_object
from factory.records import MediaFacts, ObjectInfo
from factory.storage.base import Storage

# What is asked for where the first bytes did not do: an EXIF block has up to 64 KiB, and what
# follows it has the size. Less would take a third read of a photograph with a preview.
SECOND_BYTES = 64 * 1024
# Short edge at which faces are looked for, px: at twice it the search takes four times as long
# and finds faces of a tenth of the picture's height, which nobody frames a picture around.
FACE_EDGE = 384
# Not NaN, which equals nothing: facts of an unchanged folder must equal those known.
_NO_FACE = (-1.0, -1.0)

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class Medium(ABC):
    """A kind of sample; a picklable value, so that any engine can measure with it."""

    @property
    @abstractmethod
    def suffixes(self) -> tuple[str, ...] | None:
        """File suffixes that count, lower case; None leaves them to the metadata backend."""

    @property
    def whole(self) -> bool:
        """Whether measuring takes all of an object, not only its first bytes."""
        return False

    @abstractmethod
    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return what an object says about itself, decoding all of it with `verify`.

        Raises:
            MediaError: The object is not the sample it claims to be.
            StorageError: It cannot be read.
        """

    def measure_many(
        self, storage: Storage, infos: Sequence[ObjectInfo], *, max_pixels: int, verify: bool
    ) -> list[MediaFacts | Exception]:
        """Return what each object says about itself, in their order; errors in their place."""
        return [
            self._measured(storage, info, max_pixels=max_pixels, verify=verify) for info in infos
        ]

    def _measured(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts | Exception:
        try:
            return self.measure(storage, info, max_pixels=max_pixels, verify=verify)
        except (MediaError, StorageError) as error:
            return error


@dataclass(frozen=True)
class Pictures(Medium):
    """Still pictures, measured by their first bytes.

    Attributes:
        suffixes: File suffixes that count; None leaves them to the metadata backend.
        faces: Look for the largest face, which takes decoding the picture.
    """

    suffixes: tuple[str, ...] | None = None
    # Not shown: sizes that were measured without faces stay as they are.
    faces: bool = field(default=False, repr=False)

    @property
    def whole(self) -> bool:
        """Whether measuring takes all of an object."""
        return self.faces

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size and format; see `Medium`."""
        if verify or self.faces:
            data = storage.read(info.key)
            facts = measure(data, len(data), max_pixels=max_pixels)
            if verify:
                decode(data, max_pixels=max_pixels)
            return facts._replace(focus=_face(data, max_pixels)) if self.faces else facts
        (outcome,) = self.measure_many(storage, [info], max_pixels=max_pixels, verify=False)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure_many(
        self, storage: Storage, infos: Sequence[ObjectInfo], *, max_pixels: int, verify: bool
    ) -> list[MediaFacts | Exception]:
        """Return size and format of each; those with longer headers are asked again together."""
        if verify or self.faces:
            return super().measure_many(storage, infos, max_pixels=max_pixels, verify=verify)
        outcomes: list[MediaFacts | Exception] = [MediaError("not read")] * len(infos)
        wanted = dict.fromkeys(range(len(infos)), storage.head_bytes)
        while wanted:
            spans = [(infos[n].key, 0, length) for n, length in wanted.items()]
            again = {}
            for number, head in zip(wanted, storage.read_many(spans), strict=True):
                outcome = _look(head, infos[number], wanted[number], max_pixels)
                if isinstance(outcome, int):
                    again[number] = outcome
                else:
                    outcomes[number] = outcome
            wanted = again
        return outcomes


def _face(data: bytes, max_pixels: int) -> tuple[float, float]:
    """Return the middle of the largest face as fractions; -1 where none is found."""
    try:
        pixels = decode(data, at_least=(FACE_EDGE, FACE_EDGE), max_pixels=max_pixels)
    except MediaError:
        return _NO_FACE  # said when the picture is read: sizes are known all the same
    return find_face(pixels) or _NO_FACE


def _look(
    head: bytes | StorageError, info: ObjectInfo, asked: int, max_pixels: int
) -> MediaFacts | Exception | int:
    """Return what a picture's first bytes say; or how many to read, if that is not enough."""
    if isinstance(head, StorageError):
        return head
    try:
        return measure(head, info.size, max_pixels=max_pixels)
    except NeedMoreBytes as more:
        if len(head) < asked:
            return MediaError("truncated header", f"{info.key}: {more}")
        return max(more.length, 2 * asked, SECOND_BYTES)
    except MediaError as error:
        return error


@dataclass(frozen=True)
class Videos(Medium):
    """Videos, measured by their container's header and first frame.

    Attributes:
        suffixes: File suffixes that count as videos.
        measurement: Numbers how size and frames are measured: videos whose facts were measured
            by an earlier one are measured again.
    """

    suffixes: tuple[str, ...] = VIDEOS
    measurement: int = field(default=2, init=False)

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size, format and number of frames; see `Medium`."""
        file = open_object(storage, info.key, info.size, HEADER_BLOCK)
        return measure_video(file, max_pixels=max_pixels, verify=verify)
