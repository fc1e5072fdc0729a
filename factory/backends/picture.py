"""One picture of a backend, from its object to pixels of its bucket's shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from factory.catalog.cuts import Cut
from factory.errors import StorageError
from factory.media.composite import Composite
from factory.media.crop import fit
from factory.media.decode import DECODE_VERSIONS, decode
from factory.media.headers import MAX_PIXELS
from factory.records import UNKNOWN_SIZE
from factory.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Picture:
    """Which object, a picture or a video, and how it is cut.

    Attributes:
        row: Row in its catalog.
        key: Storage key.
        etag: Changes whenever the content does.
        cut: How it is resized and cut.
        pixels: Its width x height as the catalog has them, px.
        size: Its bytes, or `UNKNOWN_SIZE`.
        frames: Its frames as the catalog has them.
    """

    row: int
    key: str
    etag: str
    cut: Cut
    pixels: int = 0
    size: int = UNKNOWN_SIZE
    frames: int = 1


class Reader(Protocol):
    """How samples of a backend become pixels; a picklable value."""

    @property
    def takes_bytes(self) -> bool:
        """Whether it is a `ByteReader`: bytes may be asked for by others, many at once."""

    @property
    def storage(self) -> Storage:
        """Where the objects are."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes the pixels of every sample alike, the storage's identity included."""

    def parts(self, picture: Picture) -> Mapping[str, object]:
        """Return what shapes the pixels of one sample beside the recipe."""

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size: [H, W, 3], or [F, H, W, 3] of a clip."""


class ByteReader(Reader, Protocol):
    """A reader that goes from the whole bytes of an object to pixels."""

    def shaped(self, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels of the target size from a sample's bytes."""


def cut_parts(picture: Picture) -> dict[str, object]:
    """Return which object a sample is and how it is cut, as parts of a recipe."""
    cut = picture.cut
    return {
        "key": picture.key,
        "etag": picture.etag,
        "resize": list(cut.intermediary),
        "crop": list(cut.crop),
        "target": list(cut.target),
    }


@dataclass(frozen=True)
class ReadPicture:
    """Reads, decodes, resizes and cuts one picture; picklable, so that any engine can run it.

    Attributes:
        storage: Where the objects are.
        decode: "fast" decodes JPEGs at a reduced scale, "exact" whole and resizes by Lanczos,
            "nearest" whole and takes nearest pixels.
        composite: Which part of each picture is the sample.
    """

    storage: Storage
    decode: str = "fast"
    composite: Composite = field(default_factory=Composite)

    def __post_init__(self) -> None:
        """Refuse a mode there is not."""
        if self.decode not in DECODE_VERSIONS:
            raise ValueError(
                f"decode must be one of {', '.join(DECODE_VERSIONS)}, got {self.decode!r}"
            )

    @property
    def takes_bytes(self) -> bool:
        """Bytes are all it takes."""
        return True

    @property
    def recipe(self) -> Mapping[str, object]:
        """What shapes the pixels of every picture."""
        shared = {"decode": DECODE_VERSIONS[self.decode], "storage": self.storage.identity}
        return {**shared, **self.composite.parts}

    def parts(self, picture: Picture) -> Mapping[str, object]:
        """Return what shapes the pixels of one picture."""
        return cut_parts(picture)

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the picture it claims to be.
            StorageError: It cannot be read.
        """
        return self.shaped(self.storage.read(picture.key), picture)

    def shaped(self, data: bytes, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size from a picture's bytes.

        Raises:
            MediaError: They are not the picture they claim to be.
        """
        cut, fast = picture.cut, self.decode == "fast"
        # What the scan let in by a limit of its own is no bomb here.
        most = max(MAX_PIXELS, picture.pixels * self.composite.image_count)
        # At a reduced size the border between two strips may lie inside a pixel.
        enough = cut.intermediary if fast and not self.composite else None
        pixels = self.composite.of(decode(data, at_least=enough, max_pixels=most))
        return fit(
            pixels, cut.intermediary, cut.crop, cut.target,
            exact=self.decode == "exact", nearest=self.decode == "nearest",
        )  # fmt: skip


@dataclass(frozen=True)
class ShapePicture:
    """Turns bytes that were read, or why they were not, into pixels; picklable.

    Attributes:
        reader: How the pictures are decoded and cut.
    """

    reader: ByteReader

    def __call__(self, read: tuple[Picture, bytes | StorageError]) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the picture it claims to be.
            StorageError: It could not be read.
        """
        picture, data = read
        if isinstance(data, StorageError):
            raise data
        return self.reader.shaped(data, picture)
