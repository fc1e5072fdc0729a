"""Decoding of pictures: bytes of any format to upright RGB pixels.

- JPEG by libjpeg-turbo (simplejpeg), at a reduced scale where that is enough; what it does not
  take (CMYK, odd files) by Pillow, which also decodes every other format but JPEG XL and HEIC.
- Metadata beside the pixels are not unpacked, and what takes more than the limits is refused.
- Transparent pixels are laid on white.
- 16-bit grey is scaled to 8 bits, not clipped, and so is 16-bit colour of a JPEG XL; 16-bit
  colour of other formats keeps its high byte.
- Of an animated picture the first frame counts.
- Colour profiles are not applied.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import MediaError
from factory.media.decode_limits import DecodeLimits
from factory.media.format_decoders import decode_jxl, open_heic
from factory.media.formats.jpeg import scans
from factory.media.headers import MAX_PIXELS, Header, check_size, read_header
from factory.media.resample import opencv

# Names how pixels come about, for keys of caches: raise the number whenever the same bytes
# would give other pixels. Photographs decoded and resized fast differ from exact ones by 39 dB
# and more on average.
DECODE_VERSION = "rgb8-2:turbojpeg-scaled,blurred-cubic,pillow,white,first-frame"
# By the setting `decode`: whether JPEGs come at a reduced scale and how pictures are resized.
DECODE_VERSIONS = {
    "fast": DECODE_VERSION,
    "exact": "rgb8-2:turbojpeg-full,lanczos,pillow,white,first-frame",
    # Masks and maps of labels, whose values must not be mixed.
    "nearest": "rgb8-2:turbojpeg-full,nearest,pillow,white,first-frame",
}

Pixels = NDArray[np.uint8]
_LIMITS = DecodeLimits()

# Words of libjpeg about entropy-coded data that breaks off or makes no sense. Other warnings,
# such as a few bytes too many between segments, leave the picture whole.
_CUT_OFF = re.compile("premature end", re.IGNORECASE)
_DAMAGED = re.compile("bad Huffman code")
_WHITE = (255, 255, 255, 255)
_COLOURS = 3
# Reduced JPEG decoding comes in steps of an eighth.
_EIGHTHS = 8
# Rows that are converted to RGB at once: few, so that nothing is held twice as a whole.
_BAND_PIXELS = 2**20
# A picture that takes less is not what memory ran out by.
_MUCH = 64 * 2**20


def decode(
    data: bytes,
    *,
    at_least: tuple[int, int] | None = None,
    max_pixels: int | None = MAX_PIXELS,
    check: Callable[[int, int], None] | None = None,
    limits: DecodeLimits = _LIMITS,
) -> Pixels:
    """Return the pixels of a picture as it is meant to be seen.

    Args:
        data: The whole file.
        at_least: Width and height, after orientation, px, that are enough: a JPEG may come at
            a reduced size that covers both. A picture smaller than that keeps its own size.
        max_pixels: Largest width x height accepted; None means no limit.
        check: Called with width and height, after orientation, px, before anything is decoded;
            what it raises refuses the picture.
        limits: What decoding may take beside.

    Returns:
        RGB, uint8 [H, W, 3], C-contiguous.

    Raises:
        MediaError: With reason "truncated" for files that break off; "too large", "too many
            scans", "too slow" for those beyond a limit; "damaged", "unsupported pixels", or
            those of `measure` for other bytes that give no picture.
    """
    header = read_header(data, len(data), max_pixels=max_pixels, count_frames=False)
    if check is not None:
        check(*header.upright)
    if header.format == "JPEG":
        passes = scans(data, limits.jpeg_scans)
        limits.check_scans(passes)
        header = header._replace(whole=header.whole or passes > 1)
    needed = limits.needed(header, len(data), _scale(header, at_least))
    limits.check(needed, header)
    try:
        with limits.room(needed):
            return _upright(_stored(data, header, at_least, max_pixels, limits), header.orientation)
    except MemoryError as error:
        if needed < _MUCH:
            error.add_note("memory is low: lower prefetch.batches, data.batch_size or cache.ram_gb")
            raise
        raise MediaError(
            "too large",
            f"no memory left for the {needed / 2**20:.0f} MiB that decoding a {header.format} of "
            f"{header.width} x {header.height} px takes; lower data.limits.memory_mb="
            f"{limits.memory_mb:g}, by which such pictures are dropped, or engine.workers",
        ) from error


def _stored(
    data: bytes,
    header: Header,
    at_least: tuple[int, int] | None,
    max_pixels: int | None,
    limits: DecodeLimits,
) -> Pixels:
    """Return the pixels as stored, before orientation is applied."""
    pixels: Pixels | None = None
    if header.format == "JPEG":
        pixels = _jpeg(data, header, at_least, max_pixels)
        if pixels is not None:
            return pixels
    elif header.format == "JXL":
        pixels = _jpeg_xl(data)
    elif header.format == "HEIC":
        pixels = _rgb(open_heic(data))
    if pixels is None:
        pixels = _pillow(data, header, max_pixels, limits)
    _check_shape(pixels.shape[1], pixels.shape[0], header)
    return pixels


def _scale(header: Header, at_least: tuple[int, int] | None) -> float:
    """Return an upper bound of the scale that a JPEG is decoded at."""
    if at_least is None:
        return 1.0
    width, height = at_least[::-1] if header.transposed else at_least
    wanted = max(width / header.width, height / header.height)
    return min(1.0, math.ceil(_EIGHTHS * wanted) / _EIGHTHS)


def _check_shape(width: int, height: int, header: Header) -> None:
    """Refuse pixels of another size than the header's: the cut was made for that one."""
    if (width, height) != (header.width, header.height):
        raise MediaError(
            "damaged",
            f"{header.format} of {header.width} x {header.height} px by its header gives "
            f"{width} x {height}",
        )


def _jpeg(
    data: bytes, header: Header, at_least: tuple[int, int] | None, max_pixels: int | None
) -> Pixels | None:
    """Return pixels as stored; None where Pillow has to try."""
    import simplejpeg

    # 0 means the full size.
    width, height = at_least or (0, 0)
    if header.transposed:
        width, height = height, width
    try:
        tall, wide, colours, _ = simplejpeg.decode_jpeg_header(data)
        # A file with two frame headers may have shown us a small one.
        check_size("JPEG", wide, tall, max_pixels)
        _check_shape(wide, tall, header)
        if colours in ("CMYK", "YCCK"):
            return None
        # Strict decoding is the default, and what makes files that break off an error.
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_width=width, min_height=height, min_factor=1, strict=True
        )
    except ValueError as error:
        message = str(error)
        if _CUT_OFF.search(message):
            raise MediaError("truncated", message) from error
        if _DAMAGED.search(message):
            raise MediaError("damaged", message) from error
        return None
    except KeyError:  # a colour subsampling that simplejpeg has no name for
        return None
    return _trim(pixels, header, (width, height))


def _trim(pixels: Pixels, header: Header, at_least: tuple[int, int]) -> Pixels:
    """Drop a last row or column of a reduced picture that holds less than half a pixel.

    Sizes are rounded up, so 1067 rows at 3/8 come as 401, of which the last is only an eighth
    filled; taken as whole it would shift the picture by most of a pixel when resized.
    """
    tall, wide = pixels.shape[:2]
    longest = max(header.width, header.height)
    if longest == max(tall, wide) or longest <= _EIGHTHS:
        return pixels
    eighths = _EIGHTHS * max(tall, wide) // longest

    def trimmed(stored: int, decoded: int, least: int) -> int:
        excess = decoded - stored * eighths / _EIGHTHS
        return decoded - 1 if excess > 0.5 and decoded > least else decoded  # noqa: PLR2004

    rows = trimmed(header.height, tall, at_least[1])
    columns = trimmed(header.width, wide, at_least[0])
    return np.ascontiguousarray(pixels[:rows, :columns])


def _pillow(data: bytes, header: Header, max_pixels: int | None, limits: DecodeLimits) -> Pixels:
    from factory.media.format_decoders import open_pillow

    kind = header.format
    try:
        with open_pillow(kind, data, limits.seconds) as image:
            # A file that contradicts itself may read another way here than in `read_header`.
            check_size(kind, image.width, image.height, max_pixels)
            if kind == "JPEG" or image.width * image.height > header.width * header.height:
                # A JPEG that comes here is decoded whole.
                found = header._replace(width=image.width, height=image.height, whole=True)
                limits.check(limits.needed(found, len(data)), found)
            image.load()
            return _rgb(image)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever their parsing comes upon
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
        reason = "truncated" if cut_off or _breaks_off(data, kind) else "damaged"
        raise MediaError(reason, f"{kind}: {error}") from error


def _jpeg_xl(data: bytes) -> Pixels:
    pixels = decode_jxl(data)
    if pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels)
    if pixels.ndim == 2:  # noqa: PLR2004 - grey
        pixels = pixels[:, :, None]
    if pixels.shape[2] in (2, 4):
        colours, alpha = pixels[:, :, :-1], pixels[:, :, -1:].astype(np.uint16)
        over = colours * alpha + np.uint16(255) * (255 - alpha)
        pixels = ((over + 127) // 255).astype(np.uint8)
    return pixels if pixels.shape[2] == _COLOURS else np.repeat(pixels, _COLOURS, axis=2)


def _breaks_off(data: bytes, kind: str) -> bool:
    """Whether a container says that it is longer than the data."""
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind != "AVIF":
        return False
    position = 0
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if length < 8:  # noqa: PLR2004 - 0: up to the end; 1: a 64-bit length, never so cut off
            return False
        position += length
    return position != len(data)


def _rgb(image: Any) -> Pixels:
    """Return the pixels of a loaded Pillow image of any mode."""
    mode = image.mode
    if mode in ("I", "F"):
        raise MediaError(
            "unsupported pixels",
            f"32-bit values (mode {mode}) have no known range; save the picture with 8 or 16 bits",
        )
    width, height = image.size
    pixels = np.empty((height, width, _COLOURS), dtype=np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _flat(image.crop((0, top, width, bottom)))
    return pixels


def _flat(image: Any) -> Pixels:
    """Return the pixels of a few rows, transparent ones on white."""
    if image.mode.startswith("I;16"):
        return _from_grey16(np.asarray(image), image.info.get("transparency"))
    if image.has_transparency_data:
        from PIL import Image

        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, _WHITE)
        image = Image.alpha_composite(paper, image)
    pixels: Pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return pixels


def _from_grey16(values: NDArray[Any], transparent: object) -> Pixels:
    """Scale 16 bits to 8, and repeat them for each colour."""
    grey = _eight_bits(values)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _eight_bits(values: NDArray[Any]) -> Pixels:
    """Scale 0 to 65535 onto 0 to 255, to the nearest."""
    # 65535 = 255 * 257
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels by their EXIF orientation."""
    if orientation == 1:
        return pixels
    cv2 = opencv()
    turned = {
        2: lambda: cv2.flip(pixels, 1),
        3: lambda: cv2.rotate(pixels, cv2.ROTATE_180),
        4: lambda: cv2.flip(pixels, 0),
        5: lambda: cv2.transpose(pixels),
        6: lambda: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
        7: lambda: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
        8: lambda: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }[orientation]()
    return np.ascontiguousarray(turned, dtype=np.uint8)
