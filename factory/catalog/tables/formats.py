"""File formats of tables: Parquet, CSV, JSON lines, JSON documents, and gzip around them."""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from factory.catalog.tables.casts import plain
from factory.storage.nested_columns import column_paths, descend

Columns = dict[str, pa.ChunkedArray]

PARQUET = "a Parquet file"
LINES = "JSON lines"
DOCUMENT = "a JSON table"
CSV = "a CSV table"

_SUFFIXES = {
    ".parquet": PARQUET, ".parq": PARQUET, ".pq": PARQUET,
    ".jsonl": LINES, ".ndjson": LINES, ".json": DOCUMENT, ".csv": CSV, ".tsv": CSV,
}  # fmt: skip
SUFFIXES = ", ".join(_SUFFIXES)
# Unzipped at a time, so that a file which is too large is left after as little.
_PIECE = 2**20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class FileColumns:
    """What one file of a table gives.

    Attributes:
        columns: The wanted columns that it has, each of `rows` rows, by the name asked for.
        names: Names of all its columns.
        rows: Number of its rows.
    """

    columns: Columns
    names: list[str]
    rows: int


def format_of(key: str) -> str | None:
    """Return what a file is written as, by its suffix; None if that says nothing."""
    path = PurePosixPath(key.lower())
    if path.suffix == ".gz":
        inner = _SUFFIXES.get(PurePosixPath(path.stem).suffix)
        return None if inner == PARQUET else inner
    return _SUFFIXES.get(path.suffix)


def read_parquet(source: Path | bytes, wanted: Sequence[str]) -> FileColumns:
    """Read columns of a Parquet file; "a.b" is the field b of the struct column a.

    Raises:
        ArrowException, OSError: It is none, or damaged.
        MalformedError: Two of its columns have one name.
    """
    import pyarrow.parquet as pq

    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened) as file:
        names = list(file.schema_arrow.names)
        roots = {name: _root(name, names) for name in wanted}
        paths = {name: (root, *path) for name, (root, path) in roots.items() if root is not None}
        _once(names, [root for root, *_ in paths.values()])
        shown = [name for name, _ in column_paths(file.schema_arrow)]
        read = {_read_as(name, path, file.schema_arrow) for name, path in paths.items()}
        table = file.read(columns=sorted(read))
        table.validate(full=True)  # texts that are none would be met row by row, far from here
        rows = file.metadata.num_rows
    found = {
        name: column
        for name, (root, *fields) in paths.items()
        if root in table.column_names and (column := descend(table[root], fields)) is not None
    }
    return FileColumns(_plain(found), shown, rows)


def _read_as(name: str, path: Sequence[str], schema: pa.Schema) -> str:
    """Return what to read for a column: one field of a struct without those beside it."""
    kind = schema.field(path[0]).type
    for part in path[1:]:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return path[0]  # a list, say, whose fields Parquet calls otherwise
        kind = kind.field(part).type
    return name


def unzipped(data: bytes, most: float) -> bytes | None:
    """Return what a gzip file holds; None if that is more than some bytes.

    Raises:
        OSError, EOFError, zlib.error: It is none, or damaged.
    """
    pieces, size = [], 0
    with gzip.open(io.BytesIO(data)) as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            if size > most:
                return None
            pieces.append(piece)
    return b"".join(pieces)


def read_text(key: str, data: bytes, wanted: Sequence[str], texts: Sequence[str]) -> FileColumns:
    """Read columns of a table written as text.

    Args:
        key: Name of the file; its suffixes say the format.
        data: The file, unzipped.
        wanted: Columns to read.
        texts: Those that are texts, also where they look like numbers.

    Raises:
        ArrowException, OSError, EOFError, ValueError: It is damaged, or written otherwise.
    """
    if data.startswith(_UTF16):
        raise MalformedError("it is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    data = data.removeprefix(_BOM)
    kind = format_of(key)
    if kind == CSV:
        return _read_csv(data, wanted, texts, "\t" if ".tsv" in key.lower()[-7:] else ",")
    read = read_lines if kind == LINES else read_document
    columns, names, rows = read(data, wanted)
    return FileColumns(_plain(columns), names, rows)


def _read_csv(
    data: bytes, wanted: Sequence[str], texts: Sequence[str], delimiter: str
) -> FileColumns:
    from pyarrow import csv

    # Captions may hold line ends inside their quotes.
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(pa.BufferReader(data), parse_options=parsing) as opened:
        names = list(opened.schema.names)
    found = [name for name in dict.fromkeys(wanted) if name in names]
    _once(names, found)
    converting = csv.ConvertOptions(
        include_columns=found,
        column_types=dict.fromkeys((name for name in texts if name in found), pa.large_string()),
    )
    if not found:
        return FileColumns({}, names, 0)
    table = csv.read_csv(pa.BufferReader(data), parse_options=parsing, convert_options=converting)
    return FileColumns(_plain({name: table[name] for name in found}), names, table.num_rows)


def _once(names: Sequence[str], used: Sequence[str]) -> None:
    for name in used:
        if names.count(name) > 1:
            raise MalformedError(f"it has {names.count(name)} columns {name!r}; leave one")


def _plain(columns: Columns) -> Columns:
    return {
        name: column if column.type == plain(column.type) else column.cast(plain(column.type))
        for name, column in columns.items()
    }


# Lines that types are guessed from; the guess is checked against all the others.
_LOOKED_AT = 1000
# Fields nested more deeply than this are not listed in messages.
_DEPTH = 8
# A line must fit a block; a caption or a list of boxes of 16 MiB does not happen.
_BLOCK = 2**24


class MalformedError(ValueError):
    """A table that is written otherwise than it should be; says where, and how."""


def read_lines(data: bytes, wanted: Sequence[str]) -> tuple[Columns, list[str], int]:
    """Read one object a line; blank lines count as no rows.

    Args:
        data: The file, UTF-8.
        wanted: Columns to read; "a.b" is b of the object a.

    Returns:
        The wanted columns that are there, the names of all (of the first thousand lines), and
        the number of rows.

    Raises:
        MalformedError: A line is not an object; says which, from 1.
    """
    first = [row for _, row in islice(_rows(data), _LOOKED_AT)]
    schema = _guess(first, wanted)
    if schema is not None:
        try:
            return _fast(data, schema, wanted, first)
        except (pa.ArrowException, UnicodeDecodeError):
            pass  # read again below, which knows line numbers and takes cells of mixed types
    rows = [row for _, row in _rows(data)]
    return _columns(rows, wanted), _dotted(first), len(rows)


def read_document(data: bytes, wanted: Sequence[str]) -> tuple[Columns, list[str], int]:
    """Read a list of objects, or an object of columns that are lists; also lines of objects.

    Returns:
        As `read_lines`.

    Raises:
        MalformedError: It is none of these; says what it is.
    """
    try:
        document = json.loads(data)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and data.lstrip().startswith(b"{"):
            return read_lines(data, wanted)
        raise
    except RecursionError:
        raise MalformedError("its values are nested too deeply") from None
    if isinstance(document, list):
        for number, row in enumerate(document):
            if not isinstance(row, dict):
                raise MalformedError(f"entry {number} is {_what(row)}, not an object")
        return _columns(document, wanted), _dotted(document[:_LOOKED_AT]), len(document)
    if not isinstance(document, dict):
        raise MalformedError(f"it holds {_what(document)}, not a list of objects")
    return _of_columns(document, wanted)


def _of_columns(document: dict[str, Any], wanted: Sequence[str]) -> tuple[Columns, list[str], int]:
    for name, cells in document.items():
        if not isinstance(cells, list):
            raise MalformedError(
                f"column {name!r} is {_what(cells)}, not a list; pandas writes a list of objects "
                "with to_json(orient='records')"
            )
    lengths = {name: len(cells) for name, cells in document.items()}
    if len(set(lengths.values())) > 1:
        raise MalformedError(f"its columns are not of one length: {lengths}")
    rows = max(lengths.values(), default=0)
    columns = {}
    for name in wanted:
        root, path = _root(name, document)
        if root is not None and _reached(document[root], path):
            columns[name] = _column(name, (_follow(cell, path) for cell in document[root]))
    shown = {name: cell for name, cells in document.items() for cell in cells[:1]}
    return columns, list(dict.fromkeys([*document, *_dotted([shown])])), rows


def _rows(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, object) for each line that is not blank."""
    start = number = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        line = data[start:end].strip()
        start = end + 1
        if line:
            yield number, _object(line, number)


def _object(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise MalformedError(f"line {number} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"line {number} is broken: {error}") from None
    if not isinstance(row, dict):
        raise MalformedError(f"line {number} is {_what(row)}, not an object")
    return row


def _fast(
    data: bytes, schema: pa.Schema, wanted: Sequence[str], first: Sequence[dict[str, Any]]
) -> tuple[Columns, list[str], int]:
    """Read with Arrow's parser, in threads; it fails where a cell is not of the type guessed."""
    from pyarrow import json as arrow

    table = arrow.read_json(
        pa.BufferReader(data),
        read_options=arrow.ReadOptions(block_size=_BLOCK),
        parse_options=arrow.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="ignore"
        ),
    )
    known = {name for row in first for name in row}
    columns = {}
    for name in wanted:
        root, path = _root(name, schema.names)
        if root is None:
            continue
        column = descend(table[root], path)
        if column is None:
            raise pa.ArrowInvalid(f"{name} is in none of the rows looked at")
        if root in known or column.null_count < len(column):
            column.validate(full=True)
            columns[name] = column
    return columns, _dotted(first), table.num_rows


def _guess(rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> pa.Schema | None:
    """Return the types that the wanted columns have in some rows; None if they are mixed."""
    fields: dict[str, pa.DataType] = {}
    known = dict.fromkeys(name for row in rows for name in row)
    for name in wanted:
        root = _root(name, known)[0]
        if root is None and len(rows) == _LOOKED_AT:
            return None  # a later row may have it, in whatever form
        root = root or name
        try:
            kind = pa.array([row.get(root) for row in rows]).type
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return None
        fields[root] = pa.string() if pa.types.is_null(kind) else kind
    return pa.schema(list(fields.items()))


def _columns(rows: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Columns:
    known = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in wanted:
        root, path = _root(name, known)
        if root is not None and _reached((row.get(root) for row in rows), path):
            columns[name] = _column(name, (_follow(row.get(root), path) for row in rows))
    return columns


def _column(name: str, cells: Iterable[Any]) -> pa.ChunkedArray:
    """Return cells as a column; where they are of several types, as one that holds them all."""
    values = list(cells)
    for form in (_as_it_is, _as_list, _as_text, _as_texts):
        try:
            return pa.chunked_array([pa.array([form(value) for value in values])])
        except UnicodeEncodeError as error:
            raise MalformedError(f"column {name!r} holds half a character: {error}") from None
        except (pa.ArrowException, OverflowError):
            continue
    inside = [each for each in values if isinstance(each, dict)]
    fields = ", ".join(f"{name}.{field}" for each in inside[:1] for field in each)
    advice = f"; name one of the fields of its objects: {fields}" if fields else ""
    raise MalformedError(
        f"column {name!r} holds values of types that have nothing in common{advice}"
    )


def _as_it_is(value: Any) -> Any:
    return value


def _as_list(value: Any) -> Any:
    """One caption in some rows, a list of captions in others: lists, all of them."""
    return [value] if isinstance(value, str) else value


def _as_text(value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise pa.ArrowInvalid("no text")
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _as_texts(value: Any) -> list[str | None] | None:
    """Texts and numbers in some rows, lists of them in others: lists of texts, all of them."""
    if value is None:
        return None
    return [_as_text(each) for each in (value if isinstance(value, list) else [value])]


def _root(name: str, names: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return the column that a dotted name starts with, and the fields that follow."""
    known = set(names)
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (root := ".".join(parts[:end])) in known:
            return root, parts[end:]
    return None, []


def _follow(value: Any, path: Sequence[str]) -> Any:
    for place, name in enumerate(path):
        if isinstance(value, list):
            return [_follow(each, path[place:]) for each in value]
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _reached(values: Iterable[Any], path: Sequence[str]) -> bool:
    """Tell whether any of some values has the fields of a path, also in a list."""
    if not path:
        return True
    return any(
        _reached(value, path) if isinstance(value, list) else _reached([value[path[0]]], path[1:])
        for value in values
        if isinstance(value, list) or (isinstance(value, dict) and path[0] in value)
    )


def _dotted(rows: Sequence[Any], above: str = "", depth: int = 0) -> list[str]:
    """Return the names of all fields of some objects, dotted where they are nested."""
    within: dict[str, list[Any]] = {}
    if depth == _DEPTH:
        return []
    for row in rows:
        for name, value in row.items():
            inner = value if isinstance(value, list) else [value]
            within.setdefault(name, []).extend(v for v in inner if isinstance(v, dict))
    return [
        full
        for name, inner in within.items()
        for full in (above + name, *_dotted(inner, f"{above}{name}.", depth + 1))
    ]


def _what(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")
