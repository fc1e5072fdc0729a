"""Small records that cross floors: plain values, no I/O."""

from dataclasses import dataclass
from typing import NamedTuple

# What a size reads when the storage cannot tell it without fetching the object.
UNKNOWN_SIZE = -1


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object, as a listing shows it.

    Attributes:
        key: Path below the storage's root, '/' between its parts, no leading '/'.
        size: Bytes, or `UNKNOWN_SIZE`.
        etag: Changes whenever the content does: an object store's ETag, or size and mtime.
    """

    key: str
    size: int
    etag: str


class MediaFacts(NamedTuple):
    """What a header says about a picture or video.

    A tuple, because scans make millions of them: a frozen dataclass takes three times as long.

    Attributes:
        width: Pixels, after orientation is applied.
        height: Pixels, after orientation is applied.
        format: Upper-case format name, such as "JPEG".
        frames: Number of frames; 1 for a still picture.
        focus: What a cut is centred on (x, y), as fractions of width and height; -1 where
            nothing was found, None where nothing was looked for.
    """

    width: int
    height: int
    format: str
    frames: int = 1
    focus: tuple[float, float] | None = None
