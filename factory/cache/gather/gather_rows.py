"""Gathering of rows of open shards into the tensors of a batch, with one copy."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.cache.format.safetensors_file import DTYPES, Bytes, digest
from factory.cache.format.shard import (
    RowField,
    RowLayout,
    TensorShard,
    byte_matrix,
    describe,
    matrices_of,
)
from factory.errors import CacheError

Checksums: TypeAlias = NDArray[np.uint64]
# OpenCV counts columns by an int of 32 bits.
_OPENCV_COLUMNS = 2**31 - 1


class Allocator(Protocol):
    """Makes tensors whose content does not matter, as `torch.empty` does."""

    def __call__(self, shape: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor on the CPU."""


def new_tensor(shape: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of memory of its own."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu")


class BadRowsError(Exception):
    """Rows that are not what was published.

    Attributes:
        places: Which of the rows asked for, ascending; all of one shard.
    """

    def __init__(self, message: str, places: list[int]) -> None:
        """Keep the message and the places."""
        super().__init__(message)
        self.places = places


def gather_rows(
    shards: Sequence[TensorShard],
    rows: Sequence[int],
    checksums: Checksums | None,
    out: dict[str, torch.Tensor] | None,
    allocate: Allocator,
    *,
    pad: bool = False,
) -> dict[str, torch.Tensor]:
    """Return rows in the order asked for, each field a tensor [n, ...].

    Args:
        shards: The shard of each of n rows, at least one.
        rows: Their numbers in it.
        checksums: Their checksums, uint64 [n], compared where a row was not found sound
            before; None compares nothing.
        out: Tensors to fill, [n or more, ...]; those that are missing are put in.
        allocate: Makes tensors.
        pad: Whether rows may differ in the length of their fields' first axis; shorter ones
            are filled up with zeros.

    Raises:
        BadRowsError: Rows are beyond a shard's end, or do not give their checksum.
        CacheError: Rows differ in shape, or a tensor of `out` does not fit.
    """
    unverified = _unverified(shards, rows)
    layout = shards[0].layout
    layouts = [shard.layout for shard in dict.fromkeys(shards)]
    if other := [each for each in layouts if each is not layout and each != layout]:
        if not pad:
            raise _unequal(layout, other[0])
        return _padded(shards, rows, checksums, out, allocate)
    batch = copied_rows(shards, rows, out, allocate)
    if checksums is not None and unverified:
        _compare(shards, rows, checksums, matrices_of(layout, batch), unverified)
    return batch


def copied_rows(
    shards: Sequence[TensorShard],
    rows: Sequence[int],
    out: dict[str, torch.Tensor] | None,
    allocate: Allocator,
) -> dict[str, torch.Tensor]:
    """Return rows of one layout that their shards have, each field a tensor [n, ...].

    By OpenCV, which copies all rows of a field in the calling thread and lets go of the
    interpreter once meanwhile. Numpy lets go once a row, and threads that make batches wait for
    each other each time; torch divides rows among threads, where each copy waits for the last.

    Args:
        shards: The shard of each of n rows, at least one.
        rows: Their numbers in it.
        out: Tensors to fill; see `gather_rows`.
        allocate: Makes tensors.
    """
    layout = shards[0].layout
    batch = _tensors(layout, len(rows), out, allocate)
    for number, field in enumerate(layout):
        if field.stride:
            parts = [
                shard.fields[number][row : row + 1] for shard, row in zip(shards, rows, strict=True)
            ]
            concatenate(parts, byte_matrix(batch[field.name]))
    return batch


def concatenate(parts: Sequence[Bytes], out: Bytes) -> None:
    """Copy matrices, uint8 [rows, stride] of one stride, one below the other into another."""
    if out.shape[1] > _OPENCV_COLUMNS:
        np.concatenate(parts, out=out)
        return
    import cv2  # a tenth of a second, which commands that gather nothing do without

    cv2.vconcat(parts, out)


def _unverified(shards: Sequence[TensorShard], rows: Sequence[int]) -> list[int]:
    """Return the places of rows that were not compared with their checksums yet.

    Raises:
        BadRowsError: A row is beyond a shard's end, and so in memory of somebody else.
    """
    seen: list[int] = []
    for shard, row in zip(shards, rows, strict=True):
        if not 0 <= row < shard.rows:
            raise BadRowsError(shard.beyond, [len(seen)])
        seen.append(shard.verified[row])
    return [] if all(seen) else [place for place, sound in enumerate(seen) if not sound]


def _compare(
    shards: Sequence[TensorShard],
    rows: Sequence[int],
    checksums: Checksums,
    copied: Sequence[Bytes],
    places: Sequence[int],
) -> None:
    """Compare rows at some places; as copied, since that lies in the processor's cache."""
    bad = []
    for place in places:
        if digest(matrix[place].data for matrix in copied) == checksums[place]:
            shards[place].verified[rows[place]] = True
        else:
            bad.append(place)
    if bad:
        first = shards[bad[0]]
        places = [place for place in bad if shards[place] is first]
        raise BadRowsError(
            f"row {rows[bad[0]]} of {first.source} does not match its checksum", places
        )


def _padded(
    shards: Sequence[TensorShard],
    rows: Sequence[int],
    checksums: Checksums | None,
    out: dict[str, torch.Tensor] | None,
    allocate: Allocator,
) -> dict[str, torch.Tensor]:
    """Gather rows of several lengths: each length for itself, then into zeros."""
    groups: dict[RowLayout, list[int]] = {}
    for place, shard in enumerate(shards):
        groups.setdefault(shard.layout, []).append(place)
    batch = batch_of(list(groups), len(rows), out, allocate, pad=True)
    for places in groups.values():
        try:
            part = gather_rows(
                [shards[place] for place in places],
                [rows[place] for place in places],
                None if checksums is None else checksums[places],
                None,
                new_tensor,
            )
        except BadRowsError as error:
            raise BadRowsError(str(error), [places[n] for n in error.places]) from None
        put_rows(batch, places, part)
    return batch


def batch_of(
    layouts: Sequence[RowLayout],
    count: int,
    out: dict[str, torch.Tensor] | None = None,
    allocate: Allocator = new_tensor,
    *,
    pad: bool,
) -> dict[str, torch.Tensor]:
    """Return a batch [count, ...] that rows of all these layouts fit into.

    Args:
        layouts: What the rows are made of; one or more.
        count: Rows of the batch.
        out: Tensors to fill, [count or more, ...]; those that are missing are put in.
        allocate: Makes tensors.
        pad: Whether rows may differ in length; then the batch is zeros where they do.

    Raises:
        CacheError: Rows differ in shape, or a tensor of `out` does not fit.
    """
    first = layouts[0]
    other = next((layout for layout in layouts if layout != first), None)
    if other is not None and not pad:
        raise _unequal(first, other)
    batch = _tensors(_widest(layouts), count, out, allocate)
    if other is not None:
        for tensor in batch.values():
            tensor.zero_()
    return batch


def put_rows(
    batch: Mapping[str, torch.Tensor], places: Sequence[int], rows: Mapping[str, torch.Tensor]
) -> None:
    """Copy rows, fields [n, ...], to their places in a batch, where longer ones may be."""
    at = torch.tensor(places, device="cpu")  # whatever the trainer's default device is
    for name, tensor in rows.items():
        if tensor.ndim > 1:
            batch[name][:, : tensor.shape[1]][at] = tensor
        else:
            batch[name][at] = tensor


def _widest(layouts: Sequence[RowLayout]) -> RowLayout:
    """Return the layout that rows of all these fit into.

    Raises:
        CacheError: They differ in more than the length of their fields' first axis.
    """
    first = layouts[0]
    for other in layouts[1:]:
        if [_rest(field) for field in other] != [_rest(field) for field in first]:
            raise _unequal(first, other)
    return tuple(
        RowField(
            field.name, field.code, (max(each[n].shape[0] for each in layouts), *field.shape[1:])
        )
        if field.shape
        else field
        for n, field in enumerate(first)
    )


def _unequal(first: RowLayout, other: RowLayout) -> CacheError:
    return CacheError(
        f"rows of two shapes were asked for at once: ({describe(first)}) and "
        f"({describe(other)}); a batch is of one bucket"
    )


def _rest(field: RowField) -> tuple[str, str, int, tuple[int, ...]]:
    """Return what fields of unequal length have in common."""
    return field.name, field.code, len(field.shape), field.shape[1:]


def _tensors(
    layout: RowLayout, count: int, out: dict[str, torch.Tensor] | None, allocate: Allocator
) -> dict[str, torch.Tensor]:
    """Return a tensor [count, ...] for each field: parts of `out`, or new ones put into it."""
    reused = {} if out is None else out
    if extra := set(reused) - {field.name for field in layout}:
        raise CacheError(f"out holds {sorted(extra)}, and the rows are {describe(layout)}")
    batch = {}
    for field in layout:
        tensor = reused.get(field.name)
        if tensor is None:
            tensor = reused[field.name] = allocate((count, *field.shape), dtype=DTYPES[field.code])
        else:
            _check_fits(tensor, field, count)
        batch[field.name] = tensor if tensor.shape[0] == count else tensor[:count]
    return batch


def _check_fits(tensor: torch.Tensor, field: RowField, count: int) -> None:
    fits = (
        tensor.dtype == DTYPES[field.code]
        and tuple(tensor.shape[1:]) == field.shape
        and tensor.shape[0] >= count
        and tensor.is_contiguous()
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
    )
    if not fits:
        raise CacheError(
            f"out[{field.name!r}] is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
            f"{count} rows of {field} need a contiguous CPU tensor of that shape without "
            "gradient; use a dict of its own for each bucket"
        )
