"""zstd compression of what a cache publishes, unpacked without trusting it."""

import numpy as np
import pyarrow as pa

from factory.cache.format.safetensors_file import Bytes, DamagedError

# How shards may be kept in a storage.
COMPRESSIONS = ("none", "zstd")
# What a packed file's name ends in; `zstd -d` makes the plain file of it.
SUFFIX = ".zst"
# zstd's own default. Noise, as latents nearly are, shrinks by 8 % in fp16 and 22 % in bf16;
# padded texts by three quarters.
_LEVEL = 3


def check_compression(name: str) -> None:
    """Refuse a name that is no way to keep shards.

    Raises:
        ValueError: It is none; those that are, are named.
    """
    if name not in COMPRESSIONS:
        raise ValueError(
            f"cache.compression must be one of {', '.join(COMPRESSIONS)}, got {name!r}"
        )


def plain_name(name: str) -> str:
    """Return what a file is called unpacked; a plain file keeps its name."""
    return name.removesuffix(SUFFIX)


def packed(data: bytes | memoryview) -> bytes:
    """Return the bytes as one zstd frame."""
    frame: bytes = pa.Codec("zstd", _LEVEL).compress(data, asbytes=True)
    return frame


def unpacked(data: bytes | memoryview | Bytes, size: int, source: str) -> Bytes:
    """Return what was packed, uint8 [size].

    No more than `size` bytes are ever made, whatever the frame claims to hold.

    Args:
        data: One zstd frame.
        size: How many bytes were packed, as recorded by who packed them.
        source: What errors call the bytes.

    Raises:
        DamagedError: They are no such frame, or hold another number of bytes.
    """
    if size == 0 and not len(data):
        return np.empty(0, np.uint8)
    try:
        whole = np.frombuffer(pa.Codec("zstd").decompress(data, size), np.uint8)
    except OSError as error:
        raise DamagedError(
            f"{source} is damaged: it does not unpack to {size} bytes ({error})"
        ) from error
    if whole.size != size:
        raise DamagedError(f"{source} is damaged: it unpacks to {whole.size} bytes, not {size}")
    return whole
