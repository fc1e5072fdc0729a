"""HEIC: told by its brands, read by the extra `heif`, and named where that is absent."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from factory.backends.image import ImageBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.errors import MediaError
from factory.media.decode import decode
from factory.media.headers import measure, read_header
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import ENGINE
from tests.media.pictures import exif, gradient, plain


def heic(orientation: int = 1, **options: object) -> bytes:
    """Return the gradient as a HEIC, turned as its encoder stores it."""
    import pillow_heif

    picture = Image.fromarray(gradient())
    picture = picture.convert("RGBA") if options.pop("alpha", False) else picture
    sink = io.BytesIO()
    file = pillow_heif.from_pillow(picture)
    file.save(sink, quality=95, exif=exif(orientation).tobytes(), **options)
    return sink.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_and_pixels_are_those_of_its_decoder(orientation: int) -> None:
    import pillow_heif

    data = heic(orientation)
    expected = np.asarray(pillow_heif.open_heif(data).to_pillow().convert("RGB"))
    assert measure(data, len(data))[:3] == (expected.shape[1], expected.shape[0], "HEIC")
    assert np.array_equal(decode(data), expected)
    upright = np.asarray(Image.fromarray(gradient()).transpose(Image.Transpose.ROTATE_270))
    if orientation == 6:
        assert np.abs(decode(data) - upright.astype(float)).mean() < 3


def test_tiles_and_transparency() -> None:
    for data in (heic(tile_size=64), heic(alpha=True)):
        assert measure(data, len(data))[:3] == (96, 64, "HEIC")
        assert np.abs(decode(data) - gradient().astype(float)).mean() < 4


def test_brands_tell_it_from_avif() -> None:
    data = heic()
    for brands in (b"mif1\0\0\0\0mif1heic", b"heix\0\0\0\0mif1heix", b"msf1\0\0\0\0heic"):
        box = (8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands
        old = int.from_bytes(data[:4], "big")
        with pytest.raises(MediaError) as caught:
            decode(box + data[old : old + 20])
        assert "HEIC" in str(caught.value) or caught.value.reason == "truncated header"
    avif = plain("AVIF").replace(b"ftypavif", b"ftypmif1", 1)
    assert read_header(avif, len(avif)).format == "AVIF"


def test_files_cut_short_or_damaged_have_a_reason() -> None:
    data = heic()
    for length in range(0, len(data), 7):
        with pytest.raises(MediaError):
            decode(data[:length])


def test_under_any_name_it_is_named_without_the_extra_and_read_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, data = MemoryStorage("heic"), heic(6)
    for name in ("a.HEIC", "b.jpg", "c.heif"):
        storage.write(f"p/{name}", data)
    for name in ("d.jfif", "e.JPE", "f.jif"):
        storage.write(f"p/{name}", plain("JPEG"))
    backend = ImageBackend(
        name="pics", prefix="p", storage=storage, resolution=64, alignment=16,
        caption=FilenameCaptions(),
    )  # fmt: skip
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "pillow_heif", None)
        without = backend.scan(None, ENGINE)
        catalog = backend.catalog(without, 0)
        with pytest.raises(MediaError, match="pip install"):
            decode(data)
    assert len(catalog) == 3
    assert catalog.decisions.dropped() == {"needs extra heif": 3}
    assert len(backend.catalog(backend.scan(without, ENGINE), 0)) == 6
