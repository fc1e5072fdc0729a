"""Size, orientation and frames of a picture, from its first bytes.

Headers are read by hand, which is quick and never needs more than the header; only sequences
of AVIF are left to Pillow.

Orientation is what Pillow's `ImageOps.exif_transpose` makes of it: EXIF of a JPEG, PNG (as a
chunk before or behind the pixels, or as a raw profile), WebP and TIFF, or else `tiff:Orientation`
of their XMP; the rotation and mirror boxes of an AVIF or HEIC; the codestream of a JPEG XL.
"""

from collections.abc import Callable, Mapping

from factory.errors import MediaError
from factory.media.decode_limits import DecodeLimits
from factory.media.format_decoders import codec
from factory.media.formats import bmp, gif, heif, jpeg, jxl, png, tiff, webp
from factory.media.formats.exif import exif_orientation
from factory.media.formats.header_bytes import Header, HeaderBytes, NeedMoreBytes
from factory.records import MediaFacts

__all__ = [
    "HEAD_BYTES",
    "MAX_PIXELS",
    "Header",
    "NeedMoreBytes",
    "check_size",
    "exif_orientation",
    "measure",
    "read_header",
    "sniff",
]

# Enough for the header of nearly every web picture, and four pages of a file system. Camera
# files with an embedded preview put up to 64 KB of EXIF first and cost a second read.
HEAD_BYTES = 16 * 1024
# Above the largest sensors sold (200 MP phones) and panoramas of 20,000 px by 10,000; a picture
# at the limit takes 805 MB as RGB, so more is a decompression bomb until someone says otherwise.
MAX_PIXELS = 2**28

# Where the quick reader of JPEGs gives up: its loop counts no segments.
_QUICK_BYTES = 2**20
# Orientations from here on swap width and height.
_FIRST_TRANSPOSED = 5
# Bytes that tell the format: the longest signature (RIFF....WEBP) ends here.
_SIGNATURE = 12
_JPEG = b"\xff\xd8\xff"


def measure(
    head: bytes,
    size: int | None = None,
    *,
    max_pixels: int | None = MAX_PIXELS,
    limits: DecodeLimits | None = None,
    ranges: Mapping[int, bytes] | None = None,
) -> MediaFacts:
    """Return what the first bytes of a picture say about it.

    GIF, animated WebP and animated AVIF are asked for whole: their frames are counted. Frames
    of a JPEG XL are not.

    Args:
        head: First bytes of the file, at best `HEAD_BYTES` or all of it.
        size: Bytes of the whole file, if known; negative counts as unknown.
        max_pixels: Largest width x height accepted; None means no limit.
        limits: What decoding it may take; None leaves that to be seen.
        ranges: Bytes of the file from further behind, by where they begin.

    Raises:
        NeedMoreBytes: The header is longer than `head`, and the file may be too.
        MediaError: With reason "empty file", "not a picture", "truncated header",
            "unsupported pixels", "too many parts" or "too large", or "needs extra jxl" or "heif"
            where that would read it.
    """
    found = jpeg.quick(head[:_QUICK_BYTES]) if head.startswith(_JPEG) else None
    if found is not None:
        width, height, orientation = found
        pixels = width * height
        free = limits is None or limits.admit_freely(pixels, size)
        if pixels > 0 and (max_pixels is None or pixels <= max_pixels) and free:
            if orientation >= _FIRST_TRANSPOSED:
                width, height = height, width
            return MediaFacts(width, height, "JPEG")
    header = read_header(head, size, max_pixels=max_pixels, ranges=ranges)
    if header.format == "JXL":
        codec("JXL")  # what could not be decoded is dropped now, not in mid-training
    if limits is not None:
        limits.check(limits.least(header, size), header)
    return MediaFacts(*header.upright, header.format, header.frames)


def read_header(
    head: bytes,
    size: int | None = None,
    *,
    max_pixels: int | None = MAX_PIXELS,
    count_frames: bool = True,
    ranges: Mapping[int, bytes] | None = None,
) -> Header:
    """Return width, height, orientation and frames as stored; arguments as in `measure`.

    With `count_frames=False` the frames of GIF, TIFF and WebP are not looked for.

    Raises:
        NeedMoreBytes: As `measure`.
        MediaError: As `measure`.
    """
    window = HeaderBytes(head, None if size is not None and size < 0 else size, ranges)
    if not head:
        raise window.short(_SIGNATURE) if window.size else MediaError("empty file")
    kind = sniff(head)
    if kind is None:
        if len(head) < _SIGNATURE and not window.whole:
            raise window.short(min(HEAD_BYTES, window.size or HEAD_BYTES))
        raise MediaError("not a picture", f"it starts with {head[:_SIGNATURE]!r}")
    if kind == "HEIC":
        codec(kind)  # whatever is in it, it is named as what it is
    try:
        header = _READERS[kind](window, count_frames)
    except (NeedMoreBytes, MediaError, MemoryError):
        raise
    except Exception as error:  # boxes that contradict each other, and what Pillow comes upon
        raise MediaError("not a picture", f"damaged {kind} header: {error}") from error
    check_size(kind, header.width, header.height, max_pixels)
    return header


def sniff(head: bytes) -> str | None:
    """Return the format that the first 12 bytes announce, or None."""
    for kind, start in _SIGNATURES:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return heif.kind(head)


def check_size(kind: str, width: int, height: int, max_pixels: int | None) -> None:
    """Refuse a picture without extent, or of more pixels than the limit.

    Raises:
        MediaError: With reason "not a picture" or "too large".
    """
    if width <= 0 or height <= 0:
        raise MediaError("not a picture", f"{kind} of {width} x {height} px")
    if max_pixels is not None and width * height > max_pixels:
        raise MediaError(
            "too large",
            f"{width} x {height} px is {width * height / 1e6:.0f} MP, above the limit of "
            f"{max_pixels / 1e6:.0f} MP; raise the limit, metadata.max_megapixels, if it is meant "
            "to be so large",
        )


_SIGNATURES = (
    ("JPEG", _JPEG),
    ("PNG", b"\x89PNG\r\n\x1a\n"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
    ("BMP", b"BM"),
    ("JXL", jxl.CODESTREAM),
    ("JXL", jxl.CONTAINER),
)

_READERS: dict[str, Callable[[HeaderBytes, bool], Header]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "WEBP": webp.read,
    "AVIF": heif.read_avif,
    "HEIC": heif.read_heic,
    "GIF": gif.read,
    "TIFF": tiff.read,
    "BMP": bmp.read,
    "JXL": jxl.read,
}
