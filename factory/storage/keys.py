"""Rules for keys, prefixes, byte spans and columns that all storages share."""

import difflib
import os
import uuid
from collections.abc import Iterable, Sequence

from factory.errors import TableError, UnsafeKeyError
from factory.storage.base import ODD_PART, safe_key

# Files being written, and probes of `check(write=True)`, start with this; listings skip them.
TEMPORARY = ".factory-tmp-"


def temporary_name() -> str:
    """Return a file name that no other process or thread uses."""
    return f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"


def is_listed(key: str) -> bool:
    """Tell whether a listing shows the key: not half written, not a folder.

    Trash and hidden files are shown: what of them is no data is for a scan to say, and to count.
    """
    return not (TEMPORARY in key or key.endswith("/"))


def is_normal(key: str) -> bool:
    """Tell whether a key is spelt as `safe_key` spells it: no part is empty, "." or ".."."""
    return not ODD_PART.search(key)


def safe_prefix(prefix: str) -> str:
    """Return a normalised prefix without slashes at its ends; "" means the root.

    Raises:
        UnsafeKeyError: The prefix is absolute, or holds '..' or a NUL.
    """
    if prefix in ("", ".", "./"):
        return ""
    return safe_key(prefix)


def strip_prefix(prefix: str) -> str:
    """Return a root prefix as people write it ("/a/b/") in its normal form ("a/b").

    Raises:
        UnsafeKeyError: The prefix holds '..' or a NUL.
    """
    try:
        return safe_prefix(prefix.strip("/"))
    except UnsafeKeyError:
        raise UnsafeKeyError(f"prefix {prefix!r} holds '..' or NUL; give a plain path") from None


def check_span(start: int, length: int | None) -> None:
    """Refuse a span of bytes that starts or ends before its object does.

    Raises:
        ValueError: A number is negative.
    """
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"start={start} and length={length} must not be negative")


def slice_bytes(data: bytes, start: int, length: int | None) -> bytes:
    """Return the span of bytes, shorter where the data ends first."""
    if start == 0 and (length is None or length >= len(data)):
        return data
    return data[start : None if length is None else start + length]


def below(keys: Iterable[str], prefix: str) -> list[str]:
    """Return the keys that lie below a normalised prefix."""
    return [key for key in keys if not prefix or key.startswith(prefix + "/")]


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest name, or nothing."""
    near = difflib.get_close_matches(given, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def missing_column(column: str, columns: Sequence[str], table: str) -> TableError:
    """Return the error for a column that a table does not have."""
    names = ", ".join(columns) or "none"
    hint = did_you_mean(column, columns)
    return TableError(f"{table} has no column {column!r}; it has: {names}{hint}")
