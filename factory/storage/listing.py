"""A listing of many objects as columns, gathered one object at a time.

Apart from the contract, because it brings pyarrow, which opening a storage does without.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

LISTING_SCHEMA = pa.schema(
    [
        # large_string: a column of 32-bit offsets overflows at 2 GB of names.
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.large_string(), nullable=False),
    ]
)
# Rows kept as Python objects before they become columns: 20 MB of them.
_BATCH_ROWS = 2**16


class Listing:
    """Gathers keys, sizes and etags into columns, batch by batch."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self._batches: list[pa.RecordBatch] = []

    def extend(self, rows: Iterable[tuple[str, int, str]]) -> Self:
        """Add objects: key, size and etag of each."""
        stream = iter(rows)
        while part := list(islice(stream, _BATCH_ROWS)):
            columns = zip(zip(*part, strict=True), LISTING_SCHEMA, strict=True)
            arrays = [pa.array(column, field.type) for column, field in columns]
            self._batches.append(pa.record_batch(arrays, schema=LISTING_SCHEMA))
        return self

    def table(self) -> pa.Table:
        """Return everything added, sorted by key."""
        return sorted_by_key(self._batches)


def sorted_by_key(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Return batches of a listing as one table, sorted by key."""
    table = pa.Table.from_batches(batches, schema=LISTING_SCHEMA).combine_chunks()
    return table.take(pc.sort_indices(table["key"]))
