"""Facts of one backend: a table of what was measured once about each sample, sorted by key."""

import difflib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import (
    Column,
    TextColumn,
    TextListColumn,
    column_reader,
    concat_texts,
    sort_order,
    starts_with_any,
    text_lists,
    whole_array,
)
from factory.catalog.left_out import LeftOut
from factory.catalog.scan.facts_diff import Changes, compare
from factory.errors import CacheError
from factory.media.decode_limits import BEYOND_LIMITS
from factory.media.format_decoders import NEEDS_EXTRA
from factory.storage.mapped_length import Extent

# Texts have 64-bit offsets: with 32 bits a column breaks at 2 GB, 80 million names.
_TEXT = pa.large_string()

SCHEMA = pa.schema(
    [
        pa.field("key", _TEXT, nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", _TEXT, nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        # Why the sample cannot be used, "reason: detail"; null where it can.
        pa.field("error", pa.string()),
        # Raw caption texts, as the caption source gave them; null where there are none.
        pa.field("text", pa.large_list(_TEXT)),
        pa.field("text_etag", _TEXT),
        # Why the caption cannot be used, "reason: detail".
        pa.field("text_error", pa.string()),
    ]
)
# Columns beyond, of backends that are cut around faces: the middle of the largest one as
# fractions of width and height, float32; -1 where there is none, null where none was looked for.
FOCUS = ("focus_x", "focus_y")
# What a row says where a source has no such column.
DEFAULTS: dict[str, Any] = {
    "size": 0, "etag": "", "width": 0, "height": 0, "format": "", "frames": 1,
}  # fmt: skip

# Rows of a chunk: enough that 100 million rows are 96 chunks, few enough that work on one
# chunk holds some tens of megabytes.
CHUNK_ROWS = 2**20

# Rows from which on cells are gathered by Arrow: below, its set-up costs more.
MANY_ROWS = 1024

# Between a key and the number of a further row of it.
TWIN = "\0"


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the catalog; fields as in `SCHEMA`."""

    key: str
    size: int
    etag: str
    width: int = 0
    height: int = 0
    format: str = ""
    frames: int = 1
    error: str | None = None
    text: tuple[str, ...] | None = None
    text_etag: str | None = None
    text_error: str | None = None


# Reasons of facts that are measured again at the next scan: the object may be back, the package
# that reads it installed, or the limit raised.
NOT_READABLE = "not readable"
TRANSIENT = (NOT_READABLE, NEEDS_EXTRA, *BEYOND_LIMITS)
# Numbers what reads headers and pixels. Files of which an earlier one said what follows are looked
# at once more, since the next one reads some of them: profiles of megabytes, the smallest WebPs.
READERS = 2
REFUSED = ("not a picture", "truncated header", "unsupported pixels", "damaged")
# Reason of a sample whose file is of another size than its facts: found when it is decoded.
SIZE_DIFFERS = "size differs"


@dataclass
class Facts:
    """The facts of one backend, sorted by key.

    Attributes:
        table: Rows of `SCHEMA`, then columns of the backend's own (see `extra`). It may be
            a memory map of any size.
        origin: What the facts were measured from (storage, prefix, metadata settings,
            caption source); facts of another origin are not reused.
        changes: What the refresh that made them found.
        extent: The file that a memory map is of.
        left_out: What the scan found beside the samples.
        readers: What its errors were found by; see `READERS`.
    """

    table: pa.Table
    origin: dict[str, Any] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    extent: Extent | None = field(default=None, repr=False, compare=False)
    left_out: LeftOut = field(default_factory=LeftOut)
    readers: int = READERS

    @classmethod
    def of_table(
        cls, table: pa.Table, origin: dict[str, Any], known: "Facts | None" = None
    ) -> "Facts":
        """Make facts of columns in any order, and compare them with what was known.

        Columns of `SCHEMA` that are absent get the defaults of a `Fact`; others are kept as
        they are, after those of `SCHEMA`. Of several rows of one key, the first one counts
        and the others become rows "duplicate row" of a key of their own.
        """
        table = _by_key(_complete(table))
        return cls(table, origin, compare(None if known is None else known.table, table))

    @classmethod
    def of(
        cls,
        rows: Iterable[Fact],
        origin: dict[str, Any],
        known: "Facts | None" = None,
        extra: Mapping[str, pa.Array] | None = None,
    ) -> "Facts":
        """Make facts of rows in any order, and of columns beyond; see `of_table`."""
        listed = list(rows)
        columns = {name: [getattr(fact, name) for fact in listed] for name in SCHEMA.names}
        table = pa.table(columns, schema=SCHEMA)
        for name, column in (extra or {}).items():
            table = table.append_column(name, column)
        return cls.of_table(table, origin, known)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)

    @property
    def extra(self) -> list[str]:
        """Names of the columns beyond `SCHEMA`."""
        return [name for name in self.table.column_names if name not in SCHEMA.names]

    def chunks(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, rows) of parts of at most `CHUNK_ROWS`, without copying."""
        first = 0
        for batch in self.table.to_batches(max_chunksize=CHUNK_ROWS):
            self._look()
            yield first, batch
            first += batch.num_rows

    def column(self, name: str) -> NDArray[Any]:
        """Return a whole numeric column; copies it where the table has several chunks."""
        self._look()
        return np.asarray(self.table[name].to_numpy())

    @property
    def outdated(self) -> bool:
        """Whether it holds errors that the readers of today may not find."""
        return self.readers < READERS and bool(starts_with_any(self.table["error"], REFUSED).any())

    def take(self, name: str, rows: NDArray[np.int64] | Sequence[int]) -> NDArray[Any]:
        """Return a numeric column at some rows, in their order; touches only these rows."""
        self._look()
        wanted = np.asarray(rows, dtype=np.int64)
        views = self._views(name)
        if len(views) == 1:
            return views[0][wanted]
        chunk = np.searchsorted(self._starts, wanted, side="right") - 1
        found = np.empty(len(wanted), dtype=views[0].dtype if views else np.int64)
        for number in np.unique(chunk).tolist():
            here = chunk == number
            found[here] = views[number][wanted[here] - self._starts[number]]
        return found

    def texts(self, name: str, rows: NDArray[np.int64] | Sequence[int]) -> list[Any]:
        """Return a column of texts (or of lists of them) at some rows, in their order."""
        self._look()
        wanted = np.asarray(rows, dtype=np.int64)
        if len(self._starts) == 1 and len(wanted):
            return self._read(name, 0, wanted)
        chunk = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[Any] = [None] * len(wanted)
        for number in np.unique(chunk).tolist():
            here = np.flatnonzero(chunk == number)
            cells = self._read(name, number, wanted[here] - self._starts[number])
            for place, cell in zip(here.tolist(), cells, strict=True):
                found[place] = cell
        return found

    def _look(self) -> None:
        """Make sure that the mapped file, where there is one, was not cut."""
        if self.extent is not None and self.extent.shrunk:
            raise CacheError(
                f"{self.extent.path} was cut while it was in use: it is shorter than the "
                f"{self.extent.size} bytes it had; start again: it is made anew"
            )

    def _read(self, name: str, number: int, rows: NDArray[np.int64]) -> list[Any]:
        """Return cells of a chunk at some of its rows."""
        reader = self._reader(name, number)
        if reader is not None and len(rows) < MANY_ROWS:
            return list(reader.at(rows))
        cells: list[Any] = self._cut[name][number].take(pa.array(rows)).to_pylist()
        return cells

    def _reader(self, name: str, number: int) -> TextColumn | TextListColumn | None:
        if name not in self._readers:
            self._readers[name] = [column_reader(chunk) for chunk in self._cut[name]]
        return self._readers[name][number]

    def key(self, row: int) -> str:
        """Return the storage key of a row, also of one that stands there more than once."""
        return self.keys([row])[0]

    def keys(self, rows: NDArray[np.int64] | Sequence[int]) -> list[str]:
        """Return the storage keys of some rows in their order, as `key` does."""
        keys: list[str] = self.texts("key", rows)
        # Looked for in all at once: twins are rare, and this is on the way of every batch.
        return [key.partition(TWIN)[0] for key in keys] if TWIN in "".join(keys) else keys

    def text(self, row: int) -> tuple[str, ...]:
        """Return the raw caption texts of a row."""
        return tuple(self.texts("text", [row])[0] or ())

    def rows(self) -> list[Fact]:
        """Return every row as a `Fact`."""
        return [
            Fact(**{**row, "text": None if row["text"] is None else tuple(row["text"])})
            for row in self.table.select(SCHEMA.names).to_pylist()
        ]

    def with_errors(self, errors: dict[int, str]) -> "Facts":
        """Return the same facts with some rows marked unusable."""
        rows = np.array(sorted(errors), dtype=np.int64)
        texts = pa.array([errors[row] for row in rows.tolist()], pa.string())
        return replace(self, table=_put(self.table, "error", rows, texts))

    def with_column(self, name: str, values: NDArray[Any]) -> "Facts":
        """Return the same facts with other values in a numeric column."""
        return self._with(name, pa.array(values, self.table.schema.field(name).type))

    def _with(self, name: str, column: pa.Array) -> "Facts":
        return replace(self, table=replace_column(self.table, name, column))

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """First row of each chunk; all columns are cut alike."""
        lengths = [batch.num_rows for batch in self.table.to_batches()]
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[: max(len(lengths), 1)]

    @cached_property
    def _cut(self) -> dict[str, list[pa.Array]]:
        batches = self.table.to_batches()
        names = self.table.column_names
        return {name: [batch.column(n) for batch in batches] for n, name in enumerate(names)}

    @cached_property
    def _readers(self) -> dict[str, list[TextColumn | TextListColumn | None]]:
        return {}

    @cached_property
    def _viewed(self) -> dict[str, list[NDArray[Any]]]:
        return {}

    def _views(self, name: str) -> list[NDArray[Any]]:
        """Return a column's chunks as arrays that share its memory."""
        views = self._viewed.get(name)
        if views is None:
            chunks = self._cut[name]
            views = [chunk.to_numpy(zero_copy_only=chunk.null_count == 0) for chunk in chunks]
            self._viewed[name] = views
        return views

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the columns, not the views into them, nor the file they lie in."""
        names = ("table", "origin", "changes", "left_out", "readers")
        return {name: getattr(self, name) for name in names}


def transient_errors(known: Facts | None) -> tuple[str, ...]:
    """Return the reasons of errors that may be gone: a scan looks at their files again.

    Args:
        known: The facts from before; None where nobody knows who found the errors.
    """
    old = known is None or known.readers < READERS
    return (*TRANSIENT, *REFUSED) if old else TRANSIENT


def replace_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """Return a table with one of its columns replaced, cut as the others are; copies none."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    parts, first = [], 0
    for chunk in table[name].chunks:
        parts.append(column.slice(first, len(chunk)))
        first += len(chunk)
    return table.set_column(index, field, pa.chunked_array(parts, field.type))


def _put(table: pa.Table, name: str, rows: NDArray[np.int64], cells: Column) -> pa.Table:
    """Return a table with other cells in some rows of a column; the rows ascend."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    parts, first = [], 0
    for chunk in table[name].chunks:
        here = slice(*np.searchsorted(rows, [first, first + len(chunk)]).tolist())
        if here.start < here.stop:
            mask = np.zeros(len(chunk), dtype=bool)
            mask[rows[here] - first] = True
            fresh = cells.slice(here.start, here.stop - here.start).cast(field.type)
            parts.append(pc.replace_with_mask(chunk, pa.array(mask), whole_array(fresh)))
        else:
            parts.append(chunk)
        first += len(chunk)
    return table.set_column(index, field, pa.chunked_array(parts, field.type))


def _complete(table: pa.Table) -> pa.Table:
    """Return the columns of `SCHEMA` in its order and types, then the others."""
    rows = table.num_rows
    columns = []
    for wanted in SCHEMA:
        if wanted.name not in table.column_names:
            columns.append(pa.repeat(pa.scalar(DEFAULTS.get(wanted.name), wanted.type), rows))
        elif wanted.name == "text":
            columns.append(text_lists(table["text"]))
        else:
            column = table[wanted.name].cast(wanted.type)
            if not wanted.nullable and column.null_count:
                column = pc.fill_null(column, pa.scalar(DEFAULTS[wanted.name], wanted.type))
            columns.append(column)
    extra = [name for name in table.column_names if name not in SCHEMA.names]
    fields = [*SCHEMA, *(table.schema.field(name) for name in extra)]
    others = (_without_nan(table[name]) for name in extra)
    return pa.table([*columns, *others], schema=pa.schema(fields))


def _without_nan(column: Column) -> Column:
    """Return a column with nulls for NaN: equal to nothing, it would make all scans differ."""
    if not (pa.types.is_float32(column.type) or pa.types.is_float64(column.type)):
        return column
    found = pc.is_nan(column)
    return pc.if_else(found, None, column) if pc.any(found).as_py() else column


def _by_key(table: pa.Table) -> pa.Table:
    """Sort by key, and give repeated keys a place of their own."""
    order = sort_order(table["key"])
    if order is not None:
        table = table.take(order)
    return evenly_chunked(_without_twins(table))


def _without_twins(table: pa.Table) -> pa.Table:
    """Mark every further row of a key as "duplicate row", under a key that tells it apart.

    Such a key is the first one's, a NUL, which no storage's key holds, and how many rows of it
    came before: other rows that come or go do not change it.
    """
    rows = table.num_rows
    keys = table["key"]
    same = np.zeros(rows, dtype=bool)
    if rows > 1:
        same[1:] = pc.equal(keys.slice(1), keys.slice(0, rows - 1)).to_numpy()
    twins = np.flatnonzero(same)
    if not twins.size:
        return table
    firsts = np.flatnonzero(~same)
    before = twins - firsts[np.searchsorted(firsts, twins) - 1]
    names = keys.take(pa.array(twins))
    errors = concat_texts("duplicate row: ", names, " stands there more than once")
    names = concat_texts(names, TWIN, pa.array(before).cast(_TEXT))
    marked = _put(_put(table, "error", twins, errors), "key", twins, names)
    order = sort_order(marked["key"])
    return marked if order is None else marked.take(order)


def evenly_chunked(table: pa.Table) -> pa.Table:
    """Return the table in chunks of `CHUNK_ROWS`, all columns cut alike."""
    rows = table.num_rows
    if rows <= CHUNK_ROWS:
        return table.combine_chunks()
    parts = [table.slice(at, CHUNK_ROWS).combine_chunks() for at in range(0, rows, CHUNK_ROWS)]
    return pa.concat_tables(parts)


# Rows compared letter by letter, some microseconds each; of a larger catalog, those around the
# place where the key would stand.
COMPARED = 20_000
SHOWN = 3


def row_of(facts: Facts, key: str) -> int | None:
    """Return the first row of a key, found by halving: facts are sorted by key."""
    if TWIN in key:
        return None
    place = bisect_left(range(len(facts)), key.encode(), key=lambda row: facts.key(row).encode())
    return place if place < len(facts) and facts.key(place) == key else None


def near(facts: Facts, key: str) -> list[str]:
    """Return at most `SHOWN` keys that end with a key or look like it, the likeliest first."""
    found: list[str] = []
    for _, rows in facts.chunks():
        keys = rows["key"]
        hits = keys.filter(pc.ends_with(keys, key)) if key else keys[:0]
        found += hits[:SHOWN].to_pylist()
        if len(found) >= SHOWN:
            return found[:SHOWN]
    place = bisect_left(range(len(facts)), key.encode(), key=lambda row: facts.key(row).encode())
    first = max(place - COMPARED // 2, 0)
    nearby = facts.texts("key", list(range(first, min(first + COMPARED, len(facts)))))
    alike = difflib.get_close_matches(key, [one for one in nearby if TWIN not in one], SHOWN)
    return list(dict.fromkeys([*found, *alike]))[:SHOWN]
