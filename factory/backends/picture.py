"""One picture of a backend, from its object to pixels of its bucket's shape."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.catalog.catalog import Cut
from factory.media.crop import fit
from factory.media.decode import decode
from factory.media.headers import MAX_PIXELS
from factory.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Picture:
    """Which object, and how it is cut.

    Attributes:
        row: Row in its catalog.
        key: Storage key.
        etag: Changes whenever the content does.
        cut: How it is resized and cut.
        pixels: Its width x height as the catalog has them, px.
    """

    row: int
    key: str
    etag: str
    cut: Cut
    pixels: int = 0


@dataclass(frozen=True)
class ReadPicture:
    """Reads, decodes, resizes and cuts one picture; picklable, so that any engine can run it.

    Attributes:
        storage: Where the objects are.
    """

    storage: Storage

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Return RGB pixels [H, W, 3] of the target size.

        Raises:
            MediaError: The object is not the picture it claims to be.
            StorageError: It cannot be read.
        """
        cut = picture.cut
        # What the scan let in by a limit of its own is no bomb here.
        most = max(MAX_PIXELS, picture.pixels)
        data = self.storage.read(picture.key)
        pixels = decode(data, at_least=cut.intermediary, max_pixels=most)
        return fit(pixels, cut.intermediary, cut.crop, cut.target)
