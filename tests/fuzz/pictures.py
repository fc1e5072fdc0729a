"""Pictures of every format, read as a scan reads them and decoded."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from xxhash import xxh3_64_hexdigest

from factory.catalog.scan.media_type import Pictures
from factory.media.decode import decode
from factory.storage.local import LocalStorage
from tests.fuzz.harness import Format
from tests.media.pictures import gradient, plain, samples

MAX_PIXELS = 10**7  # a forged size is refused before it costs the time of a large picture


def read(folder: Path) -> Any:
    """Return what a scan says of the picture, and its pixels."""
    storage = LocalStorage(str(folder))
    info = storage.head("picture")
    facts = Pictures().measure(storage, info, max_pixels=MAX_PIXELS, verify=False)
    pixels = decode(storage.read("picture"), max_pixels=MAX_PIXELS)
    return tuple(facts), pixels.shape, xxh3_64_hexdigest(pixels)


def heic() -> bytes:
    """Return a picture as HEIC."""
    import pillow_heif

    sink = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(gradient())).save(sink)
    return sink.getvalue()


def _format(data: bytes) -> Format:
    return Format(lambda folder: (folder / "picture").write_bytes(data) and None, "picture", read)


SAMPLES = samples() | {
    "heic": heic(),
    "jpeg xmp": plain("JPEG", xmp=b'<x tiff:Orientation="6"/>'),
    "webp xmp": plain("WEBP", xmp=b'<x tiff:Orientation="6"/>'),
    "tiff xmp": plain("TIFF", tiffinfo={700: b'<x tiff:Orientation="6"/>'}),
    "avif xmp": plain("AVIF", xmp=b'<x tiff:Orientation="6"/>'),
}
FORMATS: Mapping[str, Format] = {name: _format(data) for name, data in SAMPLES.items()}
