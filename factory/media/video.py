"""What are the size and the frames of a video: containers read through PyAV, decoded forward.

- Of several video streams the one FFmpeg holds for the best counts; cover pictures do not.
- Frames are turned as the container says; mirroring and non-square pixels are not applied.
- A container without an index of frames (Matroska, MPEG-TS) is taken by its duration and rate.
- Only self-contained containers are opened: no playlist, nothing that names another file.
"""

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from factory.errors import MediaError, MissingExtraError
from factory.media.headers import MAX_PIXELS
from factory.records import MediaFacts
from factory.storage.base import Storage

# Names how frames come about, for keys of caches: raise the number whenever the same bytes
# would give other pixels.
CLIP_VERSION = "rgb8-clip-2:forward,turned,blurred-cubic"
# The index of ten minutes of an MP4 is about this long, and so is a first key frame.
HEADER_BLOCK = 256 * 1024
# Frames are read in long strides: a request to a bucket costs as much time as a few MiB.
FRAMES_BLOCK = 4 * 1024 * 1024
# Blocks kept: FFmpeg goes back and forth between index, sound and pictures.
_KEPT_BLOCKS = 4
# Demuxers that read nothing but the file they are given.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"}
_MICROSECONDS = 1_000_000  # the unit of a container's duration
# A year at 60 frames a second; above it, an index or a duration is damaged.
_MOST_FRAMES = 365 * 86400 * 60

Pixels = NDArray[np.uint8]


def pyav() -> ModuleType:
    """Return PyAV.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise MissingExtraError("av", "video", "reading videos") from error
    return av


@dataclass(frozen=True)
class Clip:
    """Which frames of a video are taken: evenly spaced ones around its middle.

    Attributes:
        frames: Number of frames taken.
        interval: Every n-th frame is taken; 1 takes neighbours.
    """

    frames: int
    interval: int = 1

    @property
    def minimum_frames(self) -> int:
        """Frames from the first one taken to the last: what a video must have."""
        return (self.frames - 1) * self.interval + 1

    def numbers(self, total: int) -> range:
        """Return the numbers, from 0, of the frames taken of a video of `total` frames."""
        first = max(0, total - self.minimum_frames) // 2
        return range(first, first + self.minimum_frames, self.interval)


class RangeReader(io.RawIOBase):
    """An object of a storage as a seekable file, of which only a few blocks are held."""

    def __init__(self, storage: Storage, key: str, size: int, block: int) -> None:
        """Open nothing yet; `size` and `block` are bytes."""
        super().__init__()
        self._storage, self._key, self._size, self._block = storage, key, size, block
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """Any place can be gone to."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place and return it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer up to the end of a block; return the bytes read, 0 at the end."""
        if self._position >= self._size:
            return 0
        number, offset = divmod(self._position, self._block)
        part = self._read_block(number)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _read_block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * self._block
            length = min(self._block, self._size - start)
            self._blocks[number] = self._storage.read(self._key, start, length)
        self._blocks.move_to_end(number)
        if len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[number]


def open_object(storage: Storage, key: str, size: int, block: int) -> BinaryIO:
    """Return an object as a seekable file.

    Args:
        storage: Where it lies.
        key: Its key.
        size: Its bytes; negative where they are not known, and the object is read whole.
        block: Bytes read at once.

    Raises:
        StorageError: It cannot be read; the file's own reads raise it too.
    """
    if size < 0:
        return io.BytesIO(storage.read(key))
    return cast("BinaryIO", RangeReader(storage, key, size, block))


def measure_video(
    file: BinaryIO, *, max_pixels: int | None = MAX_PIXELS, verify: bool = False
) -> MediaFacts:
    """Return what the header and the first frame of a video say about it.

    Args:
        file: The video, seekable.
        max_pixels: Largest width x height of a frame accepted; None means no limit.
        verify: Decode the whole video, which finds damage and counts its frames exactly.

    Returns:
        Width and height as seen, px; the number of frames, from the container's index, else
        its duration and rate, else its packets.

    Raises:
        MediaError: With reason "empty file", "not a video", "damaged header", "no video
            stream", "unknown codec", "too large", "truncated" or "damaged".
        MissingExtraError: PyAV is not installed.
    """
    with _opened(file) as (container, stream):
        frames = _decoded(container, stream, max_pixels)
        first = next(frames, None)
        if first is None:
            raise MediaError("truncated", "it holds no whole frame")
        height, width = _turned(first, np.empty((first.height, first.width), bool)).shape
        count = 1 + sum(1 for _ in frames) if verify else _count(container, stream)
        if verify and count < stream.frames:
            raise _breaks_off(count, stream.frames)
        if not 0 < count <= _MOST_FRAMES:
            raise MediaError("damaged header", f"it claims {count} frames")
        return MediaFacts(width, height, container.format.name.split(",")[0].upper(), count)


def decode_clip(
    file: BinaryIO,
    numbers: range,
    *,
    each: Callable[[Pixels], Pixels] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Pixels:
    """Return some frames of a video, decoded forward from its start.

    The time grows with the number of the last frame; memory holds what `each` leaves of them.

    Args:
        file: The video, seekable.
        numbers: Frames taken, from 0, ascending.
        each: Resizes or cuts a frame, RGB uint8 [h, w, 3], as soon as it is decoded.
        max_pixels: Largest width x height of a frame accepted; None means no limit.

    Returns:
        RGB, uint8 [F, H, W, 3].

    Raises:
        MediaError: With reason "truncated" where the video ends before the last of them;
            "damaged", also of frames that differ in size; or those of `measure_video` for
            other bytes that give no video.
        MissingExtraError: PyAV is not installed.
    """
    taken = []
    with _opened(file) as (container, stream):
        number = -1
        for number, frame in enumerate(_decoded(container, stream, max_pixels)):
            if number in numbers:
                pixels = _turned(frame, frame.to_ndarray(format="rgb24"))
                taken.append(pixels if each is None else each(pixels))
                if taken[-1].shape != taken[0].shape:
                    raise MediaError("damaged", f"frame {number} is of another size")
            if len(taken) == len(numbers):
                return np.stack(taken)
    raise _breaks_off(number + 1, numbers[-1] + 1)


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its video stream; what FFmpeg finds wrong is a `MediaError`."""
    av = pyav()
    head = file.read(_SIGNATURE)
    file.seek(0)
    if not head:
        raise MediaError("empty file")
    reason = "damaged header" if _announces_video(head) else "not a video"
    try:
        # Titles in another encoding than UTF-8 must not cost the video.
        with av.open(file, container_options=_OPTIONS, metadata_errors="replace") as container:
            reason = "damaged"
            yield container, _stream(container)
    except av.error.FFmpegError as error:
        # FFmpeg's own "cannot allocate memory" is among them: a damaged length asked for it.
        raise MediaError(reason, f"{error.strerror}; it starts with {head!r}") from error


# The longest signature (RIFF....AVI ) ends here.
_SIGNATURE = 12
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _announces_video(head: bytes) -> bool:
    """Whether the first bytes are those of a container."""
    if head[4:8] in _MP4_BOXES or head.startswith(b"\x1aE\xdf\xa3"):
        return True
    return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def _stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise MediaError("no video stream", f"{container.format.name} of sound only")
    if stream.codec_context is None:
        raise MediaError("unknown codec", "FFmpeg has no decoder for it")
    # Clips are worked on many at a time already; threads of one would compete with those.
    stream.codec_context.thread_count = 1
    return stream


def _decoded(container: Any, stream: Any, max_pixels: int | None) -> Iterator[Any]:
    """Yield the frames of a stream from its start, each one whole."""
    _check_size(stream.codec_context, max_pixels)
    for number, frame in enumerate(container.decode(stream)):
        _check_size(frame, max_pixels)
        if frame.is_corrupt:
            raise MediaError("damaged", f"frame {number}")
        yield frame


def _check_size(sized: Any, max_pixels: int | None) -> None:
    width, height = sized.width, sized.height
    if max_pixels is not None and width * height > max_pixels:
        raise MediaError(
            "too large",
            f"frames of {width} x {height} px are above the limit of {max_pixels / 1e6:.0f} MP; "
            "raise the limit if they are meant to be so large",
        )


def _turned(frame: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn stored pixels [H, W, ...] by the display matrix, to the nearest quarter."""
    # FFmpeg counts degrees against the clock, as rot90 counts quarters.
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _count(container: Any, stream: Any) -> int:
    if stream.frames:
        return int(stream.frames)
    rate = stream.average_rate or stream.guessed_rate
    seconds = Fraction(container.duration or 0, _MICROSECONDS)
    if stream.duration:
        seconds = stream.duration * stream.time_base
    if rate and seconds > 0:
        return max(1, int(seconds * rate + Fraction(1, 2)))
    container.seek(0)
    return sum(1 for packet in container.demux(stream) if packet.size)


def _breaks_off(found: int, wanted: int) -> MediaError:
    return MediaError("truncated", f"it ends after {found} of {wanted} frames")
