"""Facts from a Parquet table: names, sizes and captions without opening a picture."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factory.bulk import Engine
from factory.catalog.facts import Fact, Facts, is_transient
from factory.catalog.metadata import Scan
from factory.catalog.texts import flatten
from factory.errors import ObjectNotFoundError, TableError, UnsafeKeyError
from factory.records import ObjectInfo
from factory.storage.base import safe_key

# Of a column of 32-bit integers, which the facts keep sizes in.
_LARGEST_EDGE = 2**31 - 1


@dataclass(frozen=True)
class ParquetTable:
    """Read facts from a table that lies in the backend's own storage.

    Attributes:
        path: Key of the table in the storage.
        file_column: Column with each picture's key below the backend's prefix.
        width_column: Column with widths after orientation, px.
        height_column: Column with heights after orientation, px.
        frames_column: Column with numbers of frames, for videos; None for still pictures.
    """

    path: str
    file_column: str = "file_name"
    width_column: str = "width"
    height_column: str = "height"
    frames_column: str | None = None

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return one fact for each row of the table.

        The storage is listed once for sizes and etags; a row whose file is absent keeps its
        place with the reason.

        Raises:
            ObjectNotFoundError: There is no such table.
            TableError: It is no Parquet file, or lacks a column.
        """
        del engine  # one table and one listing are all the work there is
        columns = [self.file_column, self.width_column, self.height_column]
        frames = [] if self.frames_column is None else [self.frames_column]
        rows = self._read(scan, [*columns, *frames, *scan.captions.columns])
        listed = {info.key: info for info in scan.storage.objects(scan.prefix)}
        known = {} if scan.known is None else {fact.key: fact for fact in scan.known.rows()}
        facts = [
            _still_unreadable(fact, known.get(fact.key))
            for fact in self._facts(scan.prefix, rows, listed)
        ]
        return Facts.of(facts, scan.origin(self), known)

    def _read(self, scan: Scan, columns: Sequence[str]) -> Iterator[list[Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        where = f"{self.path} in {scan.storage.identity}"
        try:
            data = scan.storage.read(self.path)
        except ObjectNotFoundError as error:
            raise ObjectNotFoundError(
                f"no table {where}; set data.backends.{scan.name}.metadata.path to its key"
            ) from error
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            names = file.schema_arrow.names
            absent = [name for name in columns if name not in names]
            if absent:
                raise TableError(_absent(where, absent, names, scan.name))
            table = file.read(columns=list(dict.fromkeys(columns)))
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                f"{where} is not a Parquet file, or a damaged one: {error}; write it again, or "
                f"set data.backends.{scan.name}.metadata.path to another"
            ) from error
        return map(list, zip(*(table[name].to_pylist() for name in columns), strict=True))

    def _facts(
        self, prefix: str, rows: Iterator[list[Any]], listed: dict[str, ObjectInfo]
    ) -> Iterator[Fact]:
        seen: set[str] = set()
        for number, (name, width, height, *cells) in enumerate(rows):
            if not isinstance(name, str) or not name:
                yield Fact(f"row {number}", 0, "", error=f"no file name: row {number}")
                continue
            try:
                key = safe_key(f"{prefix}/{safe_key(name)}".removeprefix("/"))
            except UnsafeKeyError as error:
                yield Fact(name, 0, "", error=f"unsafe name: {error}")
                continue
            frames = 1 if self.frames_column is None else _edge(cells.pop(0)) or 0
            fact = _fact(key, listed.get(key), width, height, cells, duplicate=key in seen)
            yield replace(fact, frames=frames)
            seen.add(key)


def _fact(
    key: str,
    info: ObjectInfo | None,
    width: object,
    height: object,
    cells: list[object],
    *,
    duplicate: bool,
) -> Fact:
    if info is None:
        return Fact(key, 0, "", error=f"file missing: {key} is in the table only")
    if duplicate:
        return Fact(key, info.size, info.etag, error=f"duplicate row: {key}")
    wide, tall = _edge(width), _edge(height)
    if wide is None or tall is None:
        return Fact(
            key, info.size, info.etag, error=f"no size in table: {key} has {width!r} x {height!r}"
        )
    text = flatten(cells) if cells else None
    return Fact(key, info.size, info.etag, wide, tall, text=text)


def _edge(value: object) -> int | None:
    """Return an edge in px, or a number of frames; None for what is none.

    Whole floats count: a column of integers with an empty cell comes out of pandas as floats.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_EDGE:
        return value
    return None


def _still_unreadable(fact: Fact, known: Fact | None) -> Fact:
    """Keep the error of a picture that proved unreadable when it was encoded.

    Such a fact has a size and an error; what is wrong in the table itself has no size.
    """
    if known is None or fact.error is not None or known.etag != fact.etag:
        return fact
    proved = known.error is not None and known.width and not is_transient(known)
    return replace(fact, error=known.error) if proved else fact


def _absent(where: str, absent: list[str], names: list[str], backend: str) -> str:
    guesses = {name: difflib.get_close_matches(name, names, n=1) for name in absent}
    hints = [
        f"{name!r} (did you mean {guess[0]!r}?)" if guess else repr(name)
        for name, guess in guesses.items()
    ]
    return (
        f"{where} has no column {', '.join(hints)}; its columns are {', '.join(names)}; "
        f"name the right ones in data.backends.{backend}.metadata or .caption.columns"
    )
