"""Thumbnails of single samples, with the part of each that is trained on."""

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from PIL import Image

from factory.backends.conditioning import is_generated
from factory.backends.pixels import Picture
from factory.backends.prepared import PreparedBackend
from factory.catalog.crops import SampleCrop
from factory.engine.engine import Engine
from factory.errors import FactoryError
from factory.media.composite import Composite
from factory.media.decode import decode
from factory.reports.preview import catalog_rows
from factory.storage.base import Storage

# Longest edge, px: sharp in a card on a screen of double density, some 10 KB each.
EDGE = 256
QUALITY = 72
# Larger objects are not fetched only to be looked at.
MOST_BYTES = 64 * 2**20
# Thumbnails show the whole picture: none is resized by its cut.
_WHOLE = SampleCrop((1, 1), (0, 0), (1, 1))


@dataclass(frozen=True)
class Thumbnail:
    """One sample to look at.

    Attributes:
        key: Its key.
        image: JPEG as a data URI; "" where it cannot be shown.
        why: Why it cannot be shown.
        width: Its width, px; 0 where it was not measured.
        height: Its height, px.
        crop: How it is cut; None where it is dropped.
        bucket: Its bucket's name.
        captions: What it says.
    """

    key: str
    image: str
    why: str
    width: int
    height: int
    crop: SampleCrop | None = None
    bucket: str = ""
    captions: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """How much it is resized."""
        return self.crop.intermediary[0] / max(self.width, 1) if self.crop else 1.0

    @property
    def frame(self) -> tuple[float, float, float, float] | None:
        """The cut as (left, top, width, height) in parts of the whole picture, 0 to 1."""
        if self.crop is None:
            return None
        (width, height), (top, left) = self.crop.intermediary, self.crop.offset
        cut_width, cut_height = self.crop.target
        return left / width, top / height, cut_width / width, cut_height / height


@dataclass(frozen=True)
class _Draw:
    """Reads one picture and makes it small; picklable, so that any engine can run it."""

    storage: Storage
    composite: Composite

    def __call__(self, picture: Picture) -> str:
        if picture.size > MOST_BYTES:
            return ""
        data = self.storage.read(picture.key)
        check = picture.check_whole(self.composite)
        pixels = decode(data, at_least=(EDGE, EDGE), check=check)
        return data_uri(Image.fromarray(pixels))


def data_uri(image: Image.Image) -> str:
    """Return a picture as a small JPEG inside a URI."""
    image.thumbnail((EDGE, EDGE))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def looks(source: PreparedBackend, chosen: catalog_rows.Rows, engine: Engine) -> list[Thumbnail]:
    """Return what rows look like, in their order."""
    names = _buckets(source, chosen)
    made = is_generated(source.backend)
    as_cut = made or source.backend.clip
    images = _cut(source, chosen) if as_cut else _stills(source, chosen, names, engine)
    found = []
    for row, image in zip(chosen.tolist(), images, strict=True):
        catalog = source.catalog
        kept = row in names
        width, height = catalog_rows.sides(catalog, catalog_rows.one(row))
        if made and kept:
            width, height = np.split(np.array(catalog.crop(row).target), 2)
        found.append(
            Thumbnail(
                key=catalog.facts.key(row),
                image=image if isinstance(image, str) else "",
                why=_why(image),
                width=int(width[0]),
                height=int(height[0]),
                # What is generated was never larger than its cut.
                crop=catalog.crop(row) if kept and not made else None,
                bucket=names.get(row, ""),
                captions=catalog.texts(row),
            )
        )
    return found


def _stills(
    source: PreparedBackend, chosen: catalog_rows.Rows, kept: Collection[int], engine: Engine
) -> list[str | Exception]:
    draw = _Draw(source.backend.storage, source.backend.composite)
    facts = source.catalog.facts
    sizes = catalog_rows.sizes(facts, chosen).tolist()
    pictures = []
    for row, size in zip(chosen.tolist(), sizes, strict=True):
        # What is kept is shown with its cut, which must be one of this file.
        sides = catalog_rows.sides(source.catalog, catalog_rows.one(row)) if row in kept else ()
        width, height = (int(side[0]) for side in sides) if sides else (0, 0)
        pictures.append(Picture(row, facts.key(row), "", _WHOLE, width, height, size))
    return [outcome for _, outcome in engine.map(draw, pictures)]


def _cut(source: PreparedBackend, chosen: catalog_rows.Rows) -> list[str | Exception]:
    """Show samples as they are read: of clips the first frame, else a video is decoded whole."""
    found: list[str | Exception] = []
    for row in chosen.tolist():
        try:
            pixels = source.backend.reader(source.picture(row))
            first = pixels.reshape(-1, *pixels.shape[-3:])[0]
            found.append(data_uri(Image.fromarray(first)))
        except (FactoryError, ValueError) as error:
            found.append(error)
    return found


def _why(image: str | Exception) -> str:
    if isinstance(image, Exception):
        return str(image)
    return "" if image else "too large to show"


def _buckets(source: PreparedBackend, chosen: catalog_rows.Rows) -> dict[int, str]:
    wanted = set(chosen.tolist())
    return {
        int(row): bucket.name
        for bucket in source.catalog.decisions.buckets
        for row in catalog_rows.among(bucket.rows, wanted)
    }
