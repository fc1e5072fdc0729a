"""Frames of videos: counted as a decoder finds them, and sought as decoding from the start does."""

import io
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from factory.errors import MediaError
from factory.media import video
from factory.media.video import decode_clip, measure_video
from factory.media.video_container import FrameTable, breaks_off
from tests.support.clips import picture, read_numbers, write_clip

VIDEOS = Path(__file__).parent / "videos"
SIZE = (96, 64)


def write(
    file: Path,
    codec: str = "libx264",
    frames: int = 40,
    times: Any = None,
    rate: int = 10,
    pix_fmt: str = "yuv420p",
    container_options: Any = None,
    **options: str,
) -> Path:
    """Write a video whose frame n is shown at `times[n]` tenths of a second."""
    with av.open(str(file), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 10)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(1, number, SIZE), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def decoded(file: Path) -> list[np.ndarray[Any, Any]]:
    """Return what FFmpeg decodes of a file from its start."""
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("name", "frames"), [("v06_vfr.mkv", 16), ("v25_elst.mp4", 15)])
def test_frames_are_those_that_are_shown(name: str, frames: int) -> None:
    file = VIDEOS / name
    assert len(decoded(file)) == frames
    for verify in (False, True):
        with file.open("rb") as stream:
            assert measure_video(stream, verify=verify).frames == frames
    for numbers in (range(frames), range(4, 12)):
        with file.open("rb") as stream:
            clip = decode_clip(stream, numbers)
        assert np.array_equal(clip, np.stack(decoded(file))[numbers.start : numbers.stop])


KINDS: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {"g": "10", "bf": "3"},
    "open.mp4": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"},
    "open.mkv": {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    "b-frames.ts": {"g": "10", "bf": "3"},
    "b-frames.avi": {"codec": "mpeg4", "g": "8", "bf": "2"},
    "plain.avi": {"codec": "mpeg4", "g": "8"},
    "refresh.mp4": {"x264-params": "intra-refresh=1:keyint=10"},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "g": "10"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "8", "auto-alt-ref": "1", "lag-in-frames": "10"},
    "vp8.webm": {"codec": "libvpx", "g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25, "g": "9", "bf": "2"},
    "mpeg2.ts": {"codec": "mpeg2video", "rate": 25, "g": "9", "bf": "2"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "keyint=10:open-gop=1:log-level=none"},
    "one-key.mp4": {"g": "250"},
    "intra.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "variable.mp4": {"times": [n * n for n in range(40)], "g": "10", "bf": "2"},
    "variable.mkv": {"times": [n + 7 * (n // 9) for n in range(40)], "g": "10", "bf": "2"},
    "late.mkv": {"times": [n + 500 for n in range(40)], "g": "10", "bf": "2"},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_the_same_wherever_decoding_begins(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, **KINDS[name])
    expected = decoded(file)
    with file.open("rb") as stream:
        assert measure_video(stream).frames == len(expected)
    for numbers in (range(5), range(9, 14), range(18, 22), range(21, 36, 7), range(38, 40)):
        with file.open("rb") as stream:
            clip = decode_clip(stream, range(numbers.start, min(numbers.stop, len(expected))))
        assert np.array_equal(clip, np.stack(expected[numbers.start : numbers.stop])) or (
            numbers.step > 1
        )


@pytest.mark.parametrize("name", ["b-frames.mp4", "open.mkv", "vp9.webm", "plain.avi"])
def test_only_frames_since_a_key_frame_are_decoded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / name, **KINDS[name])
    seen: list[int] = []
    whole = video._take

    def watch(frames: Any, *rest: Any) -> Any:
        def counted() -> Any:
            for frame in frames:
                seen.append(frame[0])
                yield frame

        return whole(counted(), *rest)

    monkeypatch.setattr(video, "_take", watch)
    with file.open("rb") as stream:
        decode_clip(stream, range(34, 37))
    assert seen[-1] == 36
    assert seen[0] >= 15


def test_where_seeking_fails_the_start_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.mp4", g="10", qp="0")

    def skips(*_: Any) -> Any:
        return iter([(99, SimpleNamespace(is_corrupt=False))])

    def fails(*_: Any) -> Any:
        raise av.error.InvalidDataError(1, "no way to seek")

    for replacement in (skips, fails, lambda *_: iter([])):
        monkeypatch.setattr(FrameTable, "seek", replacement)
        with file.open("rb") as stream:
            assert read_numbers(decode_clip(stream, range(24, 28))) == [24, 25, 26, 27]


def test_frames_are_chosen_by_how_many_there_are(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mkv", g="10", qp="0")
    with file.open("rb") as stream:
        clip = decode_clip(stream, lambda count: range(count - 2, count))
    assert read_numbers(clip) == [38, 39]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_a_file_that_was_cut_off_is_told_from_a_whole_one(tmp_path: Path, suffix: str) -> None:
    data = write_clip(tmp_path / f"a{suffix}").read_bytes()
    assert not breaks_off(io.BytesIO(data))
    for length in (len(data) - 1, len(data) // 2, 80):
        file = io.BytesIO(data[:length])
        file.seek(7)
        assert breaks_off(file)
        assert file.tell() == 7


def test_what_was_cut_off_before_its_pictures_is_not_of_sound_only(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        sound: Any = container.add_stream("aac", rate=44100)
        stream: Any = container.add_stream("libx264", rate=10)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for number in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate = 44100
            container.mux(sound.encode(samples))
            frame = av.VideoFrame.from_ndarray(picture(1, number, SIZE), "rgb24")
            container.mux(stream.encode(frame))
        container.mux([*sound.encode(), *stream.encode()])
    data = file.read_bytes()
    # Cut in the index, behind the description of the sound.
    second = data.index(b"trak", data.index(b"trak") + 4)
    reasons = set()
    for length in range(second - 4, data.index(b"mdat"), 40):
        with pytest.raises(MediaError) as caught:
            measure_video(io.BytesIO(data[:length]))
        reasons.add(caught.value.reason)
    assert reasons <= {"truncated", "damaged header", "damaged"}


def test_an_animated_gif_can_be_a_clip(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gif", "gif", 12, pix_fmt="rgb8")
    expected = decoded(file)
    with file.open("rb") as stream:
        facts = measure_video(stream)
    assert (facts.width, facts.height, facts.frames) == (*SIZE, 12)
    with file.open("rb") as stream:
        assert np.array_equal(decode_clip(stream, range(4, 8)), np.stack(expected[4:8]))
