"""Orientation, wherever a file says it: as Pillow's `exif_transpose`, in header and pixels."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from factory.catalog.scan.media_type import Pictures
from factory.media.decode import decode
from factory.media.headers import MAX_PIXELS, measure, read_header
from factory.storage.memory import MemoryStorage
from tests.media.pictures import encode, exif, gradient, plain
from tests.support.examples import examples

ATTRIBUTE = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
ELEMENT = "<x:xmpmeta><tiff:Orientation>{}</tiff:Orientation></x:xmpmeta>"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, behind: bool = False, picture: Image.Image | None = None) -> bytes:
    """Return a PNG with chunks before or behind its pixels."""
    data = encode(picture or Image.fromarray(gradient()), "PNG")
    at = len(data) - 12 if behind else 33
    return data[:at] + b"".join(chunks) + data[at:]


def raw_profile(orientation: int) -> bytes:
    block = exif(orientation).tobytes()
    return f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()


def block(orientation: int) -> bytes:
    return exif(orientation).tobytes()


def packet(orientation: int, form: str = ATTRIBUTE) -> bytes:
    return form.format(orientation).encode()


def itxt(text: bytes, packed: bool = False) -> bytes:
    body = zlib.compress(text) if packed else text
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + body)


def jpeg_segments(*bodies: bytes, after: bytes = b"\xff\xd8") -> bytes:
    data = plain("JPEG")
    at = data.index(after) + (2 if after == b"\xff\xd8" else 0)
    made = b"".join(b"\xff\xe1" + struct.pack(">H", len(b) + 2) + b for b in bodies)
    return data[:at] + made + data[at:]


XAP = b"http://ns.adobe.com/xap/1.0/\0"
WAYS: dict[str, Callable[[int], bytes]] = {
    "jpeg exif": lambda n: plain("JPEG", exif=exif(n)),
    "jpeg xmp": lambda n: plain("JPEG", xmp=packet(n)),
    "jpeg xmp element": lambda n: plain("JPEG", xmp=packet(n, ELEMENT)),
    "jpeg exif hides xmp": lambda n: plain("JPEG", exif=exif(n), xmp=packet(9 - n)),
    "jpeg exif without the tag": lambda n: plain("JPEG", exif=exif_of({271: "x"}), xmp=packet(n)),
    "jpeg exif twice prefixed": lambda n: jpeg_segments(b"Exif\0\0" + block(n)),
    "jpeg exif after the frame header": lambda n: jpeg_segments(block(n), after=b"\xff\xc4"),
    "jpeg last xmp": lambda n: jpeg_segments(XAP + packet(9 - n), XAP + packet(n)),
    "png exif": lambda n: plain("PNG", exif=exif(n)),
    "png exif behind": lambda n: png(chunk(b"eXIf", block(n)[6:]), behind=True),
    "png exif prefixed": lambda n: png(chunk(b"eXIf", block(n))),
    "png raw tEXt": lambda n: png(chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(n))),
    "png raw zTXt": lambda n: png(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(n))), behind=n > 4
    ),
    "png xmp": lambda n: png(itxt(packet(n))),
    "png xmp packed behind": lambda n: png(itxt(packet(n, ELEMENT), packed=True), behind=True),
    "png exif hides a profile": lambda n: png(
        chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(9 - n)), chunk(b"eXIf", block(n))
    ),
    "webp exif": lambda n: plain("WEBP", exif=exif(n)),
    "webp exif prefixed": lambda n: plain("WEBP", exif=b"Exif\0\0" + block(n)),
    "webp xmp": lambda n: plain("WEBP", xmp=packet(n)),
    "webp both": lambda n: plain("WEBP", exif=exif(n), xmp=packet(9 - n)),
    "tiff": lambda n: plain("TIFF", tiffinfo={274: n}),
    "tiff xmp": lambda n: plain("TIFF", tiffinfo={700: packet(n)}),
    "tiff lzw xmp": lambda n: plain("TIFF", tiffinfo={700: packet(n)}, compression="tiff_lzw"),
    "tiff tag hides xmp": lambda n: plain("TIFF", tiffinfo={274: n, 700: packet(9 - n)}),
    "avif": lambda n: plain("AVIF", exif=exif(n)),
    "avif xmp": lambda n: plain("AVIF", xmp=packet(n)),
    "avif both": lambda n: plain("AVIF", exif=exif(n), xmp=packet(9 - n)),
    "avif exif without the tag": lambda n: plain("AVIF", exif=exif_of({271: "x"}), xmp=packet(n)),
}  # fmt: skip


def exif_of(tags: dict[int, object]) -> Image.Exif:
    made = Image.Exif()
    made.update(tags)
    return made


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
@pytest.mark.parametrize("way", WAYS)
def test_header_and_pixels_are_turned_as_pillow_turns_them(way: str, orientation: int) -> None:
    data = WAYS[way](orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    facts = measure(data, len(data))
    assert (facts.height, facts.width) == expected.shape[:2]
    pixels = decode(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).mean() < 2


@settings(max_examples=examples(200), deadline=None)
@given(
    st.sampled_from("<>"),
    st.lists(
        st.tuples(
            st.sampled_from([0x0100, 0x0112, 0x0113]),
            st.sampled_from([3, 4, 8, 9]),
            st.integers(0, 10),
        ),
        max_size=4,
    ),
)
def test_directories_are_read_as_pillow_reads_them(
    order: str, entries: list[tuple[int, int, int]]
) -> None:
    made = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, value in entries:
        cell = struct.pack(
            order + ("HH" if kind in (3, 8) else "I"), value, *(0,) * (kind in (3, 8))
        )
        made += struct.pack(order + "HHI", tag, kind, 1) + cell
    data = jpeg_segments(b"Exif\0\0" + made + bytes(4), XAP + packet(3))
    with Image.open(io.BytesIO(data)) as image:
        told = image.getexif().get(274, 1)
    assert read_header(data, len(data)).orientation == (told if 1 <= told <= 8 else 1)


def test_a_scan_reads_the_end_of_a_large_png_and_not_what_is_between() -> None:
    noise = Image.effect_noise((700, 500), 80).convert("RGB")
    data = png(chunk(b"eXIf", block(6)[6:]), behind=True, picture=noise)
    storage = CountedStorage()
    storage.write("a.png", data)
    assert len(data) > 500_000
    facts = Pictures().measure(storage, storage.head("a.png"), max_pixels=MAX_PIXELS, verify=False)
    assert (facts.width, facts.height) == (500, 700)
    assert storage.read_bytes < 100_000


def test_a_directory_at_the_end_of_a_large_tiff_is_read_by_itself() -> None:
    import cv2

    noise = np.asarray(Image.effect_noise((700, 500), 80))
    done, packed = cv2.imencode(".tiff", noise)
    assert done
    storage = CountedStorage()
    storage.write("a.tif", packed.tobytes())
    facts = Pictures().measure(storage, storage.head("a.tif"), max_pixels=MAX_PIXELS, verify=False)
    assert (facts.width, facts.height) == (700, 500)
    assert storage.read_bytes < 100_000 < packed.size


class CountedStorage(MemoryStorage):
    """Memory that says how much was read of it."""

    read_bytes = 0

    def read_many(self, spans):
        for data in super().read_many(spans):
            self.read_bytes += len(data)
            yield data


def test_a_large_profile_or_text_is_no_reason_to_refuse_a_png() -> None:
    big = zlib.compress(bytes(8 * 2**20))
    for extra in (
        chunk(b"iCCP", b"profile\0\0" + big),
        chunk(b"zTXt", b"Comment\0\0" + big),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + big),
        chunk(b"iTXt", b"Comment\0\0\0\0\0" + bytes(3 * 2**20)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + big),
    ):
        for behind in (False, True):
            data = png(extra, behind=behind)
            assert measure(data, len(data))[:3] == (96, 64, "PNG")
            assert np.array_equal(decode(data), gradient())


def test_the_smallest_webp() -> None:
    data = encode(Image.new("RGB", (100, 100), "red"), "WEBP", lossless=True, method=6)
    for length in (len(data), len(data) + 7):
        assert measure(data, length)[:3] == (100, 100, "WEBP")
    shortest = bytes.fromhex("5249464614000000574542505650384c080000002f63c01810888808")
    with Image.open(io.BytesIO(shortest)) as image:
        assert image.size == (100, 100)
    assert measure(shortest, len(shortest))[:3] == (100, 100, "WEBP")
    assert decode(shortest).shape == (100, 100, 3)


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "L"])
def test_values_without_a_range_are_found_at_the_scan(mode: str) -> None:
    data = encode(Image.new(mode, (20, 10)), "TIFF")
    if mode in ("I", "F"):
        with pytest.raises(Exception, match="save the picture with 8 or 16 bits"):
            measure(data, len(data))
    else:
        assert measure(data, len(data))[:2] == (20, 10)
        assert decode(data).shape == (10, 20, 3)


def test_a_png_whose_pixels_are_seen_to_end_it_is_read_once() -> None:
    noise = np.asarray(Image.effect_noise((150, 150), 80))
    data = encode(Image.fromarray(noise), "PNG")
    storage = CountedStorage()
    # One chunk of pixels, larger than the first read; and a small file with bytes behind its end.
    turned = png(chunk(b"eXIf", block(6)[6:]), behind=True)
    for number, whole in enumerate((data, turned + bytes(100_000))):
        storage.write(f"{number}.png", whole)
    assert len(data) > storage.head_bytes
    for number, size in enumerate(((150, 150), (64, 96))):
        info = storage.head(f"{number}.png")
        facts = Pictures().measure(storage, info, max_pixels=MAX_PIXELS, verify=False)
        assert (facts.width, facts.height) == size
    assert storage.read_bytes == 2 * storage.head_bytes
    assert measure(turned + bytes(100_000), len(turned) + 100_000)[:2] == (64, 96)
