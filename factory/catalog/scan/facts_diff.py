"""Differences between two scans: samples that are new, changed or gone."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import as_mask, find


@dataclass(frozen=True)
class Changes:
    """What a refresh found, in samples."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: int = 0
    # Files that a table has no row for.
    unlisted: int = 0

    def __str__(self) -> str:
        """Return "3 added, 1 removed, 120 unchanged", leaving out zeros."""
        parts = [f"{count} {name}" for name, count in vars(self).items() if count]
        return ", ".join(parts) or "nothing found"


def compare(known: pa.Table | None, now: pa.Table) -> Changes:
    """Compare the facts of two scans, by key and etag."""
    rows, unreadable = now.num_rows, now.num_rows - now["error"].null_count
    if known is None:
        return Changes(added=rows, unreadable=unreadable)
    places = find(now["key"], known["key"])
    shared = int((places >= 0).sum())
    unchanged = int(same_etag(now, known, places).sum())
    return Changes(
        added=rows - shared,
        changed=shared - unchanged,
        removed=known.num_rows - shared,
        unchanged=unchanged,
        unreadable=unreadable,
    )


def same_etag(now: pa.Table, known: pa.Table, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each row whether its known row (at `places`, -1 for none) has the same etag."""
    in_place = len(places) == known.num_rows and bool((places == np.arange(len(places))).all())
    if in_place and now["etag"].equals(known["etag"]):
        return np.ones(len(places), dtype=bool)
    equal = np.zeros(len(places), dtype=bool)
    shared = np.flatnonzero(places >= 0)
    before = known["etag"].take(pa.array(places[shared]))
    equal[shared] = as_mask(pc.equal(now["etag"].take(pa.array(shared)), before))
    return equal
