"""JPEG XL: headers packed in bits, boxes, pixels, and its absence."""

import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.catalog.facts import TRANSIENT
from factory.errors import MediaError
from factory.media.decode import decode
from factory.media.headers import HEAD_BYTES, NeedMoreBytes, measure, read_header
from factory.records import MediaFacts
from tests.media.pictures import HEIGHT, WIDTH, gradient, jxl, plain, turned_jxl
from tests.support.examples import examples

SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
KIND = struct.pack(">I4s", 20, b"ftyp") + b"jxl \0\0\0\0jxl "


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def bits(*numbers: tuple[int, int]) -> bytes:
    """Pack (number, bits) from the lowest bit on, behind the signature of a codestream."""
    packed = "".join(format(number, f"0{length}b")[::-1] for number, length in numbers)
    return b"\xff\x0a" + int(packed[::-1], 2).to_bytes(16, "little")


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_sizes_are_those_the_encoder_was_given(width: int, height: int) -> None:
    data = jxl(np.zeros((height, width), np.uint8))
    assert measure(data, len(data)) == MediaFacts(width, height, "JXL")


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (128, 96), (96, 64), (160, 90), (128, 64)])
def test_sizes_written_as_a_ratio(size: tuple[int, int]) -> None:
    data = jxl(np.zeros((size[1], size[0], 3), np.uint8), distance=1.0)
    assert measure(data[:12], 10_000) == MediaFacts(*size, "JXL")


def test_edges_of_thirty_bits() -> None:
    data = bits((0, 1), (3, 2), (99_999, 30), (0, 3), (3, 2), (499, 30), (1, 1))
    with pytest.raises(MediaError, match="too large"):
        measure(data, len(data), max_pixels=10**6)
    assert measure(data, len(data)) == MediaFacts(500, 100_000, "JXL")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_the_reference_decoder(orientation: int) -> None:
    import imagecodecs

    data = turned_jxl(orientation)
    expected = imagecodecs.jpegxl_decode(data)
    facts = measure(data, len(data))
    assert (facts.height, facts.width, 3) == expected.shape
    assert np.abs(decode(data).astype(int) - expected).max() <= 1
    assert read_header(data, len(data)).orientation == orientation


@pytest.mark.parametrize("cut", [1, 2, 5, 11, 40])
def test_codestreams_in_parts_and_behind_other_boxes(cut: int) -> None:
    stream = jxl(gradient(), lossless=True)
    parts = [box(b"jxlp", b"\0\0\0\0" + stream[:cut]), box(b"jxlp", b"\x80\0\0\1" + stream[cut:])]
    data = SIGNATURE + KIND + box(b"jxll", b"\x0a") + b"".join(parts)
    assert measure(data, len(data)) == MediaFacts(WIDTH, HEIGHT, "JXL")
    assert np.array_equal(decode(data), gradient())


def test_boxes_of_long_and_of_open_lengths() -> None:
    stream = jxl(gradient(), lossless=True)
    note = struct.pack(">I4sQ", 1, b"xml ", 16 + 40_000) + bytes(40_000)
    data = SIGNATURE + KIND + note + struct.pack(">I4s", 0, b"jxlc") + stream
    with pytest.raises(NeedMoreBytes):
        measure(data[:HEAD_BYTES], len(data))
    assert measure(data, len(data)) == MediaFacts(WIDTH, HEIGHT, "JXL")
    assert np.array_equal(decode(data), gradient())


@pytest.mark.parametrize(
    "data",
    [
        SIGNATURE + KIND + struct.pack(">I4s", 3, b"jxlc") + bytes(64),
        SIGNATURE + KIND + box(b"jxlc", bytes(64)),
        SIGNATURE + KIND + struct.pack(">I4s", 0, b"xml ") + bytes(64),
        SIGNATURE + KIND + box(b"xml ", bytes(64)),
        b"\xff\x0a\xff",
    ],
)
def test_containers_without_a_picture(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        measure(data, len(data))
    assert caught.value.reason in ("not a picture", "truncated header")


def test_grey_transparent_and_deep_pixels() -> None:
    grey = gradient()[..., 0]
    assert (decode(jxl(grey)) == grey[..., None]).all()
    clear = np.dstack([gradient(), np.full((HEIGHT, WIDTH), 0, np.uint8)])
    assert (decode(jxl(clear)) == 255).all()
    half = np.dstack([gradient(), np.full((HEIGHT, WIDTH), 128, np.uint8)])
    wanted = gradient() * (128 / 255) + 255 * (127 / 255)
    assert np.abs(decode(jxl(half)) - wanted).max() <= 1
    pair = np.dstack([grey, np.full_like(grey, 255)])
    assert (decode(jxl(pair)) == grey[..., None]).all()
    deep = gradient().astype(np.uint16) * 257
    assert np.array_equal(decode(jxl(deep)), gradient())


def test_floating_point_values_are_refused() -> None:
    with pytest.raises(MediaError, match="8 or 16 bits") as caught:
        decode(jxl(np.zeros((8, 8, 3), np.float32)))
    assert caught.value.reason == "unsupported pixels"


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = np.stack([gradient(), gradient()[::-1], gradient()[:, ::-1]])
    data = jxl(frames, lossless=True)
    assert np.array_equal(decode(data), gradient())


def test_files_that_break_off_are_truncated() -> None:
    data = jxl(gradient(), distance=1.0)
    for length in range(20, len(data), 7):
        with pytest.raises(MediaError) as caught:
            decode(data[:length])
        assert caught.value.reason in ("truncated", "damaged")


def test_without_the_extra_a_sample_says_what_it_needs(monkeypatch: Any) -> None:
    data = jxl(gradient())
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for use in (lambda: measure(data, len(data)), lambda: decode(data)):
        with pytest.raises(MediaError, match=r"install it with: pip install '.*\[jxl\]'") as caught:
            use()
        assert caught.value.reason == "needs extra jxl"
    assert measure(plain("JPEG")).format == "JPEG"
    # Once the extra is there, the sample is measured again.
    assert str(caught.value).startswith(TRANSIENT)
