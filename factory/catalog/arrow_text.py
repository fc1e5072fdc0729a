"""What do a few rows of a column of texts say, without an object of Arrow's for each cell?

A batch asks for some sixteen rows out of millions. Arrow's own way to one text makes two objects
for it; reading the offsets and bytes that a column is made of takes a quarter of the time.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_OFFSET = np.dtype(np.int64)


class Texts:
    """A column of texts, its memory seen as offsets and bytes."""

    def __init__(self, column: pa.LargeStringArray) -> None:
        """Look at a column without nulls; nothing is copied."""
        _, ends, data = column.buffers()
        self._ends = _offsets(ends, column)
        self._data = memoryview(data or b"")

    def at(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts of some rows, int64 [n], in their order."""
        data = self._data
        starts, stops = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        return [str(data[a:b], "utf-8") for a, b in zip(starts, stops, strict=True)]


class TextLists:
    """A column of lists of texts."""

    def __init__(self, column: pa.LargeListArray) -> None:
        """Look at a column whose texts are not null; lists may be. Nothing is copied."""
        self._ends = _offsets(column.buffers()[1], column)
        self._null = np.asarray(column.is_null()) if column.null_count else None
        self._texts = Texts(column.values)

    def at(self, rows: NDArray[np.int64]) -> list[list[str] | None]:
        """Return the lists of some rows, int64 [n], in their order; None where there is none."""
        starts = self._ends[rows]
        counts = self._ends[rows + 1] - starts
        lists: list[list[str] | None]
        if (counts == 1).all():  # one caption each is the rule
            lists = [[text] for text in self._texts.at(starts)]
        else:
            # Every list's texts, one after the other: each starts where those before it end.
            before = np.cumsum(counts) - counts
            every = np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
            flat = self._texts.at(every)
            cuts = zip(before.tolist(), (before + counts).tolist(), strict=True)
            lists = [flat[a:b] for a, b in cuts]
        if self._null is not None:
            for place in np.flatnonzero(self._null[rows]).tolist():
                lists[place] = None
        return lists


def reader_of(column: pa.Array) -> Texts | TextLists | None:
    """Return how to read a column at a few rows; None where Arrow's own way is the only one."""
    if pa.types.is_large_string(column.type) and not column.null_count:
        return Texts(column)
    if pa.types.is_large_list(column.type) and pa.types.is_large_string(column.type.value_type):
        return None if column.values.null_count else TextLists(column)
    return None


def _offsets(buffer: Any, column: pa.Array) -> NDArray[np.int64]:
    """Return where each cell begins in what the column holds, and where the last one ends."""
    if buffer is None or not len(column):
        return np.zeros(1, dtype=_OFFSET)
    ends: NDArray[np.int64] = np.frombuffer(buffer, dtype=_OFFSET)
    return ends[column.offset : column.offset + len(column) + 1]
