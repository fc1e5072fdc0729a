"""Videos: size, frames and order are those written; what is damaged says so."""

import io
import os
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from factory.errors import MediaError, MissingExtraError, StorageUnavailableError
from factory.media.video import Clip, RangeReader, decode_clip, measure_video, open_object
from factory.records import MediaFacts
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.support.clips import read_numbers, shows, turn_clockwise, write_clip
from tests.support.examples import examples


def measured(file: Path, *, verify: bool = False) -> MediaFacts:
    """Measure a file through ranged reads of its storage."""
    storage = LocalStorage(str(file.parent))
    size = file.stat().st_size
    return measure_video(open_object(storage, file.name, size, 4096), verify=verify)


@pytest.mark.parametrize(
    ("suffix", "said"),
    [
        (".mp4", "MOV"),
        (".mov", "MOV"),
        (".mkv", "MATROSKA"),
        (".webm", "MATROSKA"),
        (".avi", "AVI"),
    ],
)
def test_each_container_tells_size_and_frames(tmp_path: Path, suffix: str, said: str) -> None:
    file = write_clip(tmp_path / f"a{suffix}", frames=23)
    assert measured(file) == measured(file, verify=True) == MediaFacts(96, 64, said, 23)


def test_a_stream_of_unknown_length_is_counted(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.webm", frames=23, live="1")
    with av.open(str(file)) as container:
        assert container.duration is None
    assert measured(file).frames == 23


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi"])
def test_frames_come_in_order_and_at_the_interval(tmp_path: Path, suffix: str) -> None:
    file = write_clip(tmp_path / f"a{suffix}", 5, 30)
    with file.open("rb") as stream:
        clip = decode_clip(stream, range(3, 24, 5))
    assert (clip.shape, clip.dtype) == ((5, 64, 96, 3), np.uint8)
    assert read_numbers(clip) == [3, 8, 13, 18, 23]
    assert shows(clip, 5)


def test_each_frame_is_cut_as_it_comes(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4")
    with file.open("rb") as stream:
        clip = decode_clip(stream, range(2, 4), each=lambda frame: frame[:10, -20:])
    assert clip.shape == (2, 10, 20, 3)
    assert read_numbers(clip) == [2, 3]


def test_a_turned_video_stands_upright(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4", 5)
    turn_clockwise(file)
    assert (measured(file).width, measured(file).height) == (64, 96)
    with file.open("rb") as stream:
        clip = decode_clip(stream, range(4))
    # Turned clockwise, what was left is above.
    assert clip.shape == (4, 96, 64, 3)
    assert shows(clip[:, :48], 5)
    assert read_numbers(clip[:, 48:]) == [0, 1, 2, 3]


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 200))
def test_a_clip_lies_around_the_middle(frames: int, interval: int, spare: int) -> None:
    clip = Clip(frames, interval)
    total = clip.minimum_frames + spare
    numbers = clip.numbers(total)
    assert len(numbers) == frames
    assert 0 <= total - 1 - numbers[-1] - numbers[0] <= 1
    assert not np.any(np.diff(list(numbers)) != interval)


def reason(file: Path, *, verify: bool = False) -> str:
    """Return why a file cannot be measured."""
    with pytest.raises(MediaError) as caught:
        measured(file, verify=verify)
    return caught.value.reason


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is a text, not a video\n" * 99)
    assert reason(tmp_path / "text.mp4") == "not a video"
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "empty file"
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux([*sound.encode(frame), *sound.encode()])
    assert reason(tmp_path / "sound.mp4") == "no video stream"


def test_a_list_that_names_other_files_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = write_clip(tmp_path / "other.mp4")
    file = tmp_path / "a.mp4"
    file.write_text(f"ffconcat version 1.0\nfile {other.name}\n")
    with file.open("rb") as stream, av.open(io.BytesIO(stream.read())) as container:
        assert container.format.name == "concat"
    assert reason(file) == "not a video"
    file.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n")
    assert reason(file) == "not a video"


def test_a_video_without_its_index_is_damaged(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert reason(file) == "damaged header"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_that_breaks_off_is_found_by_decoding(tmp_path: Path, suffix: str) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    file = write_clip(tmp_path / f"a{suffix}", frames=40, **options)
    file.write_bytes(file.read_bytes()[:-400])
    assert measured(file).frames == 40
    with file.open("rb") as stream, pytest.raises(MediaError) as caught:
        decode_clip(stream, range(40))
    assert caught.value.reason in ("truncated", "damaged")
    with file.open("rb") as stream:
        assert read_numbers(decode_clip(stream, range(3))) == [0, 1, 2]


def test_verifying_finds_an_index_that_promises_too_much(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4", frames=40, movflags="faststart")
    file.write_bytes(file.read_bytes()[:-400])
    assert reason(file, verify=True) in ("truncated", "damaged")


def test_an_absurd_length_is_damage(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mkv")
    data = bytearray(file.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes in milliseconds
    data[place : place + 8] = struct.pack(">d", 1e14)
    file.write_bytes(bytes(data))
    assert reason(file) == "damaged header"


def test_larger_frames_than_allowed_are_refused(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mp4")
    with file.open("rb") as stream, pytest.raises(MediaError, match=r"too large: .* 96 x 64 px"):
        measure_video(stream, max_pixels=96 * 64 - 1)
    with file.open("rb") as stream, pytest.raises(MediaError, match="too large"):
        decode_clip(stream, range(2), max_pixels=96 * 64 - 1)


def test_titles_in_any_encoding_are_let_pass(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "a.mkv")
    data = file.read_bytes()
    assert b"Lavf" in data
    file.write_bytes(data.replace(b"Lavf", b"\xe4\xf6\xfc\xff"))
    assert measured(file).frames == 12


@pytest.fixture(scope="module", params=[".mp4", ".mkv", ".webm", ".avi"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("sound")
    return write_clip(folder / f"a{request.param}", frames=8, size=(48, 32)).read_bytes()


@settings(max_examples=examples(100))
@given(draw=st.data())
def test_any_damage_gives_frames_or_a_reason(sound: bytes, draw: st.DataObject) -> None:
    data = bytearray(sound[: draw.draw(st.integers(0, len(sound)))])
    for _ in range(draw.draw(st.integers(0, 20)) if data else 0):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert measure_video(io.BytesIO(data), max_pixels=10**6).frames > 0
        clip = decode_clip(io.BytesIO(data), range(1, 7, 2), max_pixels=10**6)
    except MediaError as error:
        event(error.reason)
    else:
        assert len(clip) == 3


def noise(file: Path) -> bytes:
    """Return a video of 30 frames that no codec makes small, its index in front."""
    rng = np.random.default_rng(0)
    options = {"movflags": "faststart"}
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10, options={"qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for _ in range(30):
            pixels = rng.integers(0, 256, (128, 128, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return file.read_bytes()


class Counted(MemoryStorage):
    """A storage that adds up the bytes read, and may fail."""

    total = 0
    broken = False

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Read and count."""
        if self.broken and start:
            raise StorageUnavailableError("gone")
        data = super().read(key, start, length)
        type(self).total += len(data)
        return data


def test_measuring_reads_a_part_and_decoding_no_byte_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(tmp_path / "a.mp4")
    storage = Counted("counted")
    storage.write("a.mp4", data)
    monkeypatch.setattr(Counted, "total", 0)
    file = open_object(storage, "a.mp4", len(data), 16384)
    assert measure_video(file).frames == 30
    assert Counted.total < len(data) / 2
    monkeypatch.setattr(Counted, "total", 0)
    whole = decode_clip(open_object(storage, "a.mp4", len(data), 65536), range(30))
    assert Counted.total <= len(data)
    assert np.array_equal(whole, decode_clip(open_object(storage, "a.mp4", -1, 0), range(30)))
    storage.delete("a.mp4")


def test_what_the_storage_raises_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(tmp_path / "a.mp4")
    storage = Counted("failing")
    storage.write("a.mp4", data)
    monkeypatch.setattr(Counted, "broken", True)
    with pytest.raises(StorageUnavailableError, match="gone"):
        decode_clip(open_object(storage, "a.mp4", len(data), 16384), range(30))
    storage.delete("a.mp4")


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_range_reader_reads_as_a_file_does(data: bytes, draw: st.DataObject) -> None:
    storage = MemoryStorage("ranges")
    storage.write("a", data)
    reader = RangeReader(storage, "a", len(data), draw.draw(st.integers(1, 64)))
    twin = io.BytesIO(data)
    assert reader.seekable()
    for _ in range(8):
        whence = draw.draw(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
        offset = draw.draw(st.integers(0, 220) if whence == os.SEEK_SET else st.integers(-99, 99))
        assert reader.seek(offset, whence) == twin.seek(offset, whence)
        got = reader.read(draw.draw(st.integers(1, 64)))
        assert got == twin.read(len(got))
        assert got or reader.tell() >= len(data)
        assert len(reader._blocks) <= 4


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_clip(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"data-backend-factory\[video\]"):
        measured(file)
