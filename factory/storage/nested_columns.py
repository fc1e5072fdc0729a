"""Fields of nested Arrow columns, reached by dotted names; lists on the way stay lists."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def column_paths(fields: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield every column and, below structs and lists of structs, every field."""
    import pyarrow as pa

    for field in fields:
        path, kind = (*above, field.name), field.type
        yield ".".join(path), list(path)
        while is_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            yield from column_paths(kind, path)


def descend(column: "pa.ChunkedArray", path: Sequence[str]) -> "pa.ChunkedArray | None":
    """Return a field of a column of structs, of its fields in turn; None if there is none.

    Of a list of structs it is the list of their fields.
    """
    import pyarrow as pa

    for name in path:
        chunks = column.chunks or [pa.array([], column.type)]
        found = [_field(chunk, name) for chunk in chunks]
        if any(chunk is None for chunk in found):
            return None
        column = pa.chunked_array(found)
    return column


def type_at(kind: "pa.DataType", path: Sequence[str]) -> "pa.DataType | None":
    """Return the type of what `descend` gives of a column of a type."""
    import pyarrow as pa

    found = descend(pa.chunked_array([], kind), path)
    return None if found is None else found.type


def is_list(kind: "pa.DataType") -> bool:
    """Tell whether a type is a list of any layout."""
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _field(array: "pa.Array", name: str) -> "pa.Array | None":
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_struct(kind):
        return pc.struct_field(array, name) if kind.get_field_index(name) >= 0 else None
    if not is_list(kind):
        return None
    inner = _field(array.flatten(), name)
    if inner is None:
        return None
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    return pa.LargeListArray.from_arrays(offsets, inner, mask=pc.is_null(array))
