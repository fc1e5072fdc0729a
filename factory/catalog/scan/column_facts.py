"""Facts from columns of the samples' own table, such as a dataset with width and height."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from factory.catalog.arrow_columns import find
from factory.catalog.captions.caption_reader import TEXT_COLUMNS, texts_of
from factory.catalog.facts import Facts
from factory.catalog.left_out import IGNORED, without_ignored
from factory.catalog.scan.scan import Scan
from factory.catalog.scan.table import still_unreadable
from factory.catalog.tables.casts import plain, shown, whole
from factory.engine.engine import Engine
from factory.errors import TableError
from factory.storage.base import TabularStorage


@dataclass(frozen=True)
class ColumnFacts:
    """Read sizes from columns of the samples' own table: a Hugging Face dataset, or a CSV.

    Attributes:
        width_column: Column with widths, px; a field as COLUMN.FIELD. Widths and heights are those
            after orientation.
        height_column: Column with heights, px; a field as COLUMN.FIELD.
        frames_column: Column with numbers of frames, for videos.
        ignore: Patterns of files that are no data: trash, thumbnails, hidden ones; []: none. They
            count where rows were made of files in a folder.
    """

    persisted_as: ClassVar[str] = "ColumnFacts"

    width_column: str = "width"
    height_column: str = "height"
    frames_column: str | None = None
    # Not shown: which rows there are shapes no fact of the others.
    ignore: tuple[str, ...] = field(default=IGNORED, repr=False)

    def __post_init__(self) -> None:
        """Accept any sequence of patterns."""
        object.__setattr__(self, "ignore", tuple(self.ignore))

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return one fact for each row; a row without a size keeps its place with the reason.

        Raises:
            TableError: The storage has no table, the table lacks a column, or a column cannot
                hold what is wanted.
        """
        scan.check_unopened("set metadata=discovery")
        storage = scan.storage
        if not isinstance(storage, TabularStorage):
            raise TableError(
                f"{storage.identity} has no table with columns; set "
                f"metadata@data.backends.{scan.name}=discovery (or parquet)"
            )
        captions = scan.captions.columns
        names = dict.fromkeys([*self._sizes, *scan.columns])
        table = storage.rows(list(names))
        listing, left_out = without_ignored(storage, storage.listing(), self.ignore)
        # Rows of the table in the order of the listing, which is sorted by key.
        table = table.take(pa.array(find(listing["key"], table["key"].cast(pa.large_string()))))
        columns = {name: listing[name] for name in ("key", "size", "etag")}
        columns |= self._measured(scan, table)
        if captions:
            found = texts_of(scan, engine, listing, listing["key"], scan.origin(self))
            columns |= dict(zip(TEXT_COLUMNS, found, strict=True))
        columns |= {f"column.{name}": table[name] for name in scan.columns}
        facts = still_unreadable(pa.table(columns), scan)
        made = Facts.of_table(facts, scan.origin(self), scan.known)
        return replace(made, left_out=left_out)

    @property
    def _sizes(self) -> list[str]:
        names = (self.width_column, self.height_column, self.frames_column)
        return [name for name in names if name is not None]

    def _measured(self, scan: Scan, table: pa.Table) -> dict[str, Any]:
        """Return sizes and frames, and the error of each row that lacks one."""
        numbers = {name: self._whole(scan, table, name) for name in self._sizes}
        missing = np.any([values == 0 for values in numbers.values()], axis=0)
        errors: list[str | None] = [None] * len(table)
        rows = np.flatnonzero(missing)
        keys = table["key"].take(pa.array(rows)).to_pylist()
        cells = [shown(table[name], rows).to_pylist() for name in numbers]
        for row, key, given in zip(rows.tolist(), keys, zip(*cells, strict=True), strict=True):
            errors[row] = f"no size in table: {key} has {' x '.join(given)}"
        ones = np.ones(len(table), dtype=np.int32)
        frames = numbers.get(self.frames_column or "", ones)
        return {
            "width": pa.array(np.where(missing, 0, numbers[self.width_column])),
            "height": pa.array(np.where(missing, 0, numbers[self.height_column])),
            "frames": pa.array(np.where(missing, 1, frames)),
            "error": pa.array(errors, pa.string()),
        }

    def _whole(self, scan: Scan, table: pa.Table, name: str) -> NDArray[np.int32]:
        try:
            return whole(table[name].cast(plain(table[name].type)))
        except TypeError as error:
            raise TableError(
                f"column {name!r} of {scan.storage.identity} holds {table[name].type}, {error} "
                f"are wanted; name another in data.backends.{scan.name}.metadata"
            ) from error
