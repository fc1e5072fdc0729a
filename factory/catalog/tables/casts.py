"""Casts of table columns to sizes, texts and captions.

Whole columns at once. A column of a type that can never hold what is wanted is a `TypeError`
that says what is; a single cell that does not is 0, or "".
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, as_lists, as_mask, whole_array
from factory.catalog.captions.sources import LIST_SEPARATOR
from factory.errors import TableError
from factory.storage.nested_columns import column_paths, is_list

# Of a column of 32-bit integers, which the facts keep sizes in.
_LARGEST = 2**31 - 1
# A whole number as people and programs write it: pandas makes "640.0" of a column of integers
# that has an empty cell. Ten digits are enough for the largest, and never overflow 64 bits.
_WHOLE = r"^\s*\+?0*([0-9]{1,10})(?:\.0*)?\s*$"
_TEXT = pa.large_string()
# Fields proposed where a column holds structs.
_NAMED = 3


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type that a type is read as: no dictionaries, one kind of text and list."""
    types = pa.types
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_string(kind) or types.is_string_view(kind):
        return _TEXT
    if types.is_binary_view(kind):
        return pa.large_binary()
    if is_list(kind):
        return pa.large_list(plain(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(one.name, plain(one.type)) for one in kind])
    return kind


def whole(column: Column) -> NDArray[np.int32]:
    """Return positive whole numbers, int32 [n]; 0 for a cell that is none.

    Floats and texts count where they are whole numbers exactly: 640.0, "640" and "640.0" are
    640; "640px", 640.5, -1, true and what does not fit 32 bits are none.

    Raises:
        TypeError: The column holds neither numbers nor texts.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return np.zeros(len(column), dtype=np.int32)
    if pa.types.is_large_string(kind):
        column = _parsed(column)
    elif pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise TypeError("whole numbers")
    zero = pa.scalar(0, column.type)
    values = np.asarray(pc.fill_null(whole_array(column), zero).to_numpy(zero_copy_only=False))
    # NaN compares as False; the largest is exact as a 64-bit float, and as a 32-bit one it is
    # one too many, so numbers are compared in 64.
    if values.dtype.kind == "f":
        values = values.astype(np.float64, copy=False)
        good = (values > 0) & (values <= _LARGEST) & (values == np.floor(values))
    else:
        good = (values > 0) & (values <= min(_LARGEST, np.iinfo(values.dtype).max))
    return np.where(good, values, 0).astype(np.int32)


def _parsed(column: Column) -> Column:
    """Return texts as numbers of 64 bits; null for what is no whole number."""
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, _TEXT), column)
    if pc.all(pc.utf8_is_decimal(column)).as_py() is not False:
        with suppress(pa.ArrowInvalid):  # digits of other scripts, or too many of them
            return column.cast(pa.int64())
    matches = pc.match_substring_regex(column, pattern=_WHOLE)
    digits = pc.replace_substring_regex(column, pattern=_WHOLE, replacement=r"\1")
    return pc.if_else(matches, digits, pa.scalar(None, _TEXT)).cast(pa.int64())


def texts(column: Column, classes: Sequence[str] | None = None) -> Column:
    """Return a column as texts, large_string [n]; null stays null.

    Numbers become their digits; the texts of a list are joined by `LIST_SEPARATOR`, empty
    cells of the list left out.

    Args:
        column: The column, of a `plain` type.
        classes: Names that whole numbers stand for, from 0; a number without one is null.

    Raises:
        TypeError: The column holds neither texts, nor numbers, nor lists of these.
        ValueError: A text is not UTF-8.
    """
    kind = column.type
    if is_list(kind):
        return _joined(column, classes)
    if not _is_texts(kind):
        raise TypeError("texts, or lists of texts")
    if classes is not None and pa.types.is_integer(kind):
        named = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(classes)))
        places = pc.if_else(named, column, None)
        return pa.array(classes, _TEXT).take(places)
    column = column.cast(_TEXT)
    if not pa.types.is_primitive(kind):
        column.validate(full=True)
    return column


def _is_texts(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_large_string(kind)
        or types.is_null(kind)
        or types.is_binary(kind)  # texts of old writers carry no mark that says so
        or types.is_large_binary(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_decimal(kind)
    )


def _joined(column: Column, classes: Sequence[str] | None) -> Column:
    if is_list(column.type.value_type):
        raise TypeError("texts, or lists of texts")
    lists = whole_array(column)
    if isinstance(lists, pa.ChunkedArray):  # of no chunk at all
        return pa.array([], _TEXT)
    parts, owners = texts(lists.flatten(), classes), pc.list_parent_indices(lists).to_numpy()
    counts = np.bincount(owners[as_mask(pc.is_valid(parts))], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    full = pa.LargeListArray.from_arrays(pa.array(offsets), parts.drop_null())
    return pc.binary_join(full, pa.scalar(LIST_SEPARATOR, _TEXT))


def caption_lists(columns: Sequence[Column]) -> pa.Array:
    """Return the texts of several columns as lists of one text a column; null gives "".

    Args:
        columns: At least one column of texts, all of n rows.

    Returns:
        large_list of large_string, [n] of `len(columns)` each.
    """
    flat = [pc.fill_null(whole_array(column), "") for column in columns]
    if len(flat) == 1:
        return as_lists(flat[0])
    rows, width = len(flat[0]), len(flat)
    place = np.arange(rows * width).reshape(width, rows).T.ravel()
    offsets = pa.array(np.arange(rows + 1, dtype=np.int64) * width)
    return pa.LargeListArray.from_arrays(offsets, pa.concat_arrays(flat).take(pa.array(place)))


def shown(column: Column, rows: NDArray[np.int64]) -> Column:
    """Return some cells as texts to show in a message; "null" for empty ones."""
    some = column.take(pa.array(rows)).cast(_TEXT)
    return pc.if_else(pc.equal(pc.fill_null(some, ""), ""), "null", some)


def wrong_type(name: str, kind: pa.DataType, table: str, wanted: str, option: str) -> TableError:
    """Return the error that a column cannot hold what is wanted of it.

    Args:
        name: The column.
        kind: Its type.
        table: The table, for the message.
        wanted: What it should hold.
        option: The setting that names the column.
    """
    below = [path for path, _ in column_paths([pa.field(name, kind)])][1:]
    instead = f" such as {' or '.join(map(repr, below[:_NAMED]))}" if below else ""
    return TableError(
        f"column {name!r} of {table} holds {kind}, {wanted} are wanted; write it so, or name "
        f"another column{instead} in {option}"
    )
