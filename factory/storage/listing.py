"""A listing of many objects as columns, gathered one object at a time."""

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema(
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
    """Gathers keys, sizes and etags; `keys`, `sizes` and `etags` may be appended to directly."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self.keys: list[str] = []
        self.sizes: list[int] = []
        self.etags: list[str] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, key: str, size: int, etag: str) -> None:
        """Add one object."""
        self.keys.append(key)
        self.sizes.append(size)
        self.etags.append(etag)
        self.pack()

    def pack(self) -> None:
        """Turn what was appended into columns, once it is enough."""
        if len(self.keys) >= _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        columns = [self.keys, self.sizes, self.etags]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        self._batches.append(pa.record_batch(arrays, schema=SCHEMA))
        self.keys, self.sizes, self.etags = [], [], []

    def table(self) -> pa.Table:
        """Return everything added, sorted by key."""
        self._flush()
        table = pa.Table.from_batches(self._batches, schema=SCHEMA).combine_chunks()
        return table.take(pc.sort_indices(table["key"]))
