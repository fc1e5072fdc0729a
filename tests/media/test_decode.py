"""Pixels of every kind of file: upright, on white, whole or refused."""

import io
import random
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from factory.errors import MediaError
from factory.media.decode import DECODE_VERSION, decode
from factory.media.headers import NeedMoreBytes, measure
from tests.media.pictures import HEIGHT, WIDTH, animated, encode, exif, gradient, plain, samples
from tests.support.examples import examples

SAMPLES = samples()


def close(left: NDArray[np.uint8], right: NDArray[np.uint8], tolerance: float = 3.0) -> bool:
    """Whether two pictures differ by little on average."""
    return (
        left.shape == right.shape and float(np.abs(left - right.astype(float)).mean()) < tolerance
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_gives_contiguous_rgb_of_the_measured_size(name: str) -> None:
    data = SAMPLES[name]
    pixels = decode(data)
    facts = measure(data, len(data))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (facts.height, facts.width, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_colours_are_kept(kind: str) -> None:
    assert close(decode(plain(kind)), gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_all_orientations_are_turned_upright_as_pillow_does(kind: str, orientation: int) -> None:
    if kind == "TIFF":
        data = plain(kind, tiffinfo={0x0112: orientation})
    else:
        data = plain(kind, exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert close(decode(data), expected, 1.5)
    if orientation > 1:
        assert not close(decode(plain(kind)), decode(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpegs_are_turned_as_well(orientation: int) -> None:
    picture = Image.fromarray(gradient(400, 240))
    data = encode(picture, "JPEG", quality=95, exif=exif(orientation))
    whole = decode(data)
    wide, tall = whole.shape[1] // 4, whole.shape[0] // 4
    small = decode(data, at_least=(wide, tall))
    assert small.shape == (tall, wide, 3)
    resized = Image.fromarray(whole).resize((wide, tall), Image.Resampling.BOX)
    assert close(small, np.asarray(resized))


@settings(max_examples=examples(150), deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from([1, 3, 6, 8]),
)
def test_reduced_jpegs_cover_what_is_asked_for(
    size: tuple[int, int], least: tuple[int, int], orientation: int
) -> None:
    data = encode(Image.new("RGB", size, "teal"), "JPEG", exif=exif(orientation))
    facts = measure(data, len(data))
    pixels = decode(data, at_least=least)
    assert pixels.shape[1] >= min(least[0], facts.width)
    assert pixels.shape[0] >= min(least[1], facts.height)
    assert pixels.shape[1] <= facts.width
    assert pixels.shape[0] <= facts.height
    # Reduced by one factor: the proportions stay, to a pixel.
    scale = pixels.shape[1] / facts.width
    assert abs(pixels.shape[0] - facts.height * scale) <= 1 + facts.height / facts.width


def test_reduced_decoding_is_used() -> None:
    data = encode(Image.new("RGB", (1600, 1067)), "JPEG")
    # 1067 rows at 3/8 are 400.125; the row that is an eighth full is dropped.
    assert decode(data, at_least=(575, 384)).shape == (400, 600, 3)
    assert decode(data, at_least=(600, 401)).shape == (401, 600, 3)
    assert decode(data).shape == (1067, 1600, 3)


def test_cmyk_is_converted_as_pillow_does() -> None:
    data = SAMPLES["jpeg cmyk"]
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(data), expected)
    assert close(decode(data), gradient(), 5.0)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        grey = decode(encode(Image.fromarray(values), kind))
        assert grey[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()
        assert (grey == grey[..., :1]).all()


def test_transparent_16_bit_grey_is_white() -> None:
    values = np.array([[0, 1000, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values), "PNG", transparency=1000)
    assert decode(data)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_values_are_refused_not_guessed(mode: str) -> None:
    data = encode(Image.new(mode, (4, 4)), "TIFF")
    with pytest.raises(MediaError, match="save the picture with 8 or 16 bits") as caught:
        decode(data)
    assert caught.value.reason == "unsupported pixels"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_transparency_is_laid_on_white(kind: str) -> None:
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 128), (16, 0, 32, 32))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encode(picture, kind, **options))
    assert np.abs(pixels[8, 4].astype(int) - 255).max() <= 2
    assert np.abs(pixels[8, 28].astype(int) - [255, 127, 127]).max() <= 4


def test_a_transparent_palette_entry_is_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        assert decode(encode(picture, kind, transparency=1))[0].tolist() == [
            [10, 20, 30],
            [255, 255, 255],
        ]
    levels = encode(picture, "PNG", transparency=bytes([128, 0]))
    assert np.abs(decode(levels)[0].astype(int) - [[132, 137, 142], [255] * 3]).max() <= 1


def test_a_transparent_colour_is_white() -> None:
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    data = encode(picture, "PNG", transparency=(9, 9, 9))
    assert decode(data)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    assert close(decode(animated(kind)), gradient(), 6.0)


def test_one_pixel() -> None:
    assert decode(SAMPLES["1x1"]).tolist() == [[[9, 8, 7]]]
    assert decode(encode(Image.new("RGB", (1, 1)), "JPEG"), at_least=(512, 512)).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("reduced", [False, True])
def test_files_that_break_off_are_refused_as_truncated(kind: str, reduced: bool) -> None:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (80, 120, 3)).astype(np.uint8))
    data = encode(noise, kind)
    least = (20, 20) if reduced else None
    for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        with pytest.raises(MediaError) as caught:
            decode(data[: int(len(data) * share)], at_least=least)
        assert caught.value.reason in ("truncated", "truncated header"), (share, caught.value)


def test_a_jpeg_without_its_last_bytes_is_truncated() -> None:
    data = plain("JPEG")
    for missing in (1, 2, 3, 20):
        with pytest.raises(MediaError) as caught:
            decode(data[:-missing])
        assert caught.value.reason == "truncated"


def test_stray_bytes_between_segments_are_no_damage() -> None:
    data = plain("JPEG")
    scan = data.index(b"\xff\xda")
    padded = data[:scan] + bytes(5) + data[scan:]
    assert close(decode(padded), gradient())


@pytest.mark.parametrize("data", [b"", b"text", b"<html></html>" * 9, b"\xff\xd8\xff" * 20])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError):
        decode(data)


def test_a_bomb_is_refused_before_any_pixel_is_made() -> None:
    data = encode(Image.new("1", (4000, 4000)), "PNG")
    with pytest.raises(MediaError) as caught:
        decode(data, max_pixels=10**6)
    assert caught.value.reason == "too large"
    assert decode(data, max_pixels=None).shape == (4000, 4000, 3)


def test_pillows_own_limit_neither_warns_nor_changes() -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = encode(Image.new("1", (10_000, 10_000)), "PNG")
    assert decode(data).shape == (10_000, 10_000, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_subsampling_without_a_name_is_left_to_pillow() -> None:
    data = bytearray(plain("JPEG", subsampling=0))
    shape = decode(bytes(data)).shape
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = 0x14  # the first component's factors: once across, four times down
    assert decode(bytes(data)).shape == shape


def test_the_version_names_the_mode() -> None:
    assert DECODE_VERSION.startswith("rgb8-")


FUZZ = settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", SAMPLES)
@FUZZ
@given(rng=st.randoms(use_true_random=False), least=st.sampled_from([None, (40, 20)]))
def test_damaged_bytes_give_pixels_or_a_reason(
    name: str, rng: random.Random, least: tuple[int, int] | None
) -> None:
    damaged = bytearray(SAMPLES[name])
    for _ in range(rng.randint(1, 8)):
        reach = len(damaged) if rng.random() < 0.5 else min(len(damaged), 300)
        damaged[rng.randrange(reach)] = rng.randrange(256)
    if rng.random() < 0.2:
        del damaged[rng.randrange(len(damaged)) :]
    data = bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            facts = measure(data, len(data), max_pixels=10**6)
        except MediaError:
            with pytest.raises(MediaError):
                decode(data, at_least=least, max_pixels=10**6)
            return
        try:
            pixels = decode(data, at_least=least, max_pixels=10**6)
        except MediaError as error:
            assert error.reason
            return
    assert pixels.dtype == np.uint8
    if least is None:
        assert pixels.shape == (facts.height, facts.width, 3)


@FUZZ
@given(st.binary(max_size=200), st.sampled_from(sorted(SAMPLES)), st.integers(0, 40))
def test_invented_bytes_give_facts_or_a_reason(tail: bytes, name: str, keep: int) -> None:
    data = SAMPLES[name][:keep] + tail
    for size in (None, len(data), len(data) + 100):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert measure(data, size).width > 0
            except (MediaError, NeedMoreBytes) as outcome:
                assert str(outcome)


def test_sizes_of_the_sample_pictures() -> None:
    assert decode(SAMPLES["jpeg exif"]).shape == (WIDTH, HEIGHT, 3)
