"""Pixels of JPEG XL and HEIC, whose decoders the extras `jxl` and `heif` bring."""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import MediaError

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
