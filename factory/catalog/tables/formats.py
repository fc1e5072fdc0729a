"""What does one file of a table hold, whatever it is written as?"""

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from factory.catalog.tables.casts import plain
from factory.catalog.tables.json_rows import Columns, MalformedError, read_document, read_lines
from factory.storage.nested_columns import column_paths, descend

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
class Part:
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


def read_parquet(source: Path | bytes, wanted: Sequence[str]) -> Part:
    """Read columns of a Parquet file; "a.b" is the field b of the struct column a.

    Raises:
        ArrowException, OSError: It is none, or damaged.
        MalformedError: Two of its columns have one name.
    """
    import pyarrow.parquet as pq

    opened = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
    with pq.ParquetFile(opened) as file:
        names = list(file.schema_arrow.names)
        paths = {name: path for name in wanted if (path := _path(name, names))}
        _once(names, [path[0] for path in paths.values()])
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
    return Part(_plain(found), shown, rows)


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


def read_text(key: str, data: bytes, wanted: Sequence[str], texts: Sequence[str]) -> Part:
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
    return Part(_plain(columns), names, rows)


def _read_csv(data: bytes, wanted: Sequence[str], texts: Sequence[str], delimiter: str) -> Part:
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
        return Part({}, names, 0)
    table = csv.read_csv(pa.BufferReader(data), parse_options=parsing, convert_options=converting)
    return Part(_plain({name: table[name] for name in found}), names, table.num_rows)


def _path(name: str, names: Sequence[str]) -> list[str]:
    """Return the column that a dotted name starts with, then fields; nothing if none does."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (root := ".".join(parts[:end])) in names:
            return [root, *parts[end:]]
    return []


def _once(names: Sequence[str], used: Sequence[str]) -> None:
    for name in used:
        if names.count(name) > 1:
            raise MalformedError(f"it has {names.count(name)} columns {name!r}; leave one")


def _plain(columns: Columns) -> Columns:
    return {
        name: column if column.type == plain(column.type) else column.cast(plain(column.type))
        for name, column in columns.items()
    }
