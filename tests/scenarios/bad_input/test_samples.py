"""Pictures that are damaged, huge, tiny or odd: kept and read, or dropped with a reason."""

import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from factory import Crop
from factory.catalog.scan.discovery import Discovery
from factory.errors import EmptyBackendError
from tests.catalog.fakes import replace_file
from tests.media.pictures import animated, encode, exif, gradient, plain
from tests.scenarios.bad_input.building import refused
from tests.scenarios.bad_input.making import (
    batches,
    details,
    dropped,
    kept,
    pixels,
    place,
    png,
    prepared,
)


def half(data: bytes) -> bytes:
    """Return a file whose header is whole and whose pixels break off."""
    return data[: len(data) // 2]


def noise(kind: str) -> bytes:
    """Return a picture large enough that its half has a header."""
    return encode(Image.effect_noise((96, 64), 80).convert("RGB"), kind)


def test_truncated_pictures_are_dropped_when_they_are_encoded(tmp_path: Path) -> None:
    files = {f"pics/{kind}.{kind}": half(noise(kind)) for kind in ("jpeg", "png", "webp")}
    place(tmp_path, {**files, "pics/a.png": png(), "pics/b.png": png()})
    with prepared(tmp_path, encoded=True) as data:
        assert dropped(data) == ["pics: 3 truncated (jpeg.jpeg, png.png, webp.webp)"]
        assert kept(data) == ["pics/a.png", "pics/b.png"]
        assert [sorted(batch.keys) for batch in batches(data)] == [["pics/a.png", "pics/b.png"]]
    place(tmp_path, {"pics/new": noise("PNG")})
    replace_file(tmp_path / "pics/png.png", tmp_path / "pics/new")
    with prepared(tmp_path, encoded=True) as data:  # one is mended, the others stay out
        assert dropped(data) == ["pics: 2 truncated (jpeg.jpeg, webp.webp)"]


def test_a_truncated_picture_read_as_pixels_is_replaced_and_named(tmp_path: Path) -> None:
    place(tmp_path, {"pics/a.jpg": half(noise("JPEG")), "pics/b.png": png()})
    with prepared(tmp_path) as data:
        assert kept(data) == ["pics/a.jpg", "pics/b.png"]
        (batch,) = batches(data)
        assert set(batch.keys) == {"pics/b.png"}
        assert {each.key for each in batch.replaced} == {"pics/a.jpg"}
    with prepared(tmp_path, metadata=Discovery(verify=True)) as data:
        assert dropped(data) == ["pics: 1 truncated (a.jpg)"]
        assert list(pixels(data)) == ["pics/b.png"]


def test_a_truncated_picture_among_faces_is_dropped_like_any_other(tmp_path: Path) -> None:
    place(tmp_path, {"pics/a.jpg": half(noise("JPEG")), "pics/b.png": png()})
    crop = Crop(aspect="square", style="face")
    with prepared(tmp_path, crop=crop) as data:
        assert kept(data) == ["pics/a.jpg", "pics/b.png"]
    with prepared(tmp_path, crop=crop, encoded=True) as data:
        assert dropped(data) == ["pics: 1 truncated (a.jpg)"]


@pytest.mark.parametrize("encoded", [False, True])
def test_names_that_lie_about_what_is_in_the_file(tmp_path: Path, encoded: bool) -> None:
    page = b"<!doctype html><html><body>404</body></html>"
    place(
        tmp_path,
        {
            "pics/png.jpg": png(), "pics/gif.PNG": plain("GIF"), "pics/page.jpg": page,
            "pics/zero.png": b"", "pics/short.png": png()[:20], "pics/nul.png": bytes(5000),
        },
    )  # fmt: skip
    with prepared(tmp_path, encoded=encoded) as data:
        assert kept(data) == ["pics/gif.PNG", "pics/png.jpg"]
        assert dropped(data) == [
            "pics: 2 not a picture (nul.png, page.jpg)",
            "pics: 1 empty file (zero.png)",
            "pics: 1 truncated header (short.png)",
        ]
        assert "<!doctype ht" in details(data)["pics/page.jpg"]
        shapes = {key: picture.shape for key, picture in pixels(data).items()}
        assert shapes == dict.fromkeys(kept(data), (48, 80, 3))


def test_a_bomb_is_dropped_by_its_header_and_kept_by_a_higher_limit(tmp_path: Path) -> None:
    bomb = bytearray(png())
    struct.pack_into(">II", bomb, 16, 60_000, 60_000)
    struct.pack_into(">I", bomb, 29, zlib.crc32(bomb[12:29]))
    place(tmp_path, {"pics/bomb.png": bytes(bomb), "pics/big.png": png(1100, 1000)})
    with prepared(tmp_path, metadata=Discovery(max_megapixels=1.2)) as data:
        assert dropped(data) == ["pics: 1 too large (bomb.png)"]
        assert "60000 x 60000 px is 3600 MP" in details(data)["pics/bomb.png"]
    with (
        refused(EmptyBackendError, "all 2 samples are dropped: 2 too large", "raise the limit"),
        prepared(tmp_path, metadata=Discovery(max_megapixels=1)),
    ):
        pass
    (tmp_path / "pics/bomb.png").unlink()
    with prepared(tmp_path) as data:
        assert pixels(data)["pics/big.png"].shape == (64, 64, 3)


def test_absurd_exif_costs_nothing(tmp_path: Path) -> None:
    endless = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + b"\x69\x87\x04\0\1\0\0\0\x08\0\0\0"
    junk = b"Exif\0\0" + b"\xff" * 60_000
    upright = {
        "pics/nine.jpg": plain("JPEG", exif=exif(9)),
        "pics/huge.jpg": plain("JPEG", exif=exif(65535)),
        "pics/endless.jpg": plain("JPEG", exif=endless),
        "pics/junk.jpg": plain("JPEG", exif=junk),
    }
    place(tmp_path, {**upright, "pics/turned.jpg": plain("JPEG", exif=exif(6))})
    with prepared(tmp_path) as data:
        assert dropped(data) == []
        shapes = {key: picture.shape[:2] for key, picture in pixels(data).items()}
    assert shapes.pop("pics/turned.jpg") == (80, 48)
    assert shapes == dict.fromkeys(upright, (48, 80))


def test_the_first_frame_of_animations_is_the_sample(tmp_path: Path) -> None:
    kinds = {"gif": "GIF", "webp": "WEBP", "apng.png": "PNG"}
    files = {f"pics/moving.{suffix}": animated(kind) for suffix, kind in kinds.items()}
    place(tmp_path, {**files, "pics/still.png": png()})
    with prepared(tmp_path, decode="exact") as data:
        assert dropped(data) == []
        read = pixels(data)
    still = read.pop("pics/still.png").astype(int)
    assert sorted(read) == sorted(files)
    for picture in read.values():
        assert np.abs(picture - still).mean() < 8  # a palette of 256 colours, lossy WebP


def test_one_pixel_is_a_picture_unless_small_ones_are_dropped(tmp_path: Path) -> None:
    place(tmp_path, {"pics/dot.png": png(1, 1), "pics/line.png": png(1, 40), "pics/a.png": png()})
    with prepared(tmp_path, encoded=True) as data:
        assert dropped(data) == []
        assert pixels(data)["pics/dot.png"].shape == (64, 64, 3)
    with prepared(tmp_path, minimum_image_size=8) as data:
        assert dropped(data) == ["pics: 2 minimum_image_size (dot.png, line.png)"]


def test_panoramas_of_20000_px_are_read_in_little_memory(tmp_path: Path) -> None:
    wide = Image.new("RGB", (20_000, 500), "teal")
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    place(tmp_path, {"pics/wide.jpg": encode(wide, "JPEG"), "pics/tall.jpg": encode(tall, "JPEG")})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with prepared(tmp_path) as data:
        assert dropped(data) == []
        read = pixels(data)
    (height, width, _), (length, breadth, _) = (
        read[f"pics/{name}.jpg"].shape for name in ("wide", "tall")
    )
    assert (height, breadth) == (16, 16)
    assert min(width, length) > 300
    assert np.abs(read["pics/tall.jpg"].astype(int) - (0, 128, 128)).max() < 8
    # Whole, each of the two is 30 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "KB"
    with prepared(tmp_path, minimum_aspect_ratio=0.5, encoded=True) as data:
        assert dropped(data) == ["pics: 1 minimum_aspect_ratio (tall.jpg)"]


def colours() -> dict[str, bytes]:
    """Return one picture in every kind of colours, all of one size."""
    picture = Image.fromarray(gradient())
    deep = gradient().astype(np.uint16) << 8 | 0xFF
    done, colour16 = cv2.imencode(".png", deep[..., ::-1])
    assert done
    return {
        "pics/alpha.png": encode(picture.convert("RGBA"), "PNG"),
        "pics/alpha.webp": encode(picture.convert("RGBA"), "WEBP", lossless=True),
        "pics/cmyk.jpg": encode(picture.convert("CMYK"), "JPEG", quality=95),
        "pics/cmyk.tif": encode(picture.convert("CMYK"), "TIFF"),
        "pics/deep.png": colour16.tobytes(),
        "pics/grey.png": encode(picture.convert("L"), "PNG"),
        "pics/bits.png": encode(picture.convert("1"), "PNG"),
        "pics/palette.png": encode(picture.quantize(32), "PNG"),
        "pics/palette.gif": encode(picture.quantize(32), "GIF"),
        "pics/plain.png": png(),
    }


def test_colours_of_every_kind_meet_in_one_batch(tmp_path: Path) -> None:
    files = colours()
    place(tmp_path, files)
    with prepared(tmp_path) as data:
        assert dropped(data) == []
        assert len(data.sources["pics"].catalog.decisions.buckets) == 1
        read = pixels(data)
        (first, *_) = batches(data)
    assert first.pixels.shape == (2, 48, 80, 3)
    assert sorted(read) == sorted(files)
    wanted = read["pics/plain.png"].astype(int)
    for name in ("alpha.png", "alpha.webp", "deep.png"):
        assert np.array_equal(read[f"pics/{name}"], wanted), name
    for name in ("cmyk.jpg", "cmyk.tif", "palette.png", "palette.gif"):
        assert np.abs(read[f"pics/{name}"] - wanted).mean() < 20, name
    assert np.ptp(read["pics/grey.png"], axis=-1).max() == 0


def test_one_bad_file_among_ten_thousand(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    whole = png(4, 4)
    (tmp_path / "pics/0000.png").write_bytes(whole)
    for number in range(1, 10_000):
        (tmp_path / f"pics/{number:04d}.png").hardlink_to(tmp_path / "pics/0000.png")
    (tmp_path / "pics/5000.png").unlink()
    (tmp_path / "pics/5000.png").write_bytes(whole[:20])
    with prepared(tmp_path) as data:
        assert dropped(data) == ["pics: 1 truncated header (5000.png)"]
        assert len(kept(data)) == 9_999
