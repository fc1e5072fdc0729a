"""Matching of names in a table with the keys of listed objects."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import (
    Column,
    as_mask,
    concat_texts,
    find_name,
    sort_order,
    stems,
)


@dataclass(frozen=True)
class MatchedNames:
    """The names of a table of n rows, looked up in a listing of m objects.

    Attributes:
        keys: Key of the object each row means, large_string [n]; of a row that means none,
            the key it would have, or the name as it stands there.
        places: The object's row in the listing, int64 [n]; -1 for none.
        blank: Rows without a name, bool [n].
        unsafe: Rows whose name leaves the folder, bool [n].
        ambiguous: Rows whose name fits several objects, bool [n].
        order: What sorts the keys of rows that mean an object, int64 [n]; None if they are.
    """

    keys: Column
    places: NDArray[np.int64]
    blank: NDArray[np.bool_]
    unsafe: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_]
    order: pa.Array | None


def match_names(
    names: Column, prefix: str, listed: Column, samples: NDArray[np.bool_], *, by_stem: bool
) -> MatchedNames:
    """Find the object that each name means.

    Args:
        names: Names below the prefix, large_string [n].
        prefix: Folder of the samples, normalised; "" is the root.
        listed: Keys of the objects, sorted, large_string [m].
        samples: Which of them are samples by their suffix, bool [m].
        by_stem: Names have no suffix, and mean the only sample that has one more; otherwise
            names are whole, and mean any object.
    """
    blank = ~as_mask(pc.greater(pc.binary_length(names), 0))
    clean, unsafe = normal_names(names)
    keys = concat_texts(f"{prefix}/", clean) if prefix else clean
    order = sort_order(keys)
    rows = np.flatnonzero(samples)
    among = listed.filter(pa.array(samples))
    ambiguous = np.zeros(len(names), dtype=bool)
    if by_stem:
        among = _without_suffix(among)
        ambiguous = _several(keys, among)
    places = _matched(keys, order, among)
    if places is not None:
        places = rows[places]
    elif by_stem:
        found = find_name(keys, among)
        places = np.where(found >= 0, np.append(rows, -1)[found], -1)
    else:
        places = find_name(keys, listed)
    places = np.where(blank | unsafe | ambiguous, -1, places)
    # Also of a name that differs from its object's in the form of Unicode.
    if by_stem or not pc.all(pc.string_is_ascii(keys)).as_py():
        keys = pc.coalesce(listed.take(pa.array(places, mask=places < 0)), keys)
    if unsafe.any():
        keys = pc.if_else(pa.array(unsafe), pc.replace_substring(names, "\0", "\\0"), keys)
    if blank.any():
        keys = pc.if_else(pa.array(blank), _rows(blank), keys)
    return MatchedNames(keys, places, blank, unsafe & ~blank, ambiguous & ~blank & ~unsafe, order)


def _matched(keys: Column, order: pa.Array | None, among: Column) -> NDArray[np.int64] | None:
    """Return where each key stands among others, int64 [n], where both hold the same keys.

    Most tables have a row for every file and none beside: comparing what is sorted takes a
    tenth of the time that looking up each takes. None where they are not the same.
    """
    if len(keys) != len(among):
        return None
    right = sort_order(among)
    left_keys = keys if order is None else keys.take(order)
    right_keys = among if right is None else among.take(right)
    if not pc.all(pc.equal(left_keys, right_keys)).as_py():
        return None
    every = np.arange(len(keys), dtype=np.int64)
    places = np.empty(len(keys), dtype=np.int64)
    places[every if order is None else order.to_numpy()] = (
        every if right is None else right.to_numpy()
    )
    return places


def normal_names(names: Column) -> tuple[Column, NDArray[np.bool_]]:
    """Return names as `safe_key` normalises them, and which of them it refuses, bool [n]."""
    if _plain(names):
        return names, np.zeros(len(names), dtype=bool)
    odd = as_mask(pc.match_substring_regex(names, pattern=r"(?:^|/)\.{0,2}(?:/|$)|\x00"))
    if not odd.any():
        return names, odd
    unsafe = odd & as_mask(pc.match_substring_regex(names, pattern=r"^/|(?:^|/)\.\.(?:/|$)|\x00"))
    for pattern, instead in ((r"/(?:\.?/)+", "/"), (r"^\./", ""), (r"/\.?$|^\.$", "")):
        names = pc.replace_substring_regex(names, pattern=pattern, replacement=instead)
    return names, unsafe | (odd & as_mask(pc.equal(names, "")))


def _plain(names: Column) -> bool:
    """Tell whether no name has a part that is empty, "." or "..", or a NUL; False if in doubt.

    Bytes of all names in a row are searched, which takes a fifth of the time of a search in each.
    """
    for chunk in names.chunks if isinstance(names, pa.ChunkedArray) else [names]:
        data = chunk.buffers()[2]
        raw = b"" if data is None else data.to_pybytes()
        if any(odd in raw for odd in (b"./", b"//", b"\0")):
            return False
    ends = [pc.starts_with(names, "/"), pc.ends_with(names, "/"), pc.ends_with(names, ".")]
    return not any(as_mask(end).any() for end in (*ends, pc.equal(names, "")))


def _without_suffix(keys: Column) -> Column:
    """Return `stems` of keys that all have a suffix, without a search in each one."""
    suffixes = pc.utf8_slice_codeunits(keys, -5)
    for length in (3, 4):
        dots = pc.utf8_slice_codeunits(suffixes, -length - 1, -length)
        if pc.all(pc.equal(dots, ".")).as_py():
            return pc.utf8_slice_codeunits(keys, 0, -length - 1)
    return stems(keys)


def _several(keys: Column, among: Column) -> NDArray[np.bool_]:
    """Tell which keys stand among others more than once, bool [n]."""
    order = sort_order(among)
    ordered = among if order is None else among.take(order)
    again = pc.equal(ordered.slice(1), ordered.slice(0, max(len(ordered) - 1, 0)))
    if not pc.any(again).as_py():
        return np.zeros(len(keys), dtype=bool)
    return as_mask(pc.is_in(keys, value_set=ordered.slice(1).filter(again)))


def _rows(mask: NDArray[np.bool_]) -> pa.Array:
    """Return "row 17" for marked rows, null for others."""
    number = pa.array(np.arange(len(mask)), mask=~mask).cast(pa.large_string())
    return concat_texts("row ", number)
