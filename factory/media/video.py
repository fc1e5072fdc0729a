"""Size and frames of a video: containers read through PyAV, decoded from a key frame.

- Of several video streams the one FFmpeg holds for the best counts; cover pictures do not.
- Frames are as they are shown: turned and mirrored as the container says, with square pixels,
  and those that an edit list leaves out do not count. Transparent pixels are laid on white.
- Frames are counted, never derived from a duration and a rate: see `video_container`.
- Only self-contained containers are opened: no playlist, nothing that names another file.
"""

import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import takewhile
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from factory.errors import MediaError, MissingExtraError
from factory.media.headers import MAX_PIXELS
from factory.media.video_container import (
    SIGNATURE,
    FrameTable,
    announces_video,
    breaks_off,
    read_index,
    read_packets,
)
from factory.records import MediaFacts
from factory.storage.base import Storage

# Names how frames come about, for keys of caches: raise the number whenever the same bytes
# would give other pixels. It was not raised for clips that came out wrong before (mirrored
# ones upside down, hidden colours for transparent ones): all others keep their rows.
CLIP_VERSION = "rgb8-clip-2:forward,turned,blurred-cubic"
# The index of ten minutes of an MP4 is about this long, and so is a first key frame.
HEADER_BLOCK = 256 * 1024
# Frames are read in long strides: a request to a bucket costs as much time as a few MiB.
FRAMES_BLOCK = 4 * 1024 * 1024
# Blocks kept: FFmpeg goes back and forth between index, sound and pictures.
_KEPT_BLOCKS = 4
# Demuxers that read nothing but the file they are given.
_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,gif"}
_MICROSECONDS = 1_000_000  # the unit of a container's duration
# A year at 60 frames a second; above it, an index or a duration is damaged.
_MOST_FRAMES = 365 * 86400 * 60
# Pixels wider or higher than by this factor are damage: those of anamorphic films are below 3.
_WIDEST_PIXEL = 16

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
    """Return what the header, the first frame and the index of a video say about it.

    Args:
        file: The video, seekable. Without an index of its frames all of it is read.
        max_pixels: Largest width x height of a frame accepted; None means no limit.
        verify: Decode the whole video, which finds damage.

    Returns:
        Width and height as shown, px; the number of frames.

    Raises:
        MediaError: With reason "empty file", "not a video", "damaged header", "no video
            stream", "unknown codec", "too large", "truncated" or "damaged".
        MissingExtraError: PyAV is not installed.
    """
    with _opened(file) as (container, stream):
        frames = _decoded(container.decode(stream), max_pixels)
        first = next(frames, None)
        if first is None:
            raise MediaError("truncated", "it holds no whole frame")
        width, height = _shown_size(stream, first, max_pixels)
        decoded = 1 + sum(1 for _ in frames) if verify else 0
        kind = container.format.name.split(",")[0].upper()
        table = read_index(container, stream)
        if table is None:
            _check_count(_by_duration(container, stream), least=0)
    if table is None and not decoded:
        with _opened(file) as (container, stream):
            table = _read_packets(container, stream, file)
    count = decoded if table is None else table.count
    if verify and (decoded < count or (table is None and breaks_off(file))):
        raise _ends_early(decoded, count)
    _check_count(count)
    return MediaFacts(width, height, kind, max(count, decoded))


def decode_clip(
    file: BinaryIO,
    numbers: range | Callable[[int], range],
    *,
    each: Callable[[Pixels], Pixels] | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Pixels:
    """Return some frames of a video, decoded from the key frame before the first of them.

    Where no key frame can be gone to, the video is decoded from its start. Memory holds what
    `each` leaves of the frames.

    Args:
        file: The video, seekable.
        numbers: Frames taken, from 0, ascending; or what chooses them by how many there are.
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
    with _opened(file) as (container, stream):
        _check_size(stream.codec_context, max_pixels)
        table = read_index(container, stream)
        table = table or _read_packets(container, stream, file)
        chosen = numbers if isinstance(numbers, range) else numbers(table.count)
        show = _Show(stream, max_pixels, each)
        taken = _sought(container, table, chosen, show)
        if taken is not None:
            return taken
        if table.indexed and not table.key_times(chosen.start):
            return _from_start(container, chosen, show)
    with _opened(file) as (container, stream):
        return _from_start(container, chosen, _Show(stream, max_pixels, each))


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its video stream; what FFmpeg finds wrong is a `MediaError`."""
    av = pyav()
    file.seek(0)
    head = file.read(SIGNATURE)
    file.seek(0)
    if not head:
        raise MediaError("empty file")
    reason = "damaged header" if announces_video(head) else "not a video"
    try:
        # Titles in another encoding than UTF-8 must not cost the video.
        with av.open(file, container_options=_OPTIONS, metadata_errors="replace") as container:
            reason = "damaged"
            yield container, _stream(container, file)
    except av.error.FFmpegError as error:
        # FFmpeg's own "cannot allocate memory" is among them: a damaged length asked for it.
        raise MediaError(reason, f"{error.strerror}; it starts with {head!r}") from error


def _stream(container: Any, file: BinaryIO) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        if breaks_off(file):
            raise MediaError("truncated", "it ends before what describes its pictures")
        if stream is None:
            raise MediaError("no video stream", f"{container.format.name} of sound only")
        raise MediaError("unknown codec", "FFmpeg has no decoder for it")
    # Clips are worked on many at a time already; threads of one would compete with those.
    stream.codec_context.thread_count = 1
    return stream


def _read_packets(container: Any, stream: Any, file: BinaryIO) -> FrameTable:
    """Return the table of a video without an index.

    One that was cut off claims the frames of its duration, as an MP4 does by its index: whether
    those of a clip are there is found by decoding.
    """
    table = read_packets(container, stream)
    if not breaks_off(file):
        return table
    claimed = _by_duration(container, stream)
    return replace(table, claimed=claimed) if claimed > table.count else table


def _by_duration(container: Any, stream: Any) -> int:
    """Return how many frames a video has by its duration and rate; 0 where it tells neither."""
    rate = stream.average_rate or stream.guessed_rate or 0
    return int(Fraction(container.duration or 0, _MICROSECONDS) * rate + Fraction(1, 2))


def _decoded(frames: Iterable[Any], max_pixels: int | None) -> Iterator[Any]:
    """Yield frames that are whole."""
    for number, frame in enumerate(frames):
        _check_size(frame, max_pixels)
        if frame.is_corrupt:
            raise MediaError("damaged", f"frame {number}")
        yield frame


def _sought(container: Any, table: FrameTable, numbers: range, show: "_Show") -> Pixels | None:
    """Return frames decoded from a key frame; None where they have to be decoded from the start."""
    try:
        frames = table.seek(container, show.stream, numbers.start)
        if frames is None:
            return None
        whole = takewhile(lambda numbered: not numbered[1].is_corrupt, frames)
        taken, _ = _take(whole, numbers, show)
    except pyav().error.FFmpegError:
        return None  # a container that cannot be sought in, or that the start tells more about
    return np.stack(taken) if len(taken) == len(numbers) else None


def _from_start(container: Any, numbers: range, show: "_Show") -> Pixels:
    """Return frames of a video that is decoded from its start."""
    frames = enumerate(_decoded(container.decode(show.stream), show.max_pixels))
    taken, found = _take(frames, numbers, show)
    if len(taken) < len(numbers):
        raise _ends_early(found, numbers[-1] + 1)
    return np.stack(taken)


def _take(
    frames: Iterable[tuple[int, Any]], numbers: range, show: "_Show"
) -> tuple[list[Pixels], int]:
    """Return the frames of some numbers up to one that is missing, and how many were passed."""
    taken: list[Pixels] = []
    number = -1
    for number, frame in frames:
        if number > numbers[len(taken)]:
            break
        if number == numbers[len(taken)]:
            taken.append(show(frame))
            if taken[-1].shape != taken[0].shape:
                raise MediaError("damaged", f"frame {number} is of another size")
            if len(taken) == len(numbers):
                break
    return taken, number + 1


@dataclass(frozen=True)
class _Show:
    """Turns decoded frames into pixels as they are shown.

    Attributes:
        stream: Their stream.
        max_pixels: Largest width x height accepted.
        each: What is done with the pixels then.
    """

    stream: Any
    max_pixels: int | None
    each: Callable[[Pixels], Pixels] | None

    def __call__(self, frame: Any) -> Pixels:
        """Return RGB, uint8 [H, W, 3], or what `each` makes of it."""
        _check_size(frame, self.max_pixels)
        size = _square_size(self.stream, frame)
        _check_size(size, self.max_pixels)
        sized = {"width": size.width, "height": size.height}
        if any(component.is_alpha for component in frame.format.components):
            pixels = _on_white(frame.to_ndarray(format="rgba", **sized))
        else:
            pixels = frame.to_ndarray(format="rgb24", **sized)
        pixels = np.ascontiguousarray(_upright(frame, pixels))
        return pixels if self.each is None else self.each(pixels)


class _Size(NamedTuple):
    width: int
    height: int


def _shown_size(stream: Any, frame: Any, max_pixels: int | None) -> tuple[int, int]:
    """Return the width and height of a frame as it is shown, px."""
    size = _square_size(stream, frame)
    _check_size(size, max_pixels)
    # Turned is a view of a view here: no pixel is made.
    height, width = _upright(frame, np.broadcast_to(np.uint8(0), size[::-1])).shape
    return width, height


def _square_size(stream: Any, frame: Any) -> _Size:
    """Return the size of a frame with square pixels, before it is turned.

    The height stays, as containers have it that write a size to be shown.
    """
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
    if not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL:
        aspect = 1
    return _Size(max(1, int(frame.width * aspect + Fraction(1, 2))), frame.height)


def _check_size(sized: Any, max_pixels: int | None) -> None:
    width, height = sized.width, sized.height
    if max_pixels is not None and width * height > max_pixels:
        raise MediaError(
            "too large",
            f"frames of {width} x {height} px are above the limit of {max_pixels / 1e6:.0f} MP; "
            "raise the limit if they are meant to be so large",
        )


def _on_white(pixels: Pixels) -> Pixels:
    """Lay pixels [H, W, 4] on white."""
    colours, alpha = pixels[:, :, :3], pixels[:, :, 3:].astype(np.uint16)
    return ((colours * alpha + np.uint16(255) * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(frame: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    """Turn and mirror stored pixels [H, W, ...] by the display matrix, to the nearest quarter."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return pixels
    # A point (x, y) of the stored frame is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels = pixels.swapaxes(0, 1)
        a, d = c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _check_count(count: int, least: int = 1) -> None:
    if not least <= count <= _MOST_FRAMES:
        raise MediaError("damaged header", f"it claims {count} frames")


def _ends_early(found: int, wanted: int) -> MediaError:
    return MediaError("truncated", f"it ends after {found} of {wanted} frames")
