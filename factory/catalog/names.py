"""Which listed objects do the names in a table mean?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.columns import Column, find, flags, joined, stems

@dataclass(frozen=True)
class Named:
    """The names of a table of n rows, looked up in a listing of m objects.

    Attributes:
        keys: Key of the object each row means, large_string [n]; of a row that means none,
            the key it would have, or the name as it stands there.
        places: The object's row in the listing, int64 [n]; -1 for none.
        blank: Rows without a name, bool [n].
        unsafe: Rows whose name leaves the folder, bool [n].
        ambiguous: Rows whose name fits several objects, bool [n].
    """

    keys: Column
    places: NDArray[np.int64]
    blank: NDArray[np.bool_]
    unsafe: NDArray[np.bool_]
    ambiguous: NDArray[np.bool_]


def look_up(
    names: Column, prefix: str, listed: Column, suffixes: Sequence[str] | None = None
) -> Named:
    """Find the object that each name means.

    Args:
        names: Names below the prefix, large_string [n].
        prefix: Folder of the samples, normalised; "" is the root.
        listed: Keys of the objects, large_string [m].
        suffixes: Suffixes of the objects that count, where names have none; None where names
            are whole.
    """
    blank = ~flags(pc.greater(pc.binary_length(names), 0))
    clean, unsafe = normal(names)
    keys = clean if not prefix else joined(f"{prefix}/", clean)
    bad = blank | unsafe
    ambiguous = np.zeros(len(names), dtype=bool)
    if suffixes is None:
        places = find(keys, listed)
    else:
        places, ambiguous = _by_stem(keys, listed, suffixes)
    places = np.where(bad | ambiguous, -1, places)
    if suffixes is not None:
        keys = pc.coalesce(listed.take(pa.array(places, mask=places < 0)), keys)
    if bad.any():
        keys = pc.if_else(pa.array(unsafe), pc.replace_substring(names, "\0", "\\0"), keys)
        keys = pc.if_else(pa.array(blank), _rows(blank), keys)
    return Named(keys, places, blank, unsafe & ~blank, ambiguous & ~bad)


def normal(names: Column) -> tuple[Column, NDArray[np.bool_]]:
    """Return names as `safe_key` normalises them, and which of them it refuses, bool [n]."""
    # Without a part that is empty, "." or "..", which most columns have none of, and without
    # NUL, a name is normal as it is.
    odd = flags(pc.match_substring_regex(names, pattern=r"(?:^|/)\.{0,2}(?:/|$)|\x00"))
    if not odd.any():
        return names, odd
    unsafe = odd & flags(pc.match_substring_regex(names, pattern=r"^/|(?:^|/)\.\.(?:/|$)|\x00"))
    for pattern, instead in ((r"/(?:\.?/)+", "/"), (r"^\./", ""), (r"/\.?$|^\.$", "")):
        names = pc.replace_substring_regex(names, pattern=pattern, replacement=instead)
    return names, unsafe | (odd & flags(pc.equal(names, "")))


def with_suffix(keys: Column, suffixes: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which keys end with one of the suffixes, in lower or upper case, bool [n]."""
    lower = pc.utf8_lower(keys)
    found = np.zeros(len(keys), dtype=bool)
    for suffix in suffixes:
        found |= flags(pc.ends_with(lower, suffix))
    return found


def _by_stem(
    keys: Column, listed: Column, suffixes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the place of the only object of each stem, and which stems several have."""
    count = np.flatnonzero(with_suffix(listed, suffixes))
    among = stems(listed.take(pa.array(count)))
    found = find(keys, among)
    places = np.where(found >= 0, count[found] if len(count) else -1, -1)
    counted = pc.value_counts(among)
    several = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
    return places, flags(pc.is_in(keys, value_set=several))


def _rows(mask: NDArray[np.bool_]) -> pa.Array:
    """Return "row 17" for marked rows, null for others."""
    number = pa.array(np.arange(len(mask)), mask=~mask).cast(pa.large_string())
    return joined("row ", number)
