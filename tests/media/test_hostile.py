"""Files that lie, break off, or ask for too much: a reason, never a crash."""

import io
import random
import resource
import struct
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from factory.catalog.scan.media_type import Pictures
from factory.errors import MediaError
from factory.media.decode import decode
from factory.media.formats import jpeg
from factory.media.formats.header_bytes import HeaderBytes
from factory.media.headers import MAX_PIXELS, NeedMoreBytes, exif_orientation, measure, read_header
from factory.records import MediaFacts
from factory.storage.memory import MemoryStorage
from tests.media.mutations import damaged
from tests.media.pictures import encode, exif, gradient, plain, samples
from tests.support.examples import examples

SAMPLES = samples()
LIMIT = 10**6  # px; no sample has a tenth of it
REASONS = {
    "empty file", "not a picture", "truncated header", "too large", "truncated", "damaged",
    "unsupported pixels",
}  # fmt: skip


def survives(data: bytes, least: tuple[int, int] | None = None) -> None:
    """Check that bytes give facts and pixels within the limit, or a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        facts = None
        for size in (None, len(data), len(data) + 1000):
            try:
                facts = measure(data, size, max_pixels=LIMIT)
            except NeedMoreBytes as more:
                assert more.length > len(data)
            except MediaError as error:
                assert error.reason in REASONS
            else:
                assert 0 < facts.width * facts.height <= LIMIT
        try:
            pixels = decode(data, at_least=least, max_pixels=LIMIT)
        except MediaError as error:
            assert error.reason in REASONS
            return
    assert pixels.dtype == np.uint8
    assert pixels.size <= 3 * LIMIT
    if facts is not None and least is None:
        assert pixels.shape == (facts.height, facts.width, 3)


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))
CASES = (
    st.sampled_from(sorted(SAMPLES)),
    st.randoms(use_true_random=False),
    st.sampled_from([None, (40, 20)]),
)


@settings(FUZZ, max_examples=examples(300))
@given(*CASES)
def test_damaged_files_give_pixels_or_a_reason(
    name: str, rng: random.Random, least: tuple[int, int] | None
) -> None:
    survives(damaged(SAMPLES[name], rng), least)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_thousands_of_damaged_files_give_pixels_or_a_reason(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(name)
    for _ in range(5000):
        survives(damaged(SAMPLES[name], rng), rng.choice([None, (40, 20)]))
    # A picture at the limit takes 3 MB, some decoders a few times that while they work.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, "KB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_pictures_cut_at_every_length_are_whole_or_refused(kind: str) -> None:
    data = encode(Image.fromarray(gradient(16, 12)), kind)
    whole = decode(data)
    for length in range(len(data)):
        try:
            pixels = decode(data[:length])
        except MediaError as error:
            assert error.reason in REASONS
        else:  # what is missing is behind the pixels
            assert np.array_equal(pixels, whole), length


@settings(FUZZ, max_examples=examples(300))
@given(st.randoms(use_true_random=False), st.sampled_from(["jpeg", "jpeg exif", "jpeg cmyk"]))
def test_the_quick_way_for_jpegs_agrees_with_the_careful_one(rng: random.Random, name: str) -> None:
    data = damaged(SAMPLES[name], rng)
    found = jpeg.quick(data) if data.startswith(b"\xff\xd8\xff") else None
    if found is not None:
        header = jpeg.read(HeaderBytes(data, None), True)
        assert found == (header.width, header.height, header.orientation)


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg exif", "jpeg grey"])
def test_ordinary_jpegs_go_the_quick_way(name: str) -> None:
    header = read_header(SAMPLES[name], len(SAMPLES[name]))
    assert jpeg.quick(SAMPLES[name]) == (header.width, header.height, header.orientation)


def forged(kind: str, edge: int) -> bytes:
    """Return a small file of a format whose header says that it is a square of some edge."""
    data = bytearray(plain(kind))
    wide, tall = (96, 64)
    layouts = {"JPEG": ">HH", "BMP": "<II", "GIF": "<HH", "AVIF": ">II", "WEBP": "<HH"}
    layout = layouts[kind]
    first, second = (tall, wide) if kind == "JPEG" else (wide, tall)
    at = data.index(struct.pack(layout, first, second))
    struct.pack_into(layout, data, at, edge, edge)
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "edge"), [("JPEG", 60_000), ("BMP", 90_000), ("GIF", 60_000), ("AVIF", 60_000)]
)
def test_bombs_of_every_format_are_refused_by_their_header(kind: str, edge: int) -> None:
    data = forged(kind, edge)
    with pytest.raises(MediaError, match="raise the limit") as caught:
        measure(data, len(data))
    assert caught.value.reason == "too large"
    with pytest.raises(MediaError, match="raise the limit"):
        decode(data)
    assert measure(data, len(data), max_pixels=edge**2).width == edge


def test_a_tiff_bomb_is_refused_by_its_header() -> None:
    entries = [(256, 4, 1, 70_000), (257, 4, 1, 70_000)]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    with pytest.raises(MediaError, match="4900 MP, above the limit"):
        measure(data, len(data))
    assert measure(data, len(data), max_pixels=None) == MediaFacts(70_000, 70_000, "TIFF")


def test_what_the_decoder_reads_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that says one size to us and another to the decoder is no way around the limit."""
    small = read_header(plain("PNG"), None)._replace(width=4, height=4)
    for kind in ("PNG", "JPEG"):
        header = small._replace(format=kind)
        monkeypatch.setattr("factory.media.decode.read_header", lambda *_, **__: header)  # noqa: B023
        with pytest.raises(MediaError) as caught:
            decode(plain(kind), max_pixels=1000)
        assert caught.value.reason == "too large"


def test_a_gif_frame_beyond_its_screen_counts_for_the_limit() -> None:
    data = bytearray(SAMPLES["gif"])
    at = data.index(b",\0\0\0\0" + struct.pack("<HH", 96, 64))
    struct.pack_into("<HH", data, at + 5, 60_000, 60_000)
    with pytest.raises(MediaError, match="too large"):
        measure(bytes(data), len(data))


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientations_there_are_not_mean_upright(kind: str, orientation: int) -> None:
    data = plain(kind, exif=exif(orientation))
    assert read_header(data, len(data)).orientation == 1
    assert decode(data).shape == (64, 96, 3)


def test_directories_that_lead_nowhere_mean_upright() -> None:
    endless = b"II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHII", 0x8769, 4, 1, 8) * 9
    assert exif_orientation(endless) == 1
    itself = b"MM\0*" + struct.pack(">I", 0) + bytes(40)
    assert exif_orientation(itself) == 1
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    after_itself = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", 0x0100, 4, 1, 0x0112)
    assert exif_orientation(after_itself + turned + struct.pack("<I", 8)) == 6


def test_exif_of_the_largest_size() -> None:
    block = exif(8)
    block[0x010E] = "x" * 65_400
    data = plain("JPEG", exif=block)
    assert measure(data, len(data)) == MediaFacts(64, 96, "JPEG")
    assert decode(data).shape == (96, 64, 3)


def test_pages_of_a_tiff_that_lead_back_end() -> None:
    page = Image.new("L", (30, 20))
    data = bytearray(encode(page, "TIFF", save_all=True, append_images=[page]))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    (more,) = struct.unpack_from("<H", data, second)
    for target, pages in ((first, 2), (second, 2), (2**31, 2)):
        struct.pack_into("<I", data, second + 2 + 12 * more, target)
        assert measure(bytes(data), len(data)).frames == pages


def test_a_directory_of_countless_entries_is_not_waited_for() -> None:
    data = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**60) + bytes(100)
    for size in (None, len(data)):
        with pytest.raises(MediaError, match="goes on beyond"):
            measure(data, size)


def test_the_name_says_nothing_about_the_format() -> None:
    storage = MemoryStorage()
    storage.write("a.jpg", plain("PNG"))
    storage.write("b.png", b"")
    facts = Pictures().measure(storage, storage.head("a.jpg"), max_pixels=MAX_PIXELS, verify=True)
    assert facts == MediaFacts(96, 64, "PNG")
    with pytest.raises(MediaError, match="empty file"):
        Pictures().measure(storage, storage.head("b.png"), max_pixels=MAX_PIXELS, verify=False)


def test_a_panorama_of_20000_px() -> None:
    data = encode(Image.new("RGB", (20_000, 500), "teal"), "JPEG")
    assert measure(data[:4096], len(data)) == MediaFacts(20_000, 500, "JPEG")
    assert decode(data, at_least=(2560, 64)).shape[0] in (63, 64, 125)
    assert decode(data, at_least=(2560, 64)).shape[1] >= 2560


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (17, 33), (255, 9)])
def test_odd_sizes_with_every_subsampling(subsampling: int, size: tuple[int, int]) -> None:
    picture = Image.fromarray(gradient(*size))
    data = encode(picture, "JPEG", quality=95, subsampling=subsampling)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    assert np.array_equal(decode(data), expected)


def test_16_bit_colour_keeps_its_high_byte() -> None:
    import cv2

    deep = gradient().astype(np.uint16) << 8 | 0xFF
    for suffix in (".png", ".tiff"):
        done, data = cv2.imencode(suffix, deep[..., ::-1])
        assert done
        assert np.array_equal(decode(data.tobytes()), gradient())


def test_the_first_picture_of_an_mpo_counts() -> None:
    pictures = [Image.fromarray(gradient()), Image.new("RGB", (96, 64))]
    data = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert measure(data, len(data)) == MediaFacts(96, 64, "JPEG")
    assert np.abs(decode(data).astype(int) - gradient()).mean() < 3
