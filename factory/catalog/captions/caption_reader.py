"""Raw caption texts, read from sidecar files or table columns beside the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, as_mask, find, folded, stems
from factory.catalog.captions.sources import Captions
from factory.catalog.facts import SCHEMA
from factory.catalog.scan.facts_diff import same_etag
from factory.catalog.scan.scan import Scan
from factory.catalog.tables.casts import caption_lists, plain, texts, wrong_type
from factory.engine.engine import Engine
from factory.errors import MediaError, ObjectNotFoundError, StorageError, TableError
from factory.metrics.stages import progress
from factory.storage.base import Storage, TabularStorage

TEXT_COLUMNS = ("text", "text_etag", "text_error")
_TEXT_LIST = SCHEMA.field("text").type
# Sidecars larger than this are no captions; reading them would only cost memory, bytes.
MAX_TEXT_BYTES = 2**20

# Reason of a text in an encoding that nobody can tell.
NOT_UTF8 = "caption not UTF-8"
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
            return _of_columns(scan, scan.storage, keys)
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


def _of_columns(scan: Scan, storage: TabularStorage, keys: Column) -> TextColumns:
    names = scan.captions.columns
    table = storage.rows(names)
    columns = [
        CaptionColumn(name, table[name].type, storage.class_names(name), storage.identity)
        for name in names
    ]
    option = f"data.backends.{scan.name}.caption.columns"
    found, errors = column_texts(columns, [table[name] for name in names], option)
    places = find(keys, table["key"].cast(pa.large_string()))
    chosen = pa.array(places, mask=places < 0)
    return found.take(chosen), pa.nulls(len(keys), pa.large_string()), errors.take(chosen)


@dataclass(frozen=True)
class CaptionColumn:
    """A column of a table that captions are taken from.

    Attributes:
        name: Its name.
        kind: Its type.
        classes: Names that its whole numbers stand for, if they do.
        table: The table, for messages.
    """

    name: str
    kind: pa.DataType
    classes: Sequence[str] | None
    table: str

    def check(self, option: str) -> None:
        """Refuse a column that holds no texts.

        Args:
            option: The setting that names the column.

        Raises:
            TableError: It holds structs, say; a field to take is named.
        """
        self.texts(pa.array([], self.kind), option)

    def texts(self, column: Column, option: str) -> tuple[Column, list[str | None]]:
        """Return cells as texts, and why some cannot be: a cell that is not UTF-8 is alone.

        Raises:
            TableError: The column holds no texts.
        """
        try:
            return texts(column.cast(plain(column.type)), self.classes), [None] * len(column)
        except (TypeError, pa.ArrowNotImplementedError) as error:
            wanted = str(error) if isinstance(error, TypeError) else "texts, or lists of texts"
            raise wrong_type(self.name, self.kind, self.table, wanted, option) from error
        except pa.ArrowInvalid:
            if len(column) == 1:
                why = f"{NOT_UTF8}: a cell of column {self.name!r}"
                return pa.nulls(1, pa.large_string()), [why]
            half = len(column) // 2
            parts = [self.texts(c, option) for c in (column.slice(0, half), column.slice(half))]
            chunks = [c for found, _ in parts for c in _chunks(found)]
            return pa.chunked_array(chunks), [*parts[0][1], *parts[1][1]]


def _chunks(column: Column) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def column_texts(
    columns: Sequence[CaptionColumn], cells: Sequence[Column], option: str
) -> tuple[pa.Array, pa.Array]:
    """Return the texts of each row of a table, one entry a column, and why they cannot be used.

    An empty cell gives ""; the texts of a cell that holds a list are kept apart by
    `LIST_SEPARATOR`.

    Args:
        columns: The columns.
        cells: What each holds, n rows.
        option: The setting that names the columns, for messages.

    Raises:
        TableError: A column holds something else than texts, numbers, or lists of these.
    """
    found = [one.texts(column, option) for one, column in zip(columns, cells, strict=True)]
    reasons = [next(filter(None, row), None) for row in zip(*(e for _, e in found), strict=True)]
    return caption_lists([text for text, _ in found]), pa.array(reasons, pa.string())


def _of_sidecars(
    scan: Scan, engine: Engine, listing: pa.Table, keys: Column, known: pa.Table | None
) -> TextColumns:
    """Return the text beside each sample, reading only files that are new or changed."""
    suffix = scan.captions.sidecar or ""
    files = listing.filter(pc.ends_with(listing["key"], suffix, ignore_case=True))
    if not len(files):
        return _nothing(len(keys))
    places = paired(keys, files["key"], suffix)
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


def paired(keys: Column, files: Column, suffix: str) -> NDArray[np.int64]:
    """Return the text file of each sample, int64 [n]; -1 where there is none.

    A file of exactly the sample's stem counts first. Of the samples that have none, those count
    that differ in case or in the form of Unicode alone ("IMG_0.JPG" and "img_0.TXT", a name
    that macOS took apart), or whose file has the whole name before its suffix ("a.jpg.txt").
    Files that belong to a sample exactly belong to no other.
    """
    names = pc.utf8_slice_codeunits(files, 0, -len(suffix))
    exact = pc.if_else(pc.ends_with(files, suffix), names, None)
    own = stems(keys)
    places = find(own, exact)
    left = np.flatnonzero(places < 0)
    free = np.ones(len(files), dtype=bool)
    free[places[places >= 0]] = False
    rest = np.flatnonzero(free)
    if not left.size or not rest.size:
        return places
    among = folded(names.take(pa.array(rest)))
    for wanted in (own, keys):
        found = find(folded(wanted.take(pa.array(left))), among)
        places[left[found >= 0]] = rest[found[found >= 0]]
        left = left[found < 0]
    return places


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
        vanished = as_mask(pc.starts_with(error, VANISHED))
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
