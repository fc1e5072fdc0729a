"""Media types, pictures and videos: which files count, and how one is measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from factory.errors import MediaError, StorageError
from factory.media.decode import decode
from factory.media.decode_limits import DecodeLimits
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


class MediaType(ABC):
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
class Pictures(MediaType):
    """Still pictures, measured by their first bytes.

    Attributes:
        suffixes: File suffixes that count; None leaves them to the metadata backend.
        faces: Look for the largest face, which takes decoding the picture.
        limits: What decoding one may take.
    """

    persisted_as: ClassVar[str] = "Pictures"

    suffixes: tuple[str, ...] | None = None
    # Not shown: sizes that were measured without faces, or in other limits, stay as they are.
    faces: bool = field(default=False, repr=False)
    limits: DecodeLimits = field(default_factory=DecodeLimits, repr=False)

    @property
    def whole(self) -> bool:
        """Whether measuring takes all of an object."""
        return self.faces

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size and format; see `MediaType`."""
        if verify or self.faces:
            self.limits.check_file(info.size)
            data = storage.read(info.key)
            facts = measure(data, len(data), max_pixels=max_pixels, limits=self.limits)
            if verify:
                decode(data, max_pixels=max_pixels, limits=self.limits)
            return facts._replace(focus=self._face(data, max_pixels)) if self.faces else facts
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
        wanted = dict.fromkeys(range(len(infos)), (0, storage.head_bytes))
        heads: dict[int, bytes] = {}
        ranges: dict[int, dict[int, bytes]] = {}
        while wanted:
            spans = [(infos[n].key, *span) for n, span in wanted.items()]
            again = {}
            for number, data in zip(wanted, storage.read_many(spans), strict=True):
                start, asked = wanted[number]
                if isinstance(data, StorageError):
                    outcomes[number] = data
                    continue
                if start:
                    ranges.setdefault(number, {})[start] = data
                head = heads[number] if start else data
                outcome = self._look(head, infos[number], max_pixels, ranges.get(number))
                if not isinstance(outcome, NeedMoreBytes):
                    outcomes[number] = outcome
                elif len(data) < asked:
                    outcomes[number] = MediaError(
                        "truncated header", f"{infos[number].key}: {outcome}"
                    )
                else:
                    heads[number] = head
                    again[number] = _next_span(outcome, len(head))
            wanted = again
        return outcomes

    def _look(
        self, head: bytes, info: ObjectInfo, max_pixels: int, ranges: dict[int, bytes] | None
    ) -> MediaFacts | Exception:
        """Return what some bytes of a picture say, or what to read if they are not enough."""
        try:
            return measure(
                head, info.size, max_pixels=max_pixels, limits=self.limits, ranges=ranges
            )
        except (NeedMoreBytes, MediaError) as outcome:
            return outcome

    def _face(self, data: bytes, max_pixels: int) -> tuple[float, float]:
        """Return the middle of the largest face as fractions; -1 where none is found."""
        edges = (FACE_EDGE, FACE_EDGE)
        try:
            pixels = decode(data, at_least=edges, max_pixels=max_pixels, limits=self.limits)
        except MediaError:
            return _NO_FACE  # said when the picture is read: sizes are known all the same
        return find_face(pixels) or _NO_FACE


def _next_span(more: NeedMoreBytes, read: int) -> tuple[int, int]:
    """Return (start, length) of what to read next of an object whose first bytes were read."""
    if more.start:
        return more.start, more.length - more.start
    return 0, max(more.length, 2 * read, SECOND_BYTES)


@dataclass(frozen=True)
class Videos(MediaType):
    """Videos, measured by their container's header and first frame.

    Attributes:
        suffixes: File suffixes that count as videos.
        measurement: Numbers how size and frames are measured: videos whose facts were measured
            by an earlier one are measured again.
    """

    persisted_as: ClassVar[str] = "Videos"

    suffixes: tuple[str, ...] = VIDEOS
    measurement: int = field(default=2, init=False)

    def measure(
        self, storage: Storage, info: ObjectInfo, *, max_pixels: int, verify: bool
    ) -> MediaFacts:
        """Return size, format and number of frames; see `MediaType`."""
        file = open_object(storage, info.key, info.size, HEADER_BLOCK)
        return measure_video(file, max_pixels=max_pixels, verify=verify)
