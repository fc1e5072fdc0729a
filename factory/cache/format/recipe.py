"""Recipe keys: hashes that name an encoded row by everything that shaped it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from factory.errors import CacheError

# 128 bits: among 10 million rows the odds that any two keys meet are below 1e-24.
KEY_BYTES = 16
# Opaque bytes, not text: numpy strips zero bytes off the end of "S16" items.
KEY_DTYPE = np.dtype(f"V{KEY_BYTES}")

# Of an array whose rows are lists of numbers, such as sizes.
_PAIRS_DIMS = 2

Keys: TypeAlias = NDArray[np.void]
RecipeRows: TypeAlias = (
    Sequence[Mapping[str, object]] | Mapping[str, Sequence[object] | NDArray[Any]]
)


def recipe_key(parts: Mapping[str, object]) -> bytes:
    """Return the 16 bytes that name a row made from these parts.

    Parts are texts, whole and finite numbers, booleans, None, and lists and mappings of
    them. Their order does not matter; 1 and 1.0 are one number, 1 and true are not, and no
    two texts are one.

    Raises:
        CacheError: A part is of another type, or a number is not finite.
    """
    return _hash(canonical(parts).encode()).digest()


def recipe_keys(common: Mapping[str, object], rows: RecipeRows) -> Keys:
    """Return the keys of many rows that share a part: 16 opaque bytes each, V16 [rows].

    The key of a row is `recipe_key({"common": common, "row": row})`; the common part is
    hashed once. Rows are mappings, or columns (a mapping of equally long sequences), which
    are several times as fast: arrays of whole numbers [rows] or [rows, n] and lists of texts
    most of all.

    Raises:
        CacheError: A part cannot be hashed, or columns differ in length.
    """
    start = _hash(f'{{"common":{canonical(common)},"row":'.encode())
    digests = []
    for text in _row_texts(rows):
        state = start.copy()
        state.update(text.encode())
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), dtype=KEY_DTYPE)


def rows_of(columns: Mapping[str, Sequence[object] | NDArray[Any]]) -> list[dict[str, object]]:
    """Return the rows of columns as `recipe_keys` takes them, as mappings."""
    plain = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*plain, strict=True)]


def as_keys(keys: Keys | NDArray[Any] | Sequence[bytes]) -> Keys:
    """Return keys as V16 [n], from V16, S16, uint8 [n, 16] or a sequence of 16 bytes each.

    Raises:
        CacheError: A key is not 16 bytes long.
    """
    if isinstance(keys, np.ndarray):
        if keys.dtype.itemsize == KEY_BYTES and keys.dtype.kind in "VS" and keys.ndim == 1:
            return np.ascontiguousarray(keys).view(KEY_DTYPE)
        if keys.dtype == np.uint8 and keys.shape[1:] == (KEY_BYTES,):
            return np.ascontiguousarray(keys).view(KEY_DTYPE)[:, 0]
        if keys.size:
            raise CacheError(
                f"keys are {KEY_BYTES} bytes each, as recipe_keys() gives them; "
                f"got an array of {keys.dtype} {list(keys.shape)}"
            )
    joined = [bytes(key) for key in keys]
    if wrong := next((key for key in joined if len(key) != KEY_BYTES), None):
        raise CacheError(f"a key is {KEY_BYTES} bytes, as recipe_key() gives it; got {wrong!r}")
    return np.frombuffer(b"".join(joined), dtype=KEY_DTYPE)


def canonical(value: object) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII only.

    Raises:
        CacheError: The value holds something that is not JSON; it is shown.
    """
    if type(value) is str:  # the common case first: captions and keys come by the million
        return encode_basestring_ascii(value)
    if isinstance(value, Mapping):
        names = sorted(_name(key) for key in value)
        inside = (f"{encode_basestring_ascii(name)}:{canonical(value[name])}" for name in names)
        return "{" + ",".join(inside) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, np.generic):
        return _scalar(value.item())
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, float) and math.isfinite(value):
        # A config may say 1 or 1.0; both mean one recipe.
        return repr(int(value)) if value.is_integer() else float.__repr__(value)
    raise CacheError(
        f"a recipe holds {value!r} of type {type(value).__name__}; allowed are texts, finite "
        "numbers, booleans, None, lists and mappings with text keys"
    )


def _name(key: object) -> str:
    if not isinstance(key, str):
        raise CacheError(f"a recipe names a part {key!r}; names of parts are texts")
    return key


def _row_texts(rows: RecipeRows) -> Iterable[str]:
    """Yield the canonical JSON of each row, with the brace that closes the whole."""
    if not isinstance(rows, Mapping):
        return (canonical(row) + "}" for row in rows)
    names = sorted(rows)
    columns = [rows[name] for name in names]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{n}: {len(c)}" for n, c in zip(names, columns, strict=True))
        raise CacheError(f"columns of a recipe differ in length ({lengths})")
    fields = ",".join(encode_basestring_ascii(name).replace("%", "%%") + ":%s" for name in names)
    template = "{" + fields + "}}"
    texts = zip(*map(_column_texts, columns), strict=True)
    return map(template.__mod__, texts)


def _column_texts(column: Sequence[object] | NDArray[Any]) -> Iterable[str]:
    """Return the canonical JSON of each entry; whole columns at a time where they are plain."""
    if isinstance(column, np.ndarray):
        if column.dtype.kind in "iu" and column.ndim == 1:
            return map(int.__repr__, column.tolist())
        if column.dtype.kind in "iu" and column.ndim == _PAIRS_DIMS:
            # One tuple at a time: a list of all would set off the garbage collector.
            row, numbers = (
                "[" + ",".join(["%d"] * column.shape[1]) + "]",
                iter(column.ravel().tolist()),
            )
            return map(row.__mod__, zip(*[numbers] * column.shape[1], strict=True))
        column = column.tolist()
    if set(map(type, column)) == {str}:
        return map(encode_basestring_ascii, column)
    return map(canonical, column)


def _hash(start: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(start, digest_size=KEY_BYTES)
