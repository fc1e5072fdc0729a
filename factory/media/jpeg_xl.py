"""What are the pixels of a JPEG XL? Read by libjxl, which the extra `jxl` brings."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import MediaError

# Reason of samples that another package would make usable; it says which extra to install.
NEEDS_EXTRA = "needs extra"
# Words of libjxl's decoder about a file that breaks off.
_CUT_OFF = "NEED_MORE_INPUT"


def codec() -> ModuleType:
    """Return the package that reads JPEG XL.

    Raises:
        MediaError: With reason "needs extra jxl": it is not installed.
    """
    try:
        import imagecodecs
    except ImportError as error:
        raise MediaError(
            f"{NEEDS_EXTRA} jxl",
            "JPEG XL is read by the package 'imagecodecs', which is not installed; install it "
            "with: pip install 'data-backend-factory[jxl]'",
        ) from error
    module: ModuleType = imagecodecs
    return module


def decode_jxl(data: bytes) -> NDArray[Any]:
    """Return the first frame as stored: uint8 or uint16 [H, W] or [H, W, C], C up to 4.

    C is 2 or 4 with transparency.

    Raises:
        MediaError: With reason "truncated", "damaged", "unsupported pixels" or
            "needs extra jxl".
    """
    package = codec()
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
