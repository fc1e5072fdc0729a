"""Facts from columns beside the samples themselves: a dataset that says its pictures' sizes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from factory.bulk import Engine
from factory.catalog.facts import Fact, Facts, is_transient
from factory.catalog.metadata import Scan
from factory.catalog.texts import flatten
from factory.errors import TableError
from factory.records import ObjectInfo
from factory.storage.base import TabularStorage

# Of a column of 32-bit integers, which the facts keep sizes in.
_LARGEST_EDGE = 2**31 - 1


@dataclass(frozen=True)
class ColumnFacts:
    """Read sizes from columns of the samples' own table: a Hugging Face dataset, or a CSV.

    Attributes:
        width_column: Column with widths after orientation, px; "a.b" is field b of column a.
        height_column: Column with heights after orientation, px.
        frames_column: Column with numbers of frames, for videos; None for still pictures.
    """

    width_column: str = "width"
    height_column: str = "height"
    frames_column: str | None = None

    def scan(self, scan: Scan, engine: Engine) -> Facts:
        """Return one fact for each row; a row without a size keeps its place with the reason.

        Raises:
            TableError: The storage has no table, or the table lacks a column.
        """
        del engine  # one table is all the work there is
        storage = scan.storage
        if not isinstance(storage, TabularStorage):
            raise TableError(
                f"{storage.identity} has no table with columns; set "
                f"metadata@data.backends.{scan.name}=discovery (or parquet)"
            )
        frames = [] if self.frames_column is None else [self.frames_column]
        sizes = [self.width_column, self.height_column, *frames]
        columns = list(dict.fromkeys([*sizes, *scan.captions.columns]))
        table = storage.rows(columns)
        cells = {name: table[name].to_pylist() for name in ["key", *columns]}
        listed = {info.key: info for info in storage.objects()}
        known = {} if scan.known is None else {fact.key: fact for fact in scan.known.rows()}
        facts = (self._fact(listed, row, scan.captions.columns) for row in _rows(cells))
        return Facts.of([_still_damaged(fact, known) for fact in facts], scan.origin(self), known)

    def _fact(
        self, listed: dict[str, ObjectInfo], row: dict[str, Any], captions: tuple[str, ...]
    ) -> Fact:
        info = listed[row["key"]]
        names = [self.width_column, self.height_column, self.frames_column]
        edges = [1 if name is None else _whole(row[name]) for name in names]
        text = flatten([row[name] for name in captions]) if captions else None
        if None in edges:
            given = " x ".join(repr(row[name]) for name in names if name is not None)
            error = f"no size in table: {info.key} has {given}"
            return Fact(info.key, info.size, info.etag, error=error, text=text)
        width, height, frames = (edge or 0 for edge in edges)
        return Fact(info.key, info.size, info.etag, width, height, frames=frames, text=text)


def _rows(cells: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*cells.values(), strict=True):
        yield dict(zip(cells, values, strict=True))


def _whole(value: object) -> int | None:
    """Return an edge in px, or a number of frames; None for what is none.

    Whole floats count: a column of integers with an empty cell often becomes one of floats.
    So do texts of digits: the cells of a CSV are texts.
    """
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_EDGE:
        return value
    return None


def _still_damaged(fact: Fact, known: dict[str, Fact]) -> Fact:
    """Keep an error that the picture itself proved to have when it was encoded."""
    before = known.get(fact.key)
    if before is None or before.etag != fact.etag or is_transient(before) or not before.width:
        return fact
    return replace(fact, error=fact.error or before.error)
