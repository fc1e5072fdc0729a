"""Headers of real pictures, of pictures cut short, and of damaged ones."""

import io
import random
import struct
import warnings
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from factory.errors import MediaError
from factory.media.headers import (
    HEAD_BYTES,
    MAX_PIXELS,
    NeedMoreBytes,
    exif_orientation,
    measure,
    sniff,
)
from factory.records import MediaFacts
from tests.media.pictures import HEIGHT, WIDTH, animated, encode, exif, plain, samples
from tests.support.examples import examples

SAMPLES = samples()
# Pillow reads no JPEG XL.
KNOWN_TO_PILLOW = [name for name in SAMPLES if not name.startswith("jxl")]


def by_pillow(data: bytes) -> MediaFacts:
    with Image.open(io.BytesIO(data)) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        frames = getattr(image, "n_frames", 1)
        size = ImageOps.exif_transpose(image).size
    return MediaFacts(*size, kind, frames)


def read_as_asked(data: bytes, first: int, size: int | None) -> tuple[MediaFacts, int]:
    """Measure as a scan does, with more bytes whenever they are asked for."""
    length = first
    for _ in range(100):
        try:
            return measure(data[:length], size), length
        except NeedMoreBytes as more:
            assert more.length > length
            length = more.length
            if size is None and length >= len(data):
                size = len(data)
    raise AssertionError("asked for more without end")


@pytest.mark.parametrize("name", KNOWN_TO_PILLOW)
def test_a_whole_file_measures_as_pillow_says(name: str) -> None:
    data = SAMPLES[name]
    assert measure(data, len(data)) == by_pillow(data)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("first", [1, 11, 30, 64, 500])
@pytest.mark.parametrize("told", [True, False])
def test_growing_reads_end_with_the_same_facts(name: str, first: int, told: bool) -> None:
    data = SAMPLES[name]
    facts, length = read_as_asked(data, first, len(data) if told else None)
    assert facts == measure(data, len(data))
    if told:
        assert length <= max(len(data), first)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_width_and_height_are_those_after_orientation(kind: str, orientation: int) -> None:
    if kind == "TIFF":
        data = plain(kind, tiffinfo={0x0112: orientation})
    else:
        data = plain(kind, exif=exif(orientation))
    facts = measure(data, len(data))
    expected = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    assert (facts.width, facts.height) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP"])
def test_the_first_bytes_of_a_large_file_are_enough(kind: str) -> None:
    noise = Image.effect_noise((700, 500), 80).convert("RGB")
    data = encode(noise, kind)
    assert len(data) > 2 * HEAD_BYTES
    assert measure(data[:HEAD_BYTES]) == MediaFacts(700, 500, kind)


def test_a_long_exif_block_asks_for_what_it_needs() -> None:
    block = exif(6)
    block[0x010E] = "x" * 60_000
    data = plain("JPEG", exif=block)
    with pytest.raises(NeedMoreBytes) as more:
        measure(data[:HEAD_BYTES], len(data))
    assert HEAD_BYTES < more.value.length <= len(data)
    assert "first" in str(more.value)
    assert read_as_asked(data, HEAD_BYTES, len(data))[0] == MediaFacts(HEIGHT, WIDTH, "JPEG")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_frames_are_counted(kind: str) -> None:
    data = animated(kind, frames=4)
    assert measure(data, len(data)).frames == 4


def test_a_png_with_a_further_default_picture_counts_it_as_pillow_does() -> None:
    first = Image.new("RGB", (8, 8), "red")
    rest = [Image.new("RGB", (8, 8), colour) for colour in ("green", "blue")]
    data = encode(first, "PNG", save_all=True, append_images=rest, default_image=True)
    assert measure(data, len(data)) == by_pillow(data)


def test_pages_of_a_tiff_are_frames() -> None:
    page = Image.new("L", (30, 20))
    data = encode(page, "TIFF", save_all=True, append_images=[page, page])
    assert measure(data, len(data)) == MediaFacts(30, 20, "TIFF", 3)


sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))
MODES = ["1", "L", "P", "RGB"]


@settings(max_examples=examples(150), deadline=None)
@given(
    sizes,
    st.sampled_from([*MODES, "I;16", "I;16B", "RGBA", "CMYK", "LAB"]),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 8),
    st.sampled_from([None, "tiff_lzw", "tiff_adobe_deflate"]),
)
def test_tiffs_measure_as_pillow_says(
    size: tuple[int, int], mode: str, pages: int, big: bool, turn: int, packed: str | None
) -> None:
    big &= mode != "I;16B"  # Pillow cannot read the big-endian BigTIFF that it writes itself
    page = Image.new(mode, size)
    rest = [page] * (pages - 1)
    options = {"big_tiff": big, "tiffinfo": {0x0112: turn}, "compression": packed}
    data = encode(page, "TIFF", save_all=True, append_images=rest, **options)
    with Image.open(io.BytesIO(data)) as image:
        wanted = MediaFacts(*image.size, "TIFF", image.n_frames)
    assert measure(data, len(data)) == wanted
    assert wanted.frames == pages


@settings(max_examples=examples(100), deadline=None)
@given(sizes, st.sampled_from([*MODES, "RGBA"]), st.booleans())
def test_bmps_measure_as_pillow_says(size: tuple[int, int], mode: str, downwards: bool) -> None:
    data = bytearray(encode(Image.new(mode, size), "BMP"))
    if downwards:
        struct.pack_into("<i", data, 22, -size[1])
    assert measure(bytes(data), len(data)) == by_pillow(bytes(data))


def test_a_bmp_of_the_oldest_kind() -> None:
    data = b"BM" + struct.pack("<IIIIHHHH", 0, 0, 26, 12, 5, 3, 1, 24) + bytes(64)
    assert measure(data, len(data)) == by_pillow(data) == MediaFacts(5, 3, "BMP")


@pytest.mark.parametrize(("bits", "compression"), [(24, 4), (7, 0)])
def test_bmps_that_no_decoder_takes_are_refused(bits: int, compression: int) -> None:
    data = bytearray(plain("BMP"))
    struct.pack_into("<HI", data, 28, bits, compression)
    with pytest.raises(MediaError, match=f"BMP of {bits} bits, compression {compression}"):
        measure(bytes(data), len(data))


@settings(max_examples=examples(80), deadline=None)
@given(sizes, st.integers(1, 6), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_gifs_measure_as_pillow_says(
    size: tuple[int, int], frames: int, comment: bool, loop: bool, rng: random.Random
) -> None:
    pictures = [
        Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).convert("P")
        for _ in range(frames)
    ]
    options = ({"comment": b"words " * 100} if comment else {}) | ({"loop": 0} if loop else {})
    data = encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:], **options)
    assert measure(data, len(data)) == by_pillow(data)
    for end in range(20, len(data), max(1, len(data) // 20)):
        agree_with_pillow(data[:end])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text file named .png", "not a picture"),
        (b"<html><body>404</body></html>", "not a picture"),
        (b"\0" * 64, "not a picture"),
        (b"\xff\xd8\xff", "truncated header"),
        (b"BM", "truncated header"),
        (b"\x89PNG\r\n\x1a\n", "truncated header"),
        (b"GIF89a", "truncated header"),
        (b"RIFF\x10\0\0\0WEBPVP8?" + bytes(40), "not a picture"),
        (b"\xff\xd8\xff\xd9" + bytes(20), "not a picture"),
        (b"\xff\xd8\xff\xda" + bytes(20), "not a picture"),
        (b"\0\0\0\x10ftypavif" + bytes(64), "not a picture"),
    ],
)
def test_other_bytes_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(MediaError) as caught:
        measure(data, len(data))
    assert caught.value.reason == reason


def test_an_empty_head_of_a_file_with_a_size_asks_for_bytes() -> None:
    with pytest.raises(NeedMoreBytes):
        measure(b"", 5000)
    with pytest.raises(MediaError, match="empty file"):
        measure(b"", None)
    with pytest.raises(NeedMoreBytes):
        measure(b"\xff\xd8", -1)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IDAT" + bytes(4)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + body + struct.pack(">I", zlib.crc32(body)) + end


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(MediaError, match=r"30000 x 30000 px is 900 MP, above .* 268 MP") as caught:
        measure(png_header(30_000, 30_000))
    assert caught.value.reason == "too large"
    assert measure(png_header(30_000, 30_000), max_pixels=10**9).width == 30_000
    assert measure(png_header(2**30, 2**30), max_pixels=None).height == 2**30
    edge = int(MAX_PIXELS**0.5)
    assert measure(png_header(edge, edge)).width == edge


def test_a_wide_panorama_is_no_bomb() -> None:
    assert measure(png_header(20_000, 5_000)) == MediaFacts(20_000, 5_000, "PNG")


def test_a_picture_without_extent_is_no_picture() -> None:
    with pytest.raises(MediaError, match="0 x 5 px"):
        measure(png_header(0, 5))


def test_a_damaged_png_header_is_noticed_by_its_checksum() -> None:
    data = bytearray(SAMPLES["png"])
    data[18] ^= 1
    with pytest.raises(MediaError, match="damaged PNG header"):
        measure(bytes(data), len(data))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (struct.pack("<HHII", 0x0112, 3, 1, 6), 6),
        (struct.pack("<HHII", 0x0112, 1, 1, 8), 8),
        (struct.pack("<HHII", 0x0112, 4, 1, 3), 3),
        (struct.pack("<HHII", 0x0112, 3, 1, 0), 1),
        (struct.pack("<HHII", 0x0112, 3, 1, 9), 1),
        (struct.pack("<HHII", 0x0113, 3, 1, 6), 1),
    ],
)
def test_absurd_orientations_are_ignored(entry: bytes, expected: int) -> None:
    assert exif_orientation(b"II*\0" + struct.pack("<IH", 8, 1) + entry) == expected


@pytest.mark.parametrize("block", [b"", b"XX", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0" * 9])
def test_broken_exif_means_upright(block: bytes) -> None:
    assert exif_orientation(block) == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_headers_cut_at_every_length_ask_for_more_or_say_truncated(name: str) -> None:
    data = SAMPLES[name]
    whole = measure(data, len(data))
    # Beyond that there are pixels, which are looked at by steps.
    for length in (*range(1, min(len(data), 1000)), *range(1000, len(data), 100)):
        try:
            assert measure(data[:length], len(data)) == whole
        except NeedMoreBytes as more:
            assert length < more.length <= len(data)
        try:
            facts = measure(data[:length], length)
        except MediaError as error:
            assert error.reason in ("truncated header", "not a picture")
        else:
            assert (facts.width, facts.height) == (whole.width, whole.height)


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_headers_give_facts_or_a_reason_and_agree_with_pillow(name: str) -> None:
    data, rng = SAMPLES[name], random.Random(name)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(damaged), 400))] = rng.randrange(256)
        agree_with_pillow(bytes(damaged))


def agree_with_pillow(data: bytes) -> None:
    """Check that the size by hand is the size Pillow reads, wherever both read one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            facts = measure(data, len(data), max_pixels=10**7)
    except (MediaError, NeedMoreBytes):
        return
    if sniff(data) in ("AVIF", "JXL"):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(facts.format,)) as image:
                width, height = image.size
    except (OSError, SyntaxError, ValueError):
        return
    assert sorted((width, height)) == sorted((facts.width, facts.height))
