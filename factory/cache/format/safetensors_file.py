"""Safetensors files: headers, parsing without trusting the file, and checksums."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from factory.errors import CacheError

# Raised when a reader of today could misread the files of tomorrow.
FORMAT_VERSION = 2
# What a header may take: a segment over 100,000 shards needs a third of it.
HEADER_LIMIT = 100 * 2**20
# Tensors start on a memory page, so that rows of whole pages can be read past the page cache.
_PAGE = 4096
_LENGTH_BYTES = 8

# The names safetensors has for the element types that rows may have.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

Bytes: TypeAlias = NDArray[np.uint8]


class DamagedError(CacheError):
    """A file of the cache that is not what its writer published."""


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a file.

    Attributes:
        code: Element type, a key of `DTYPES`.
        shape: Its shape.
        data: Its bytes, uint8 [bytes].
    """

    code: str
    shape: tuple[int, ...]
    data: Bytes


def header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], room: int = 0
) -> bytes:
    """Return what stands before the data: length and JSON, padded to whole pages.

    Args:
        tensors: (name, code, shape) in the order of their data.
        metadata: Texts to keep in the file; the format's version is added.
        room: Bytes to fill at least.

    Raises:
        CacheError: The header would be longer than readers accept.
    """
    stamped = {"format": "pt", "cache_format": str(FORMAT_VERSION), **metadata}
    table: dict[str, Any] = {"__metadata__": stamped}
    end = 0
    for name, code, shape in tensors:
        start, end = end, end + prod(shape) * DTYPES[code].itemsize
        table[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    used = max(_LENGTH_BYTES + len(text), room)
    size = -(-used // _PAGE) * _PAGE - _LENGTH_BYTES
    if size > HEADER_LIMIT:
        raise CacheError(f"a header of {size} bytes is over the limit of {HEADER_LIMIT}")
    return size.to_bytes(_LENGTH_BYTES, "little") + text.ljust(size)


def parse(data: Bytes, source: str) -> tuple[dict[str, str], dict[str, FileTensor]]:
    """Return the metadata and the tensors of a safetensors file, as views of its bytes.

    Nothing in the file is believed: sizes are bounded, and tensors must fill the data one
    after the other. Nothing in it is ever unpickled.

    Args:
        data: The whole file, uint8 [bytes].
        source: What errors call the file.

    Raises:
        DamagedError: It is no such file, or it was cut short.
        CacheError: It was written in a newer format.
    """
    table, start = _table(data, source)
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        raise DamagedError(f"{source} was not written as a cache: it names no format")
    _check_version(metadata.get("cache_format"), source)
    body, end = data[start:], 0
    tensors: dict[str, FileTensor] = {}
    try:
        for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name] = _tensor(entry, body, end, source)
            end += tensors[name].data.size
    except (TypeError, KeyError, ValueError) as error:
        raise DamagedError(f"{source} is damaged: its header is not understood") from error
    if end != body.size:
        raise DamagedError(f"{source} is damaged: it holds {body.size} bytes of data, not {end}")
    return metadata, tensors


def _table(data: Bytes, source: str) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    start = _LENGTH_BYTES + length
    if data.size < _LENGTH_BYTES or length > HEADER_LIMIT or start > data.size:
        raise DamagedError(
            f"{source} is no safetensors file, or it was cut short ({data.size} bytes); "
            "files of other kinds, pickles among them, are never loaded"
        )
    try:
        table = json.loads(data[_LENGTH_BYTES:start].tobytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{source} is damaged: its header is not JSON") from error
    if not isinstance(table, dict):
        raise DamagedError(f"{source} is damaged: its header is not a table")
    return table, start


def _check_version(found: object, source: str) -> None:
    if not isinstance(found, str) or not found.isdecimal() or not found.isascii():
        raise DamagedError(f"{source} was not written as a cache: it names no format")
    if found != str(FORMAT_VERSION):
        newer = len(found) > len(str(FORMAT_VERSION)) or found > str(FORMAT_VERSION)
        mend = "upgrade data-backend-factory" if newer else "delete the cache to encode it anew"
        raise CacheError(
            f"{source} was written in cache format {found[:8]}, and this version reads format "
            f"{FORMAT_VERSION}; {mend}, or choose another cache.prefix"
        )


def _tensor(entry: dict[str, Any], body: Bytes, start: int, source: str) -> FileTensor:
    """Return the tensor that starts where the one before it ended."""
    code, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    sound = code in DTYPES and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if not sound or begin != start or end - begin != prod(shape) * DTYPES[code].itemsize:
        raise DamagedError(f"{source} is damaged: a tensor of {code!r} {shape} at {begin}:{end}")
    if end > body.size:
        raise DamagedError(f"{source} was cut short: {body.size} bytes of data, {end} expected")
    return FileTensor(code, shape, body[begin:end])


def digest(parts: Iterable[memoryview]) -> int:
    """Return the 64-bit checksum of bytes that follow one another."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()
