"""Raw caption texts, read from sidecar files or table columns beside the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.bulk import Engine
from factory.catalog.captions import LIST_SEPARATOR, Captions
from factory.catalog.cells import caption_lists
from factory.catalog.changes import same_etag
from factory.catalog.columns import Column, find, flags, stems
from factory.catalog.facts import SCHEMA
from factory.catalog.metadata import Scan
from factory.errors import MediaError, ObjectNotFoundError, StorageError, TableError
from factory.storage.base import Storage, TabularStorage
from factory.telemetry import progress

TEXT_COLUMNS = ("text", "text_etag", "text_error")
_TEXT_LIST = SCHEMA.field("text").type
# Sidecars larger than this are no captions; reading them would only cost memory, bytes.
MAX_TEXT_BYTES = 2**20

# Reason of a text whose file is listed and gone; it is looked for again at the next scan.
VANISHED = "no caption"

TextColumns = tuple[Column, Column, Column]


def texts_of(
    scan: Scan, engine: Engine, listing: pa.Table, keys: Column, origin: dict[str, Any]
) -> TextColumns:
    """Return the columns `TEXT_COLUMNS` of some samples, in the order of their keys.

    Args:
        scan: The scan; its captions say where the texts are.
        engine: Runs the reads.
        listing: Every object of the storage, as listed for the samples.
        keys: Keys of the samples.
        origin: What the facts of this scan are measured from.

    Raises:
        TableError: A caption column is not there.
        StorageError: A text cannot be read for reasons that are not its own.
    """
    captions = scan.captions
    if isinstance(scan.storage, TabularStorage) and captions.columns:
        try:
            return _of_columns(scan.storage, captions, keys)
        except TableError as error:
            error.add_note(
                f"while reading the captions of backend {scan.name!r}; name their columns in "
                f"data.backends.{scan.name}.caption.columns"
            )
            raise
    if captions.sidecar is None:
        return _nothing(len(keys))
    known = scan.known
    before = known.table if known is not None and known.origin == origin else None
    return _of_sidecars(scan, engine, listing, keys, before)


def _nothing(rows: int) -> TextColumns:
    return (
        pa.nulls(rows, _TEXT_LIST),
        pa.nulls(rows, pa.large_string()),
        pa.nulls(rows, pa.string()),
    )


def _of_columns(storage: TabularStorage, captions: Captions, keys: Column) -> TextColumns:
    table = storage.rows(captions.columns)
    found = column_texts([table[name] for name in captions.columns])
    places = find(keys, table["key"].cast(pa.large_string()))
    _, etags, errors = _nothing(len(keys))
    return found.take(pa.array(places, mask=places < 0)), etags, errors


def column_texts(columns: Sequence[Column]) -> Column:
    """Return the texts of each row of a table, one entry a column; "" for an empty cell.

    The texts of a cell that holds a list are kept apart by `LIST_SEPARATOR`.
    """
    if all(_is_text(column.type) for column in columns):
        return caption_lists([column.cast(pa.large_string()) for column in columns])
    cells = zip(*(column.to_pylist() for column in columns), strict=True)
    return pa.array([flatten(list(row)) for row in cells], _TEXT_LIST)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def flatten(cells: list[object]) -> tuple[str, ...]:
    """Return the texts of one row's cells, one entry a column.

    An empty cell gives ""; the texts of a list are kept apart by `LIST_SEPARATOR`.
    """
    texts: list[str] = []
    for cell in cells:
        if isinstance(cell, list):
            texts.append(LIST_SEPARATOR.join(str(part) for part in cell if part is not None))
        else:
            texts.append("" if cell is None else str(cell))
    return tuple(texts)


def _of_sidecars(
    scan: Scan, engine: Engine, listing: pa.Table, keys: Column, known: pa.Table | None
) -> TextColumns:
    """Return the text beside each sample, reading only files that are new or changed."""
    suffix = scan.captions.sidecar or ""
    files = listing.filter(pc.ends_with(listing["key"], suffix))
    places = find(stems(keys), stems(files["key"]))
    if not len(files):
        return _nothing(len(keys))
    etags = files["etag"].take(pa.array(places, mask=places < 0))
    same = np.zeros(len(keys), dtype=bool)
    before = np.full(len(keys), -1, dtype=np.int64)
    if known is not None:
        before = find(keys, known["key"])
        now = pa.table({"etag": pc.fill_null(etags, "")})
        old = pa.table({"etag": pc.fill_null(known["text_etag"], "\0")})
        # A file that vanished had an empty etag, which one that is not listed has, too.
        same = same_etag(now, old, before) & (places >= 0)
    fresh = np.flatnonzero((places >= 0) & ~same)
    read = _read(scan, engine, files.take(pa.array(np.unique(places[fresh]))))
    return _merged(_Texts(places, same, before, fresh), etags, known, read)


@dataclass(frozen=True)
class _Texts:
    """Where each sample's text comes from: its file, the earlier facts, or a new read."""

    files: NDArray[np.int64]
    same: NDArray[np.bool_]
    before: NDArray[np.int64]
    fresh: NDArray[np.int64]


def _merged(found: _Texts, etags: Column, known: pa.Table | None, read: pa.Table) -> TextColumns:
    """Join the texts read now with those kept, in the order of the samples."""
    rows = len(found.files)
    # Places in the rows kept, followed by the rows read now.
    places = np.full(rows, -1, dtype=np.int64)
    kept = read.slice(0, 0) if known is None else known.select(read.column_names)
    places[found.same] = found.before[found.same]
    numbers = np.unique(found.files[found.fresh])
    places[found.fresh] = len(kept) + np.searchsorted(numbers, found.files[found.fresh])
    source = pa.concat_tables([kept, read])
    chosen = source.take(pa.array(places, mask=places < 0))
    # An empty etag never equals a listed one, so a file that vanished is looked for again.
    error = chosen["text_error"]
    if error.null_count < rows:
        vanished = flags(pc.starts_with(error, VANISHED))
        etags = pc.if_else(pa.array(vanished), "", etags)
    return chosen["text"], etags, error


def _read(scan: Scan, engine: Engine, files: pa.Table) -> pa.Table:
    """Return text and error of some text files, in their order."""
    parts = [pa.table([pa.nulls(0, _TEXT_LIST), pa.nulls(0, pa.string())],
                      names=["text", "text_error"])]  # fmt: skip
    size = scan.storage.spans_at_once
    pieces = (files.slice(start, size) for start in range(0, len(files), size))
    with progress(f"captions {scan.name}", len(files), "files") as advance:
        for piece, outcome in engine.map(_ReadTexts(scan.storage, scan.captions), pieces):
            if isinstance(outcome, Exception):
                raise outcome
            parts.append(outcome)
            advance(len(piece))
    return pa.concat_tables(parts)


@dataclass(frozen=True)
class _ReadTexts:
    """Reads some text files; picklable, so that any engine can run it."""

    storage: Storage
    captions: Captions

    def __call__(self, files: pa.Table) -> pa.Table:
        keys = files["key"].to_pylist()
        spans = [(key, 0, MAX_TEXT_BYTES + 1) for key in keys]
        texts: list[Sequence[str] | None] = []
        errors: list[str | None] = []
        for key, outcome in zip(keys, self.storage.read_many(spans), strict=True):
            text, error = self._text(key, outcome)
            texts.append(text)
            errors.append(error)
        columns = [pa.array(texts, _TEXT_LIST), pa.array(errors, pa.string())]
        return pa.table(columns, names=["text", "text_error"])

    def _text(
        self, key: str, data: bytes | StorageError
    ) -> tuple[Sequence[str] | None, str | None]:
        if isinstance(data, ObjectNotFoundError):
            return None, f"{VANISHED}: {key} vanished"
        if isinstance(data, StorageError):
            data.add_note(f"while reading the caption file {key!r}")
            raise data
        if len(data) > MAX_TEXT_BYTES:
            return None, f"caption too long: {key} is above {MAX_TEXT_BYTES} bytes"
        try:
            return self.captions.parse(data), None
        except MediaError as error:
            return None, str(error)
