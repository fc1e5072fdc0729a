"""Pillow's readers of single formats, held to a limit of time."""

import io
import time
from importlib import import_module
from typing import Any

from PIL.TiffImagePlugin import TiffImageFile

from factory.errors import MediaError
from factory.media.formats.png import pixels_only

_PILLOW = {
    "JPEG": ("Jpeg", "Jpeg"),
    "GIF": ("Gif", "Gif"),
    "BMP": ("Bmp", "Bmp"),
    "PNG": ("Png", "Png"),
    "WEBP": ("WebP", "WebP"),
    "AVIF": ("Avif", "Avif"),
}


def open_pillow(kind: str, data: bytes, seconds: float | None = None) -> Any:
    """Return Pillow's lazily read image of a format as stored, without its own limit on pixels.

    The format's own class is used: `PIL.Image.open` would try them all, and would warn by a
    limit that is global to the process; `factory.media.decode_limits` takes its place.

    Args:
        kind: The format.
        data: The whole file.
        seconds: From now on, the time that may pass until the file was last read from.
    """
    if kind == "TIFF":
        return _StoredTiff(io.BytesIO(data))  # libtiff takes the file at once
    module, name = _PILLOW[kind]
    reader = getattr(import_module(f"PIL.{module}ImagePlugin"), f"{name}ImageFile")
    return reader(_TimedFile(pixels_only(data) if kind == "PNG" else data, seconds))


class _StoredTiff(TiffImageFile):
    """A TIFF that is not turned by its reader, and whose further directories are not read."""

    def load_end(self) -> None:
        """Say the stored size."""
        self._size = self.im.size


class _TimedFile(io.BytesIO):
    """A file that stops a decoder, which reads it piece by piece, once its time is over."""

    def __init__(self, data: bytes, seconds: float | None) -> None:
        super().__init__(data)
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            MediaError: With reason "too slow".
        """
        if self._end is not None and time.monotonic() > self._end:
            raise MediaError(
                "too slow",
                f"decoding takes more than {self._seconds:g} s; raise data.limits.seconds if the "
                "picture is meant to be so",
            )
        return super().read(size)
