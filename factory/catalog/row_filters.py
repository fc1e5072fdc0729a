"""Row filters: conditions on one column of the samples' table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import TableError
from factory.limits import check_limits

if TYPE_CHECKING:
    import pyarrow as pa

Value = str | int | float | bool


@dataclass(frozen=True)
class RowFilter:
    """A condition on one column; rows without a value there are dropped.

    Attributes:
        column: Column of the table; a field of it as COLUMN.FIELD.
        minimum: Least value kept.
        maximum: Greatest value kept.
        one_of: Values kept, all of one kind; empty: any.
    """

    column: str
    minimum: float | None = None
    maximum: float | None = None
    one_of: Sequence[Value] = ()

    def __post_init__(self) -> None:
        """Refuse a condition that says nothing, or contradicts itself.

        Raises:
            ValueError: See above; names the setting.
        """
        object.__setattr__(self, "one_of", tuple(self.one_of))
        check_limits(self, f"filter {self.column}")

    def setting_problems(self) -> Iterator[str]:
        """Yield why the condition says nothing, or contradicts itself."""
        if not self.column:
            yield "column must be named; set column=NAME"
        bounded = self.minimum is not None or self.maximum is not None
        if not bounded and not self.one_of:
            yield f"column {self.column} has no condition; set minimum, maximum or one_of"
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            yield f"minimum {self.minimum:g} is above maximum {self.maximum:g}"
        kinds = {_kind(value) for value in self.one_of}
        if len(kinds) > 1 or "other" in kinds or (bounded and kinds - {"number"}):
            yield (
                "one_of must hold values of one kind (texts, numbers or truth values), and numbers "
                f"where minimum or maximum is set; got {list(self.one_of)}"
            )

    @property
    def reason(self) -> str:
        """What the rows it drops are counted as."""
        return f"filter {self.column}"

    def keeps(self, column: "pa.ChunkedArray") -> NDArray[np.bool_]:
        """Tell for each value of the column whether its row is kept: bool [n].

        A null, and a number that is none (NaN), keeps no row.

        Raises:
            TableError: The column's type cannot be compared with the condition.
        """
        import pyarrow as pa

        column = self._plain(column)
        kept = pa.chunked_array([pa.array(np.ones(len(column), dtype=bool))])
        for condition in self._conditions(column):
            kept = _and(kept, condition)
        found: NDArray[np.bool_] = np.asarray(kept.fill_null(False).to_numpy(), dtype=np.bool_)
        return found

    def _conditions(self, column: "pa.ChunkedArray") -> "list[pa.ChunkedArray]":
        import pyarrow.compute as pc

        conditions = []
        if self.minimum is not None:
            conditions.append(pc.greater_equal(column, self.minimum))
        if self.maximum is not None:
            conditions.append(pc.less_equal(column, self.maximum))
        if self.one_of:
            wanted = _values(self.one_of, column)
            # Without this a null would be looked up among the values, and not found: no null.
            conditions.append(_and(pc.is_valid(column), pc.is_in(column, value_set=wanted)))
        return conditions

    def _plain(self, column: "pa.ChunkedArray") -> "pa.ChunkedArray":
        """Return the column without its dictionary, after making sure that it compares."""
        import pyarrow as pa

        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if pa.types.is_null(kind):
            return column.cast(pa.float64())  # nothing but nulls: every row is dropped
        # Money and the like is compared as the number it is.
        if pa.types.is_decimal(kind):
            return column.cast(pa.float64())
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        wanted = "number" if not self.one_of else _kind(self.one_of[0])
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if text and wanted == "number":
            return self._parsed(column)
        fits = {"number": numeric, "text": text, "truth value": pa.types.is_boolean(kind)}
        if not fits[wanted]:
            raise TableError(
                f"{self.reason}: column {self.column!r} holds {kind}, which cannot be compared "
                f"with a {wanted}; name another column (a field as COLUMN.FIELD), or give "
                f"values of its own type in filters"
            )
        return column

    def _parsed(self, column: "pa.ChunkedArray") -> "pa.ChunkedArray":
        """Return texts as numbers, for a CSV knows nothing else; an empty one is a null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        trimmed = pc.utf8_trim_whitespace(column)
        filled = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
        try:
            return filled.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise TableError(
                f"{self.reason}: column {self.column!r} holds {column.type}, which cannot be "
                f"compared with a number: {error}; name another column, or give texts in one_of"
            ) from error


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"


def _values(values: Sequence[Value], column: "pa.ChunkedArray") -> "pa.Array":
    """Return the values in the column's own type; those it cannot hold equal none of it."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        return pa.array(values, column.type)
    info: Any = np.iinfo(column.type.to_pandas_dtype())
    held = [int(v) for v in values if int(v) == v and info.min <= int(v) <= info.max]
    return pa.array(held, column.type)


def _and(left: "pa.ChunkedArray", right: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    return pc.and_kleene(left, right)
