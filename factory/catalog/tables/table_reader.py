"""Reader of tables that are one file or several, with partitions."""

import difflib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, as_mask, concat_texts
from factory.catalog.globs import expression, relative
from factory.catalog.left_out import IGNORED, ignored
from factory.catalog.tables.formats import (
    PARQUET,
    SUFFIXES,
    FileColumns,
    format_of,
    read_parquet,
    read_text,
    unzipped,
)
from factory.errors import ObjectNotFoundError, TableError, UnsafeKeyError
from factory.storage.base import Storage
from factory.storage.keys import safe_prefix

# What Hive and Spark write for a partition whose value is null.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MAGIC = b"PAR1"
_TEXT = pa.large_string()


# A file is unzipped in memory, where zeros shrink a thousandfold. Ten million rows of captions
# take some 3 GiB; larger tables are better written as Parquet, of which columns are read.
MAX_UNZIPPED_MB = 4096.0


@dataclass(frozen=True)
class TableRows:
    """The rows of a table, in the order of its files.

    Attributes:
        table: The columns asked for, by their names.
        files: Keys of the files.
        starts: First row of each file, int64 [files].
    """

    table: pa.Table
    files: tuple[str, ...]
    starts: NDArray[np.int64]

    def places(self, rows: NDArray[np.int64]) -> pa.Array:
        """Return where rows stand, as "row 7 of table.parquet", large_string [n]."""
        file = np.searchsorted(self.starts, rows, side="right") - 1
        names = pa.array(self.files, _TEXT).take(pa.array(file))
        numbers = pa.array(rows - self.starts[file]).cast(_TEXT)
        return concat_texts("row ", numbers, " of ", names)


@dataclass(frozen=True)
class TableReader:
    """A table of one file or several in a storage.

    Attributes:
        storage: Where the files lie.
        paths: Keys of files, folders of them, or patterns such as "tables/*.parquet".
        where: The backend's settings, for messages, such as "data.backends.photos".
        max_unzipped_mb: Most that a file which ends with .gz may hold, MiB.
    """

    storage: Storage
    paths: tuple[str, ...]
    where: str
    max_unzipped_mb: float = MAX_UNZIPPED_MB

    @property
    def setting(self) -> str:
        """The setting that names the files."""
        return f"{self.where}.metadata.path"

    def read(self, wanted: Sequence[str], texts: Sequence[str]) -> TableRows:
        """Read columns of all files.

        A column that a file lacks is null in its rows. A folder "name=value" above a file
        is a column too, of whole numbers or texts, unless the file has one of that name.

        Args:
            wanted: Columns to read; "a.b" is the field b of a.
            texts: Those of them that are texts, also where they look like numbers.

        Raises:
            ObjectNotFoundError: A path leads to nothing.
            TableError: A file is damaged, no file has a column, or two files disagree about
                a column's type.
        """
        wanted = list(dict.fromkeys(wanted))
        files = tuple(dict.fromkeys(key for path in self.paths for key in self._files(path)))
        parts = [self._part(key, wanted, texts) for key in files]
        parts = _partitioned(files, parts, wanted)
        self._require(wanted, parts)
        columns = {name: self._joined(name, files, parts) for name in wanted}
        counts = np.array([part.rows for part in parts], dtype=np.int64)
        return TableRows(pa.table(columns), files, np.cumsum(counts) - counts)

    def described(self, file: str | None = None) -> str:
        """Return "a.parquet in file:///data" for a file, or for the whole table."""
        return f"{file or ', '.join(self.paths)} in {self.storage.identity}"

    def _files(self, path: str) -> list[str]:
        if re.search(r"[*?]", path):
            return self._matching(path)
        try:
            return [self.storage.head(path).key]
        except UnsafeKeyError as error:
            error.add_note(f"it is named by {self.setting}")
            raise
        except ObjectNotFoundError as error:
            try:
                keys = self._listed(path)
            except ObjectNotFoundError:
                raise self._absent(path, "to its key") from error
        return self._tables_of(path, keys.to_pylist())

    def _listed(self, folder: str) -> Column:
        """Return the keys below a folder, without trash and hidden ones."""
        keys = self.storage.listing(folder)["key"]
        return keys.filter(pa.array(~ignored(relative(keys, safe_prefix(folder)), IGNORED)))

    def _matching(self, pattern: str) -> list[str]:
        """Return the keys that fit a pattern, as shells understand it."""
        folder = pattern[: re.search(r"[*?]", pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
        try:
            keys = self._listed(folder)
        except ObjectNotFoundError as error:
            raise self._absent(pattern, "to files that are there") from error
        found = keys.filter(pa.array(as_mask(pc.match_substring_regex(keys, _expression(pattern)))))
        if not len(found):
            raise self._absent(pattern, "to files that are there")
        return [str(key) for key in found.to_pylist()]

    def _tables_of(self, folder: str, keys: list[str]) -> list[str]:
        """Return the tables in a folder; what starts with "." or "_" is a tool's own."""
        depth = len(folder.strip("/")) + 1 if folder.strip("./") else 0
        tables = [k for k in keys if format_of(k) and not re.search(r"(?:^|/)[._]", k[depth:])]
        if not tables:
            raise self._absent(f"{folder.rstrip('/')}/ ({SUFFIXES})", "to one that holds some")
        kinds = sorted({str(format_of(key)) for key in tables})
        if len(kinds) > 1:
            raise TableError(
                f"{self.described(folder)} holds tables of several kinds: {', '.join(kinds)}; "
                f"set {self.setting} to a pattern such as {folder.rstrip('/')}/*.parquet"
            )
        return tables

    def _absent(self, path: str, advice: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"no table {path} in {self.storage.identity}; set {self.setting} {advice}"
        )

    def _part(self, key: str, wanted: Sequence[str], texts: Sequence[str]) -> FileColumns:
        kind = format_of(key)
        # Also asks whether the file may be read at all, in the storage's own words.
        if kind is None and self.storage.read(key, 0, len(_MAGIC)) != _MAGIC:
            raise TableError(
                f"{self.described(key)} is of no known kind; tables end with {SUFFIXES}, or "
                f".gz after one of the last five; set {self.setting} to such a file"
            )
        source = self._source(key, parquet=kind in (PARQUET, None))
        try:
            if isinstance(source, bytes) and kind not in (PARQUET, None):
                return read_text(key, self._unzipped(key, source), wanted, texts)
            return read_parquet(source, wanted)
        except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
            raise TableError(
                f"{self.described(key)} is not {kind or PARQUET}, or a damaged one: {error}; "
                f"write it again, or set {self.setting} to another"
            ) from error

    def _unzipped(self, key: str, data: bytes) -> bytes:
        if not key.lower().endswith(".gz"):
            return data
        found = unzipped(data, self.max_unzipped_mb * 2**20)
        if found is None:
            raise TableError(
                f"{self.described(key)} has {len(data)} bytes and holds over "
                f"{self.max_unzipped_mb:g} MiB unzipped; if it is meant to be so large, raise "
                f"{self.where}.metadata.max_unzipped_mb, or write it as Parquet"
            )
        return found

    def _source(self, key: str, *, parquet: bool) -> Path | bytes:
        """Return the file, or the path of a local Parquet file, of which columns are read."""
        path = self.storage.local_path(key) if parquet else None
        if path is None:
            return self.storage.read(key)
        self.storage.read(key, 0, 1)  # whether it may be read, in the storage's own words
        return path

    def _require(self, wanted: Sequence[str], parts: Sequence[FileColumns]) -> None:
        absent = [name for name in wanted if not any(name in part.columns for part in parts)]
        if absent:
            names = list(dict.fromkeys(name for part in parts for name in part.names))
            raise TableError(
                f"{self.described()} has no column {', '.join(_hints(absent, names))}; its "
                f"columns are {', '.join(names) or 'none'}; name the right ones in "
                f"{self.where}.metadata or .caption.columns (or .filters)"
            )

    def _joined(
        self, name: str, files: Sequence[str], parts: Sequence[FileColumns]
    ) -> pa.ChunkedArray:
        kind, first = pa.null(), ""
        for file, part in zip(files, parts, strict=True):
            if name in part.columns:
                kind = self._common(name, kind, part.columns[name].type, first, file)
                first = first or file
        chunks = [
            chunk
            for part in parts
            for chunk in (
                part.columns[name].cast(kind).chunks
                if name in part.columns
                else [pa.nulls(part.rows, kind)]
            )
        ]
        return pa.chunked_array(chunks, kind)

    def _common(
        self, name: str, one: pa.DataType, other: pa.DataType, file: str, next_file: str
    ) -> pa.DataType:
        """Return a type that holds the cells of both."""
        schemas = [pa.schema([(name, kind)]) for kind in (one, other)]
        try:
            return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
        except pa.ArrowException as error:
            raise TableError(
                f"column {name!r} is {other} in {self.described(next_file)}, and {one} in {file}; "
                f"write it as one type in all files, or set {self.setting} to some of them"
            ) from error


def _expression(pattern: str) -> str:
    """Return a pattern of whole keys as a regular expression; see `globs.matching`."""
    return f"^(?:{expression('/' + pattern.removeprefix('./'))})$"


def _partitions(key: str) -> dict[str, str | None]:
    """Return the columns that a file's folders are named by, "name=value"."""
    pairs = [folder.split("=", 1) for folder in key.split("/")[:-1] if "=" in folder]
    return {unquote(n): None if v == _NO_VALUE else unquote(v) for n, v in pairs}


def _partitioned(
    files: Sequence[str], parts: Sequence[FileColumns], wanted: Sequence[str]
) -> list[FileColumns]:
    """Add the columns that the files' folders are named by, where files have none of the name."""
    values = [_partitions(key) for key in files]
    kinds = {
        name: pa.int64() if _are_numbers([v[name] for v in values if name in v]) else _TEXT
        for name in dict.fromkeys(name for v in values for name in v)
    }
    found = []
    for part, here in zip(parts, values, strict=True):
        fresh = {name: value for name, value in here.items() if name not in part.names}
        cells = {n: pa.scalar(v, _TEXT).cast(kinds[n]) for n, v in fresh.items() if n in wanted}
        columns = {n: pa.chunked_array([pa.repeat(v, part.rows)]) for n, v in cells.items()}
        found.append(FileColumns({**part.columns, **columns}, [*part.names, *fresh], part.rows))
    return found


def _are_numbers(values: Sequence[str | None]) -> bool:
    """Tell whether texts are whole numbers, written as a number would be."""
    numbers = [value for value in values if value is not None]
    return bool(numbers) and all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", n) for n in numbers)


def _hints(absent: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for name in absent:
        guess = difflib.get_close_matches(name, names, n=1)
        yield f"{name!r} (did you mean {guess[0]!r}?)" if guess else repr(name)
