"""One picture of a backend, from its object to pixels of its bucket's shape."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.catalog.catalog import Cut
from factory.media.crop import fit
from factory.media.decode import decode
from factory.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Picture:
    """Which object, and how it is cut.

    Attributes:
        row: Row in its catalog.
        key: Storage key.
        etag: Changes whenever the content does.
        cut: How it is resized and cut.
    """

    row: int
    key: str
    etag: str
    cut: Cut


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
        pixels = decode(self.storage.read(picture.key), at_least=cut.intermediary)
        return fit(pixels, cut.intermediary, cut.crop, cut.target)
