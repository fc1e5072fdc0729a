"""Decoders of single formats: JPEG XL and HEIC by optional packages, all others by Pillow."""

import io
import time
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from factory.errors import MediaError
from factory.media.formats.png import pixels_only

# Reason of samples that another package would make usable; it says which extra to install.
NEEDS_EXTRA = "needs extra"
# Words of libjxl's decoder about a file that breaks off.
_CUT_OFF = "NEED_MORE_INPUT"
# By format: what it is called, the package that reads it, and the extra that brings that.
_CODECS = {
    "JXL": ("JPEG XL", "imagecodecs", "jxl"),
    "HEIC": ("HEIC", "pillow_heif", "heif"),
}


def codec(kind: str) -> ModuleType:
    """Return the package that reads a format, "JXL" or "HEIC".

    Raises:
        MediaError: With reason "needs extra ...": it is not installed.
    """
    name, package, extra = _CODECS[kind]
    try:
        return import_module(package)
    except ImportError as error:
        raise MediaError(
            f"{NEEDS_EXTRA} {extra}",
            f"{name} is read by the package {package!r}, which is not installed; install it "
            f"with: pip install 'data-backend-factory[{extra}]'",
        ) from error


def decode_jxl(data: bytes) -> NDArray[Any]:
    """Return the first frame as stored: uint8 or uint16 [H, W] or [H, W, C], C up to 4.

    C is 2 or 4 with transparency.

    Raises:
        MediaError: With reason "truncated", "damaged", "unsupported pixels" or
            "needs extra jxl".
    """
    package = codec("JXL")
    try:
        # Pictures are worked on many at a time already: one thread for each.
        pixels = np.asarray(
            package.jpegxl_decode(data, index=0, keeporientation=True, numthreads=1)
        )
    except MemoryError:
        raise
    except Exception as error:  # libjxl's own kind, and what the binding makes of odd files
        reason = "truncated" if _CUT_OFF in str(error) else "damaged"
        raise MediaError(reason, f"JXL: {error}") from error
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] <= 4)  # noqa: PLR2004
    if pixels.dtype not in (np.uint8, np.uint16) or not shaped:
        raise MediaError(
            "unsupported pixels",
            f"JXL of {pixels.dtype} {list(pixels.shape)}; save it as grey or RGB of 8 or 16 bits",
        )
    return pixels


def open_heic(data: bytes) -> Any:
    """Return the primary picture as it is seen, cut and turned, as an image of Pillow's.

    Raises:
        MediaError: With reason "truncated", "damaged" or "needs extra heif".
    """
    package = codec("HEIC")
    try:
        return package.open_heif(data, convert_hdr_to_8bit=True).to_pillow()
    except MemoryError:
        raise
    except Exception as error:  # libheif's own kind, and what the binding makes of odd files
        cut_off = isinstance(error, EOFError) or "end of" in str(error).lower()
        reason = "truncated" if cut_off else "damaged"
        raise MediaError(reason, f"HEIC: {error}") from error


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
