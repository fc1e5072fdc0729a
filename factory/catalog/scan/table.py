"""Facts from a metadata table: names, sizes and captions, without opening a picture."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import (
    Column,
    as_mask,
    concat_texts,
    find,
    starts_with_any,
    whole_array,
)
from factory.catalog.captions.caption_reader import TEXT_COLUMNS, texts_of
from factory.catalog.facts import FOCUS, SIZE_DIFFERS, Facts, transient_errors
from factory.catalog.globs import relative, with_suffix
from factory.catalog.left_out import IGNORED, ignored
from factory.catalog.scan.discovery import PICTURES, Discovery
from factory.catalog.scan.facts_diff import same_etag
from factory.catalog.scan.scan import Scan
from factory.catalog.tables.casts import caption_lists, shown, texts, whole, wrong_type
from factory.catalog.tables.key_matching import MatchedNames, match_names
from factory.catalog.tables.table_reader import MAX_UNZIPPED_MB, TableReader, TableRows
from factory.engine.engine import Engine
from factory.errors import TableError
from factory.limits import Above, check_limits
from factory.storage.keys import safe_prefix

logger = logging.getLogger(__name__)

_TEXT = pa.large_string()
# A column of the table that a row filter reads is kept in the facts under this and its name.
OWN = "column."


@dataclass(frozen=True)
class ParquetTable:
    """Read facts from a table that lies in the backend's own storage.

    The table is Parquet, JSON lines, a JSON document or CSV: one file or several. Names in it
    count below the backend's prefix. Sizes may also be floats and texts that are whole numbers
    exactly, such as 640.0 and "640".

    Attributes:
        path: Key of the table in the backend's storage (Parquet, .jsonl, .json, .csv, the last
            three also .gz), or a list of keys, a folder, or a pattern such as tables/*.parquet;
            folders name=value are columns.
        file_column: Column with each picture's key below the prefix.
        width_column: Column with widths, px; None with height_column: headers are measured. Widths
            and heights are those after orientation.
        height_column: Column with heights, px.
        frames_column: Column with numbers of frames, for videos.
        extensionless: Names in the table have no suffix: a/b means the only one of a/b.png,
            a/b.jpg, …
        max_unzipped_mb: Most that a table which ends with .gz may hold, MiB.
    """

    persisted_as: ClassVar[str] = "ParquetTable"

    path: str | Sequence[str]
    file_column: str = "file_name"
    width_column: str | None = "width"
    height_column: str | None = "height"
    frames_column: str | None = None
    extensionless: bool = False
    # Not shown: facts that were read within another limit are the same.
    max_unzipped_mb: Annotated[float, Above(0)] = field(default=MAX_UNZIPPED_MB, repr=False)

    def __post_init__(self) -> None:
        """Accept any sequence of paths.

        Raises:
            ValueError: Something is missing, or out of range.
        """
        if not isinstance(self.path, str):
            object.__setattr__(self, "path", tuple(self.path))
        check_limits(self, "metadata")

    def setting_problems(self) -> Iterator[str]:
        """Yield what is missing: a path, a name of a column, one of two columns of sizes."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        if not paths:
            yield "path must name a table; set path to its key"
        for path in paths:
            if not isinstance(path, str) or not path.strip():
                yield f"path must be a key in the storage, or a list of keys; got {path!r}"
            elif path.startswith("/") or ".." in path.split("/"):
                inside = "no leading '/', no '..'"
                yield f"path must stay below the storage's root: {inside}; got {path!r}"
        if not self.file_column:
            yield "file_column must name a column; set file_column=file_name"
        for name in ("width_column", "height_column", "frames_column"):
            if getattr(self, name) == "":
                yield f"{name} must name a column, or be null; got ''"
        if (self.width_column is None) != (self.height_column is None):
            yield (
                f"width_column={self.width_column or 'null'} and height_column="
                f"{self.height_column or 'null'} go together; name both columns, or set both to "
                "null"
            )

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return one fact for each row of the table.

        The storage is listed once for sizes and etags; a row whose file is absent keeps its
        place with the reason. Files without a row are counted and one of them is named in a
        warning.

        Raises:
            ObjectNotFoundError: There is no such table.
            TableError: A file of it is damaged, it lacks a column, or a column is of a type
                that cannot hold what is wanted.
        """
        if self.width_column is not None:
            scan.check_unopened("set metadata.width_column and metadata.height_column to null")
        return _Reading(self, scan, engine).facts()


class _Reading:
    """One reading of a table of n rows."""

    def __init__(self, settings: ParquetTable, scan: Scan, engine: Engine) -> None:
        self._settings, self._scan, self._engine = settings, scan, engine
        self._where = f"data.backends.{scan.name}"
        paths = (settings.path,) if isinstance(settings.path, str) else tuple(settings.path)
        self._tables = TableReader(scan.storage, paths, self._where, settings.max_unzipped_mb)
        self._own = scan.columns

    def facts(self) -> Facts:
        """Return the facts, compared with those known."""
        scan = self._scan
        rows = self._rows()
        listing = scan.storage.listing(scan.prefix)
        names = self._texts(rows, self._settings.file_column, "metadata.file_column")
        samples = with_suffix(listing["key"], scan.medium.suffixes or PICTURES)
        named = match_names(
            names, safe_prefix(scan.prefix), listing["key"], samples,
            by_stem=self._settings.extensionless,
        )  # fmt: skip
        table = pa.table(self._columns(rows, named, listing))
        if named.order is not None:
            table = table.take(named.order)
        origin = scan.origin(self._settings)
        if self._settings.width_column is None:
            table = self._measured(table, origin)
        if scan.captions.sidecar is not None:
            columns = texts_of(scan, self._engine, listing, table["key"], origin)
            for name, column in zip(TEXT_COLUMNS, columns, strict=True):
                table = table.append_column(name, column)
        facts = Facts.of_table(still_unreadable(table, scan), origin, scan.known)
        facts.changes = replace(
            facts.changes, unlisted=self._unlisted(named, listing["key"], samples)
        )
        return facts

    def _measured(self, table: pa.Table, origin: dict[str, Any]) -> pa.Table:
        """Return the table with sizes from the headers of its files, which it has none for."""
        sound = table.filter(pc.is_null(table["error"])).select(["key", "size", "etag"])
        # A file that stands in two rows is looked at once.
        once = find(pc.unique(sound["key"]), sound["key"])
        samples = sound.take(pa.array(once)).sort_by("key")
        found = Discovery().measured(self._scan, self._engine, samples, origin)
        places = find(table["key"], found["key"])
        places[~as_mask(pc.is_null(table["error"]))] = -1
        here = found.take(pa.array(places, mask=places < 0))
        for name in ("width", "height", "format", "error", *FOCUS):
            column = here[name]
            if name in FOCUS and column.null_count == len(column):
                continue
            if name in table.column_names:
                column = pc.coalesce(column, table[name].cast(column.type))
                table = table.drop_columns(name)
            table = table.append_column(name, column)
        return table

    def _rows(self) -> TableRows:
        """Read the columns that are named in the settings."""
        table = self._settings
        sizes = (table.width_column, table.height_column, table.frames_column)
        numbers = [name for name in sizes if name is not None]
        captions = self._scan.captions.columns
        # Numbers, too: what is not one in a CSV must be shown as it stands there.
        as_texts = [table.file_column, *numbers, *captions]
        return self._tables.read([*as_texts, *self._own], as_texts)

    def _columns(
        self, rows: TableRows, named: MatchedNames, listing: pa.Table
    ) -> dict[str, Column]:
        width, height = self._edge(rows, "width"), self._edge(rows, "height")
        frames = self._frames(rows)
        errors = _Errors(len(named.places))
        self._mark_names(errors, rows, named)
        if self._settings.width_column is not None:
            errors.mark((width == 0) | (height == 0), lambda bad: self._no_size(rows, named, bad))
        errors.mark(frames == 0, lambda bad: concat_texts("no frames in table: ", _at(named, bad)))
        size = listing["size"].to_numpy()
        there = named.places >= 0
        places = pa.array(named.places, mask=~there)
        columns: dict[str, Column] = {
            "key": named.keys,
            "size": pa.array(_at_places(size, named.places)),
            "etag": pc.fill_null(listing["etag"].take(places), ""),
            "width": pa.array(np.where(errors.marked, 0, width)),
            "height": pa.array(np.where(errors.marked, 0, height)),
            "frames": pa.array(np.where(errors.marked, 1, frames)),
            "error": errors.column(),
        }
        if self._scan.captions.columns:
            columns["text"] = caption_lists(list(self._captions(rows)))
        return columns | {f"{OWN}{name}": rows.table[name] for name in self._own}

    def _captions(self, rows: TableRows) -> Iterator[Column]:
        for name in self._scan.captions.columns:
            yield self._texts(rows, name, "caption.columns")

    def _texts(self, rows: TableRows, name: str, option: str) -> Column:
        try:
            return texts(rows.table[name])
        except TypeError as error:
            raise self._wrong_type(rows, name, str(error), option) from error
        except pa.ArrowInvalid as error:
            raise TableError(
                f"column {name!r} of {self._tables.described()} is not UTF-8: {error}; write it "
                f"again, or name another in {self._where}.{option}"
            ) from error

    def _edge(self, rows: TableRows, side: str) -> NDArray[np.int32]:
        """Return a column of sizes, int32 [n]; 0 where there is none."""
        name = getattr(self._settings, f"{side}_column")
        if name is None:
            return np.zeros(rows.table.num_rows, dtype=np.int32)
        return self._whole(rows, name, f"metadata.{side}_column")

    def _frames(self, rows: TableRows) -> NDArray[np.int32]:
        name = self._settings.frames_column
        if name is None:
            return np.ones(rows.table.num_rows, dtype=np.int32)
        return self._whole(rows, name, "metadata.frames_column")

    def _whole(self, rows: TableRows, name: str, option: str) -> NDArray[np.int32]:
        try:
            return whole(rows.table[name])
        except TypeError as error:
            raise self._wrong_type(rows, name, str(error), option) from error

    def _wrong_type(self, rows: TableRows, name: str, wanted: str, option: str) -> TableError:
        kind = rows.table[name].type
        return wrong_type(name, kind, self._tables.described(), wanted, f"{self._where}.{option}")

    def _mark_names(self, errors: "_Errors", rows: TableRows, named: MatchedNames) -> None:
        errors.mark(named.blank, lambda bad: concat_texts("no file name: ", rows.places(bad)))
        errors.mark(
            named.unsafe,
            lambda bad: concat_texts(
                "unsafe name: key '", _at(named, bad),
                "' leaves its root; keys are relative paths without '..' or NUL",
            ),
        )  # fmt: skip
        errors.mark(
            named.ambiguous,
            lambda bad: concat_texts(
                "ambiguous name: several files are ", _at(named, bad), " and a suffix"
            ),
        )
        errors.mark(
            named.places < 0,
            lambda bad: _missing(_at(named, bad)),
        )

    def _no_size(self, rows: TableRows, named: MatchedNames, bad: NDArray[np.int64]) -> Column:
        wide, tall = (
            shown(rows.table[name], bad)
            for name in (self._settings.width_column, self._settings.height_column)
        )
        return concat_texts("no size in table: ", _at(named, bad), " has ", wide, " x ", tall)

    def _unlisted(self, named: MatchedNames, listed: Column, samples: NDArray[np.bool_]) -> int:
        """Count the samples that have no row, and name one of them."""
        without = samples & ~ignored(relative(listed, self._scan.prefix), IGNORED)
        without[named.places[named.places >= 0]] = False
        spare = listed.filter(pa.array(without))
        if len(spare):
            logger.warning(
                "%s: %d files have no row in %s and take no part, such as %s%s",
                self._scan.name, len(spare), self._tables.described(), spare[0].as_py(),
                self._hint(named),
            )  # fmt: skip
        return len(spare)

    def _hint(self, named: MatchedNames) -> str:
        """Say what may be wrong where not one row means a file."""
        if not len(named.places) or (named.places >= 0).any():
            return ""
        other = str(not self._settings.extensionless).lower()
        return (
            f"; no row means a file, the first one is {named.keys[0].as_py()}: names count below "
            f"{self._where}.prefix={self._scan.prefix}, and for names "
            f"{'without' if other == 'true' else 'with'} suffixes set "
            f"{self._where}.metadata.extensionless={other}"
        )


class _Errors:
    """Gives each of n rows the first error that strikes it.

    Attributes:
        marked: Rows that have one, bool [n].
    """

    def __init__(self, rows: int) -> None:
        self.marked = np.zeros(rows, dtype=bool)
        self._rows: list[NDArray[np.int64]] = []
        self._messages: list[pa.Array] = []

    def mark(
        self, mask: NDArray[np.bool_], messages: Callable[[NDArray[np.int64]], Column]
    ) -> None:
        """Give rows of the mask that have no error yet the messages made for them."""
        rows = np.flatnonzero(mask & ~self.marked)
        if rows.size:
            self.marked[rows] = True
            self._rows.append(rows)
            self._messages.append(whole_array(messages(rows)).cast(_TEXT))

    def column(self) -> pa.Array:
        """Return the message of each row, large_string [n]; null where there is none."""
        if not self._rows:
            return pa.nulls(len(self.marked), _TEXT)
        place = np.full(len(self.marked), -1, dtype=np.int64)
        rows = np.concatenate(self._rows)
        place[rows] = np.arange(rows.size)
        return pa.concat_arrays(self._messages).take(pa.array(place, mask=place < 0))


def _at(named: MatchedNames, rows: NDArray[np.int64]) -> Column:
    return named.keys.take(pa.array(rows))


def _missing(keys: Column) -> Column:
    words = ("; folders are parted by '/', not by '\\'", "")
    hint = pc.if_else(pc.match_substring(keys, "\\"), *(pa.scalar(word, _TEXT) for word in words))
    return concat_texts("file missing: ", keys, " is in the table only", hint)


def _at_places(values: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return values at places, 0 at -1."""
    padded = np.append(values, 0)  # the place -1 is the last one
    return np.asarray(padded[places], dtype=np.int64)


def _cells(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def still_unreadable(table: pa.Table, scan: Scan) -> pa.Table:
    """Keep the errors of pictures that proved unreadable when they were encoded.

    Such a fact has a size and an error; what is wrong in the table itself has no size. Where
    the table gives another size than before, a picture may be of that one.
    """
    known = scan.known
    if known is None or known.origin.get("storage") != scan.storage.identity:
        return table
    errors = known.table["error"]
    lasting = as_mask(pc.is_valid(errors)) & ~starts_with_any(errors, transient_errors(known))
    proved = known.table.filter(pa.array(lasting & as_mask(pc.greater(known.table["width"], 0))))
    if not proved.num_rows:
        return table
    places = find(table["key"], proved["key"])
    still = same_etag(table, proved, places) & as_mask(pc.is_null(table["error"]))
    differs = starts_with_any(proved["error"], (SIZE_DIFFERS,))[places]
    for name in ("width", "height", "frames"):
        still &= ~differs | (_cells(table, name) == _cells(proved, name)[places])
    errors = proved["error"].cast(_TEXT).take(pa.array(places, mask=~still))
    index = table.schema.get_field_index("error")
    return table.set_column(index, "error", pc.coalesce(table["error"], errors))
