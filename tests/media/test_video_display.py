"""Videos as they are shown: turned, mirrored, with square pixels, frame by frame."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from factory.errors import MediaError
from factory.media.video import decode_clip, measure_video
from tests.support.clips import picture, read_numbers, write_clip

VIDEOS = Path(__file__).parent / "videos"
ONE = 1 << 16


def whole(file: Path, frames: int) -> NDArray[np.uint8]:
    """Return all frames of a video."""
    with file.open("rb") as stream:
        return decode_clip(stream, range(frames))


def show_by(file: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into an MP4's track header."""
    data = bytearray(file.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    matrix = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    data[start : start + 36] = struct.pack(">9i", *matrix)
    file.write_bytes(bytes(data))


MATRICES = [
    (x * (1 - turned), x * turned, y * turned, y * (1 - turned))
    for turned in (0, 1)
    for x in (1, -1)
    for y in (1, -1)
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_each_display_matrix_moves_pixels_where_it_says(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    file = write_clip(tmp_path / "a.mp4", 5, 2)
    stored = whole(file, 2)
    show_by(file, *matrix)
    shown = whole(file, 2)
    a, b, c, d = matrix
    # The oracle: each stored point (x, y) goes to (a x + c y, b x + d y), moved into the frame.
    y, x = np.mgrid[: stored.shape[1], : stored.shape[2]]
    left, top = a * x + c * y, b * x + d * y
    expected = np.empty_like(shown)
    expected[:, top - top.min(), left - left.min()] = stored
    assert np.array_equal(shown, expected)
    with file.open("rb") as stream:
        facts = measure_video(stream)
    assert (facts.height, facts.width) == shown.shape[1:3]


def test_a_mirrored_video_is_never_upside_down() -> None:
    mirrored, turned = whole(VIDEOS / "v04_hflip.mp4", 3), whole(VIDEOS / "v03_rot180.mp4", 3)
    with av.open(str(VIDEOS / "v04_hflip.mp4")) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:3]
    assert np.array_equal(mirrored, np.stack(stored)[:, :, ::-1])
    with av.open(str(VIDEOS / "v03_rot180.mp4")) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:3]
    assert np.array_equal(turned, np.stack(stored)[:, ::-1, ::-1])


def write_wide(file: Path, aspect: tuple[int, int]) -> Path:
    """Write a video of 96 x 64 px whose pixels are shown with an aspect."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(picture(3, number, (96, 64)), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("aspect", "width"), [((4, 3), 128), ((2, 3), 64), ((16, 15), 102), ((1, 1), 96)]
)
def test_pixels_are_shown_square(
    tmp_path: Path, suffix: str, aspect: tuple[int, int], width: int
) -> None:
    file = write_wide(tmp_path / f"a{suffix}", aspect)
    with file.open("rb") as source:
        facts = measure_video(source)
    assert (facts.width, facts.height) == (width, 64)
    shown = whole(file, 4)
    assert shown.shape == (4, 64, width, 3)
    # What was in the middle is there still.
    edge = np.abs(np.diff(shown[0, 32].astype(int), axis=0)).sum(axis=-1).argmax()
    assert abs(edge - width / 2) < 3
    if suffix == ".mp4" and aspect == (4, 3):
        show_by(file, 0, 1, -1, 0)
        with file.open("rb") as source:
            facts = measure_video(source)
        assert (facts.width, facts.height) == (64, width)


def test_the_limit_holds_for_frames_as_shown(tmp_path: Path) -> None:
    file = write_wide(tmp_path / "a.mkv", (4, 3))
    for limit, allowed in ((128 * 64, True), (96 * 64, False)):
        with file.open("rb") as stream:
            if allowed:
                assert measure_video(stream, max_pixels=limit).width == 128
                continue
            with pytest.raises(MediaError, match="too large"):
                measure_video(stream, max_pixels=limit)


def test_transparent_frames_are_laid_on_white(tmp_path: Path) -> None:
    file = tmp_path / "a.mov"
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, 24:, 3] = 255
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "argb"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format="argb")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = whole(file, 2)
    assert (shown[:, :, :24] == 255).all()
    assert (shown[:, :, 24:] == 0).all()


def test_ten_bits_and_odd_sizes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 97, 65, "yuv444p10le"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(picture(2, number, (97, 65)), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = whole(file, 4)
    assert shown.shape == (4, 65, 97, 3)
    assert read_numbers(shown) == [0, 1, 2, 3]
