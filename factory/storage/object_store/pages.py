"""Pages of a listing of an object store, as Arrow columns."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from factory.storage.event_loop import TransferProgress
from factory.storage.keys import TEMPORARY
from factory.storage.listing import LISTING_SCHEMA
from factory.storage.object_store.client import Client


class Pages:
    """What lies below a prefix, page by page; a page that failed may be asked for again.

    Attributes:
        last: Full key that those given so far end with; None before the first.
    """

    def __init__(self, start: str, hidden: int) -> None:
        """Begin.

        Args:
            start: Prefix with a slash at its end; "" for the whole bucket.
            hidden: Letters at the start of full keys that are not shown.
        """
        self._folder, self._hidden = start.rstrip("/"), hidden
        self._stream: Any = None
        self._tail: list[pa.Array] = []
        self.last: str | None = None

    async def next(self, client: Client, progress: TransferProgress) -> pa.RecordBatch | None:
        """Return keys, sizes and ETags of the next page; None after the last."""
        del progress
        stream, self._stream = self._stream, None
        if stream is None:
            stream = client.pages(self._folder, self.last)
        try:
            page = pa.record_batch(await anext(stream))
        except StopAsyncIteration:
            return None
        self._stream = stream
        paths = page["path"]
        if self._tail:  # a listing that began anew begins with what was given already
            page = page.filter(pc.invert(pc.is_in(paths, pa.concat_arrays(self._tail))))
        self._note(paths, page)
        return self._columns(page)

    def _note(self, paths: pa.Array, page: pa.RecordBatch) -> None:
        """Note where to begin anew: not at the mark of a folder, "a/", which is shown as "a"."""
        sized = page["path"].filter(pc.greater(page["size"], 0))
        if len(sized):
            self.last = sized[-1].as_py()
            self._tail = []
        self._tail.append(paths)

    def _columns(self, page: pa.RecordBatch) -> pa.RecordBatch:
        paths = page["path"]
        unlisted = pc.or_(pc.match_substring(paths, TEMPORARY), pc.equal(paths, self._folder))
        page = page.filter(pc.invert(unlisted))
        keys = pc.utf8_slice_codeunits(page["path"].cast(pa.large_string()), self._hidden)
        etags = pc.utf8_trim(pc.fill_null(page["e_tag"], ""), '"').cast(pa.large_string())
        columns = [keys, page["size"].cast(pa.int64()), etags]
        return pa.record_batch(columns, schema=LISTING_SCHEMA)


def folder_marks(page: pa.RecordBatch) -> tuple[list[int], list[int]]:
    """Return rows that mark folders, and rows that may.

    The client shows the mark of a folder, "a/", as an empty object "a". What lies below the folder
    follows it; of what nothing follows, an empty object without a suffix may be one.
    """
    sure, doubtful = [], []
    for row in pc.indices_nonzero(pc.equal(page["size"], 0)).to_pylist():
        key = page["key"][row].as_py()
        following = page["key"][row + 1].as_py() if row + 1 < len(page) else ""
        if following.startswith(key + "/"):
            sure.append(row)
        elif "." not in key.rpartition("/")[2]:
            doubtful.append(row)
    return sure, doubtful
