"""Caption presence: tests whether samples have any text, on whole columns instead of row by row."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Bytes looked at together: what stays in a processor's second-level cache.
_BLOCK = 2**18
# Second but last bytes of the white space that takes more than one byte in UTF-8: U+0085,
# U+00A0, U+1680, U+2000 to U+2029, U+202F, U+205F, U+3000.
_BEFORE_LAST = np.array([0xC2, 0x9A, 0x80, 0x81], dtype=np.uint8)


def has_text(texts: pa.ChunkedArray, entries: int | None = None) -> Mask:
    """Mark rows with a text that is more than white space, bool [n].

    Args:
        texts: Lists of texts, n rows; null lists and null texts say nothing.
        entries: Only so many texts of each row count; None counts all.
    """
    return _any(texts, _visible, entries)


def contains_literal(texts: pa.ChunkedArray, literal: str, entries: int | None = None) -> Mask:
    """Mark rows with a text that holds a literal, bool [n]; arguments as in `has_text`."""
    return _any(texts, lambda values: _mask(pc.match_substring(values, literal)), entries)


def names_contain(keys: pa.ChunkedArray, literal: str) -> Mask:
    """Mark keys that hold a literal, underscores read as spaces, bool [n]."""
    spaced = pc.replace_substring(keys, "_", " ")
    return np.asarray(pc.match_substring(spaced, literal).to_numpy(), dtype=bool)


def perhaps_blank_names(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the rows whose file name may be all white space and underscores.

    None is missed; of names that end in neither before their suffix, hardly any is returned.

    Args:
        keys: Storage keys, large_string, n rows.
    """
    found, start = [np.zeros(0, dtype=np.int64)], 0
    for chunk in keys.chunks:
        found.append(start + _perhaps_nameless(chunk))
        start += len(chunk)
    return np.concatenate(found)


def _perhaps_nameless(keys: pa.Array) -> NDArray[np.int64]:
    """Look at the last byte of each key, and at the byte before each dot."""
    _, offsets, data = keys.cast(pa.large_string()).buffers()
    if len(keys) == 0 or data is None or len(data) == 0:
        return np.arange(len(keys), dtype=np.int64)  # all are ""
    bounds = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    text = np.frombuffer(data, np.uint8)
    # No suffix: the name itself ends the key, or a slash or dot that is no part of a name.
    last = text[np.maximum(bounds[1:] - 1, 0)]
    odd = np.flatnonzero(_blankish(last) | (last == ord("/")) | (last == ord(".")))
    odd = odd[_truly(text, bounds[odd + 1] - 1)]
    dots = _blank_before_dot(text, int(bounds[0]), int(bounds[-1]))
    before = np.searchsorted(bounds, dots, side="right") - 1
    empty = np.flatnonzero(bounds[1:] == bounds[:-1])
    return np.unique(np.concatenate([odd, before, empty]))


def _blank_before_dot(text: NDArray[np.uint8], start: int, end: int) -> NDArray[np.int64]:
    """Return where dots follow white space or an underscore."""
    hits = [np.zeros(0, dtype=np.int64)]
    for first in range(start + 1, end, _BLOCK):
        here = text[first : min(first + _BLOCK, end)]
        before = text[first - 1 : first - 1 + here.size]
        hits.append(first + np.flatnonzero((here == ord(".")) & _blankish(before)))
    dots = np.concatenate(hits)
    return np.asarray(dots[_truly(text, dots - 1)])


def _blankish(byte: NDArray[np.uint8]) -> Mask:
    """Mark bytes that are no visible ASCII characters, and underscores."""
    # Below "!" the difference wraps around to a large number.
    return np.asarray((byte - np.uint8(0x21) >= 0x7F - 0x21) | (byte == ord("_")))


def _truly(text: NDArray[np.uint8], places: NDArray[np.int64]) -> Mask:
    """Mark blankish bytes that may end a white space character, looking one byte further."""
    before = text[np.maximum(places - 1, 0)]
    return (text[places] < 0x80) | np.isin(before, _BEFORE_LAST)  # noqa: PLR2004 - ASCII


def _visible(values: pa.Array) -> Mask:
    """Mark texts that are neither empty, null nor white space alone, as `str.strip` sees it."""
    return _mask(pc.and_not(pc.greater(pc.binary_length(values), 0), pc.utf8_is_space(values)))


def _mask(values: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), dtype=bool)


def _any(texts: pa.ChunkedArray, test: Callable[[pa.Array], Mask], entries: int | None) -> Mask:
    parts = [_any_of_chunk(chunk, test, entries) for chunk in texts.chunks]
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _any_of_chunk(
    lists: pa.ListArray, test: Callable[[pa.Array], Mask], entries: int | None
) -> Mask:
    bounds = lists.offsets.to_numpy().astype(np.int64)
    first, last = int(bounds[0]), int(bounds[-1])
    hits = test(lists.values.slice(first, last - first))
    start, end = bounds[:-1] - first, bounds[1:] - first
    if entries is not None:
        end = np.minimum(end, start + entries)
    # How many hits lie before each text; a row has one if the number grows along it.
    counts = np.concatenate([[0], np.cumsum(hits)])
    return np.asarray((counts[end] > counts[start]) & _mask(lists.is_valid()))
