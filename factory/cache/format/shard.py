"""Shards: files of rows of one shape, built in memory and opened for reading."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from factory.cache.format.safetensors_file import (
    CODES,
    DTYPES,
    Bytes,
    DamagedError,
    digest,
    header,
    parse,
)
from factory.errors import CacheError
from factory.storage.mapped_length import Extent

# Shards that are looked at each time, and how long others are trusted, seconds: a thousand shards
# then cost a hundredth of the time at most.
_FEW = 8
_LATELY_S = 0.1


@dataclass(frozen=True)
class RowField:
    """One named tensor of a row.

    Attributes:
        name: Such as "latents".
        code: Element type, a key of `container.DTYPES`.
        shape: Shape of one row.
    """

    name: str
    code: str
    shape: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * DTYPES[self.code].itemsize

    def __str__(self) -> str:
        """Such as "latents F16 [4, 8, 8]"."""
        return f"{self.name} {self.code} {list(self.shape)}"


# What every row of a shard is made of, in the order of the file.
RowLayout: TypeAlias = tuple[RowField, ...]


def layout_of(fields: Mapping[str, torch.Tensor]) -> RowLayout:
    """Return the layout of tensors [n, ...]: wide elements first, so that all lie aligned.

    Raises:
        CacheError: There is no field, one is a scalar, or its dtype cannot be stored.
    """
    if not fields or "__metadata__" in fields:
        raise CacheError(f"a row needs named tensors; got the fields {sorted(fields)}")
    for name, tensor in fields.items():
        if tensor.ndim == 0 or tensor.dtype not in CODES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in CODES)
            raise CacheError(
                f"field {name!r} is {tensor.dtype} {list(tensor.shape)}; it must be [rows, ...] "
                f"of one of {allowed}"
            )
    found = [RowField(n, CODES[t.dtype], tuple(t.shape[1:])) for n, t in fields.items()]
    return tuple(sorted(found, key=_file_order))


def _file_order(field: RowField) -> tuple[int, str]:
    return -DTYPES[field.code].itemsize, field.name


def describe(layout: RowLayout) -> str:
    """Return the layout in words, for messages."""
    return ", ".join(str(field) for field in sorted(layout, key=lambda field: field.name))


def row_bytes(layout: RowLayout) -> int:
    """Return the bytes of one row, all fields together."""
    return sum(field.stride for field in layout)


def layout_json(layout: RowLayout) -> list[list[Any]]:
    """Return the layout as JSON values."""
    return [[field.name, field.code, list(field.shape)] for field in layout]


def layout_from_json(value: Sequence[Sequence[Any]]) -> RowLayout:
    """Return the layout that `layout_json` wrote.

    Raises:
        ValueError, TypeError: It wrote no such thing.
    """
    fields = tuple(RowField(str(name), code, tuple(shape)) for name, code, shape in value)
    numbers = [n for field in fields for n in field.shape]
    if not all(f.code in DTYPES for f in fields) or not all(
        type(n) is int and n >= 0 for n in numbers
    ):
        raise ValueError(f"no layout: {value}")
    return fields


def byte_matrix(tensor: torch.Tensor) -> Bytes:
    """Return the memory of a contiguous CPU tensor [n, ...] as uint8 [n, stride]."""
    stride = prod(tensor.shape[1:]) * tensor.itemsize
    matrix: Bytes = tensor.view(torch.uint8).numpy().reshape(tensor.shape[0], stride)
    return matrix


class ShardBuilder:
    """Rows collected in memory in the form of the file they become."""

    def __init__(self, layout: RowLayout, capacity: int, memory: Bytes | None = None) -> None:
        """Reserve room for `capacity` rows; memory is taken as rows come.

        Args:
            layout: What rows are made of.
            capacity: How many may come.
            memory: What another open shard used, uint8 [bytes]; taken if it is large enough,
                for memory fresh from the system costs twice what the copy does.
        """
        self.layout, self.capacity, self.rows = layout, capacity, 0
        self._head = len(header(self._tensors(capacity), {}))
        size = self._head + capacity * self.row_bytes
        if memory is None or memory.size < size:
            memory = np.empty(size, np.uint8)
        self.memory = memory
        self._data = self.memory[:size]
        self._fields = _fields(self._data[self._head :], layout, capacity)
        self.checksums = np.empty(capacity, np.uint64)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together."""
        return row_bytes(self.layout)

    def append(self, matrices: Sequence[Bytes]) -> None:
        """Copy rows in, uint8 [n, stride] of each field in the layout's order; n must fit."""
        start, end = self.rows, self.rows + len(matrices[0])
        for place, matrix in zip(self._fields, matrices, strict=True):
            place[start:end] = matrix
        for row in range(start, end):
            self.checksums[row] = digest(place[row].data for place in self._fields)
        self.rows = end

    def finish(self) -> memoryview:
        """Return the whole file; no more rows may follow."""
        view, end = self._data.data, self._head
        begin = self._head
        for field in self.layout:
            size = self.rows * field.stride
            if begin != end:  # rows that did not come leave gaps, and the format allows none
                view[end : end + size] = view[begin : begin + size]
            begin += self.capacity * field.stride
            end += size
        view[: self._head] = header(self._tensors(self.rows), {}, room=self._head)
        return view[:end]

    def _tensors(self, rows: int) -> list[tuple[str, str, tuple[int, ...]]]:
        return [(field.name, field.code, (rows, *field.shape)) for field in self.layout]


def _fields(data: Bytes, layout: RowLayout, rows: int) -> list[Bytes]:
    """Cut the data of a file into uint8 [rows, stride] for each field."""
    places, start = [], 0
    for field in layout:
        end = start + rows * field.stride
        places.append(data[start:end].reshape(rows, field.stride))
        start = end
    return places


class TensorShard:
    """A published shard, its rows ready to be copied out.

    Attributes:
        source: What errors call it.
        layout: What its rows are made of.
        rows: How many there are.
        fields: The bytes of all rows, uint8 [rows, stride] for each field of the layout.
        addresses: Where each field begins in the memory of this process, bytes.
        verified: For each row whether it was found sound, one byte each.
        extent: The file that the rows are mapped from; None where they are in memory.
        looked: When it was last looked at whether that was cut; seconds of `time.monotonic`.
    """

    def __init__(
        self, data: Bytes, source: str, layout: RowLayout, rows: int, extent: Extent | None = None
    ) -> None:
        """Check that the file holds what its index says.

        Args:
            data: Its bytes, uint8 [bytes].
            source: What errors call it.
            layout: What its rows are made of.
            rows: How many there are.
            extent: The file that the bytes are mapped from; None where they are in memory.

        Raises:
            DamagedError: It does not.
            CacheError: It was written in a newer format.
        """
        self.source, self.layout, self.rows = source, layout, rows
        self.extent, self.looked = extent, time.monotonic()
        tensors = parse(data, source)[1]
        found = [(name, tensor.code, tensor.shape) for name, tensor in tensors.items()]
        if sorted(found) != sorted((f.name, f.code, (rows, *f.shape)) for f in layout):
            raise DamagedError(f"{source} does not hold the {rows} rows that its index lists")
        self.fields = [tensors[f.name].data.reshape(rows, f.stride) for f in layout]
        self.addresses = [field.ctypes.data for field in self.fields]
        self.verified = bytearray(rows)  # which rows were compared with their checksums

    def unsound(self, rows: Sequence[int], checksums: Sequence[int]) -> list[int]:
        """Return those of the rows whose bytes do not give their checksum.

        Rows found sound once are not looked at again.

        Raises:
            DamagedError: A row is beyond the shard's end.
        """
        if max(rows, default=-1) >= self.rows:
            raise DamagedError(self.beyond)
        bad = []
        for row, checksum in zip(rows, checksums, strict=True):
            if self.verified[row]:
                continue
            if digest(matrix[row].data for matrix in self.fields) == checksum:
                self.verified[row] = True
            else:
                bad.append(row)
        return bad

    @property
    def beyond(self) -> str:
        """What is wrong where an index lists a row that is not there."""
        return f"the index of {self.source} lists a row beyond its {self.rows}"


def cut_among(shards: Collection[TensorShard]) -> list[TensorShard]:
    """Return those of some shards whose files were cut since they were mapped.

    To copy a row from one would end the process. Few shards are looked at each time. Of many, those
    that were not of late: to ask takes a microsecond, where a batch may have rows of a hundred.
    """
    now = time.monotonic()
    found = []
    for shard in shards:
        if shard.extent is None or (len(shards) > _FEW and now - shard.looked < _LATELY_S):
            continue
        shard.looked = now
        if shard.extent.shrunk:
            found.append(shard)
    return found


def matrices_of(layout: RowLayout, tensors: Mapping[str, torch.Tensor]) -> list[Bytes]:
    """Return the tensors' memory, uint8 [n, stride], in the layout's order."""
    return [byte_matrix(tensors[field.name]) for field in layout]


def unfinite_rows(layout: RowLayout, matrices: Iterable[Bytes]) -> dict[str, list[int]]:
    """Return, for each floating field that has some, the rows that hold NaN or infinity."""
    found = {}
    for field, matrix in zip(layout, matrices, strict=True):
        if field.code not in _EXPONENTS or not matrix.size:
            continue
        unsigned, ones = _EXPONENTS[field.code]
        # All ones in the exponent mean "not finite"; on bits this is ten times isfinite's speed.
        bits = matrix.view(unsigned) & unsigned(ones)
        if int(bits.max()) == ones:
            found[field.name] = np.flatnonzero((bits == ones).any(axis=1)).tolist()
    return found


_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F),  # this type has no infinity, and a single NaN pattern
    "F8_E5M2": (np.uint8, 0x7C),
}
