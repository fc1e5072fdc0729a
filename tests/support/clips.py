"""Small videos for tests: the left half tells which clip it is, the right half which frame."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tests.support.pictures import colour

# Grey levels between one frame and the next: more than lossy coding is off by.
STEP = 6
TOLERANCE = 2
CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4"}
# Coded without loss where the codec can; key frames far apart, so that order needs decoding.
OPTIONS = {"libx264": {"qp": "0", "g": "250"}, "libvpx-vp9": {"lossless": "1"},
           "mpeg4": {"qmin": "1", "qmax": "1"}}  # fmt: skip


def picture(number: int, frame: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the pixels of one frame, RGB [H, W, 3]."""
    width, height = size
    pixels = np.full((height, width, 3), frame * STEP, np.uint8)
    pixels[:, : width // 2] = colour(number)
    return pixels


def write_clip(
    file: Path,
    number: int = 0,
    frames: int = 12,
    *,
    size: tuple[int, int] = (96, 64),
    **options: str,
) -> Path:
    """Write one video of 10 frames a second; `options` go to the container."""
    file.parent.mkdir(parents=True, exist_ok=True)
    codec = CODECS.get(file.suffix, "libx264")
    with av.open(str(file), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=10, options=OPTIONS.get(codec, {}))
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for frame in range(frames):
            pixels = av.VideoFrame.from_ndarray(picture(number, frame, size), "rgb24")
            container.mux(stream.encode(pixels))
        container.mux(stream.encode())
    return file


def write_clips(
    folder: Path, count: int, frames: int = 12, *, first: int = 0, **options: Any
) -> None:
    """Write `count` MP4 files with a caption file beside each."""
    for number in range(first, first + count):
        file = write_clip(folder / f"{number:04d}.mp4", number, frames, **options)
        file.with_suffix(".txt").write_text(f"clip {number}\n")


def read_numbers(frames: NDArray[np.uint8]) -> list[int]:
    """Return which frames of a clip [F, H, W, 3] these are."""
    seen = frames[:, frames.shape[1] // 2, -4].astype(float).mean(axis=-1) / STEP
    assert np.abs(seen - seen.round()).max() * STEP <= TOLERANCE
    return seen.round().astype(int).tolist()


def shows(frames: NDArray[np.uint8], number: int) -> bool:
    """Tell whether every frame of a clip [F, H, W, 3] is of the video of a number."""
    left = frames[:, frames.shape[1] // 2, 4].astype(int)
    return bool(np.abs(left - np.array(colour(number))).max() <= TOLERANCE + 2)


def turn_clockwise(file: Path) -> None:
    """Say in an MP4's track header that it is shown turned by 90 degrees, as phones do."""
    data = bytearray(file.read_bytes())
    # The matrix follows 40 bytes of a version 0 header: (a b u, c d v, x y w).
    start = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(bytes(data))
