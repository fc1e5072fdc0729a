"""Statistics of a catalog's rows, computed over whole columns.

The one module of the dry run that reads the columns of a catalog.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import as_mask
from factory.catalog.catalog import Catalog
from factory.catalog.facts import Facts

# Rows whose captions are looked at one by one, some microseconds each; of a larger catalog as
# many, evenly spread, stand for all.
CAPTION_ROWS = 20_000

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Enlarged:
    """Kept rows that are smaller than their target along an edge.

    Attributes:
        rows: The rows, int64 [n].
        scale: How much each is enlarged, above 1, float64 [n].
    """

    rows: Rows
    scale: NDArray[np.float64]


def kept_rows(catalog: Catalog) -> Rows:
    """Return the kept rows, bucket by bucket: int64 [kept]."""
    parts = [bucket.rows for bucket in catalog.decisions.buckets]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def all_rows(facts: Facts) -> Rows:
    """Return every row: int64 [n]."""
    return np.arange(len(facts), dtype=np.int64)


def count_present(facts: Facts, column: str) -> int:
    """Count the rows that have a value in a column."""
    return len(facts) - int(facts.table[column].null_count)


def dropped_rows(catalog: Catalog, reason: str) -> Rows:
    """Return the rows dropped for a reason, ascending: int64 [n]."""
    made = catalog.decisions
    return np.flatnonzero(made.reason == made.reasons.index(reason))


def sides(catalog: Catalog, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (widths, heights) of rows, px, float64 [n] each; 0 where they were not measured."""
    facts = catalog.facts
    width, height = facts.take("width", rows), facts.take("height", rows)
    return width.astype(np.float64), height.astype(np.float64)


def enlarged(catalog: Catalog) -> Enlarged:
    """Find the kept rows whose target is larger than the sample itself."""
    rows, scales = [], []
    for bucket in catalog.decisions.buckets:
        width, height = sides(catalog, bucket.rows)
        scale = np.maximum(bucket.width / width, bucket.height / height)
        rows.append(bucket.rows[scale > 1])
        scales.append(scale[scale > 1])
    if not rows:
        return Enlarged(np.zeros(0, dtype=np.int64), np.zeros(0))
    return Enlarged(np.concatenate(rows), np.concatenate(scales))


def target_aspects(catalog: Catalog, rows: Rows) -> NDArray[np.float64]:
    """Return width/height of the targets of those of some rows that are kept: float64 [n]."""
    parts = [
        np.full(np.isin(bucket.rows, rows).sum(), bucket.width / bucket.height)
        for bucket in catalog.decisions.buckets
    ]
    return np.concatenate(parts)


def sizes(facts: Facts, rows: Rows) -> NDArray[np.int64]:
    """Return bytes of rows, int64 [n]; negative where the storage does not tell."""
    return np.asarray(facts.take("size", rows), dtype=np.int64)


def of_format(facts: Facts, name: str) -> NDArray[np.bool_]:
    """Tell which rows are of a format, by its upper-case name: bool [n]."""
    return as_mask(pc.equal(facts.table["format"], name))


def total(facts: Facts, rows: Rows) -> int | None:
    """Return the bytes of rows together; None where the storage does not tell them all."""
    each = sizes(facts, rows)
    return None if (each < 0).any() else int(each.sum())


def captions(catalogs: Iterable[Catalog]) -> tuple[int, bool]:
    """Count the different captions of the kept rows of catalogs.

    Returns:
        How many there are, and whether they were counted or estimated.
    """
    seen: set[str] = set()
    estimate, exact = 0, True
    for catalog in catalogs:
        rows = kept_rows(catalog)
        looked_at = spread(rows, CAPTION_ROWS)
        before = len(seen)
        for row in looked_at.tolist():
            seen.update(catalog.texts(row))
        if looked_at.size < rows.size:
            # As if every further row had as many new captions as these had.
            exact = False
            estimate += round((len(seen) - before) * (rows.size / looked_at.size - 1))
    return len(seen) + estimate, exact


def spread(rows: Rows, most: int) -> Rows:
    """Return at most `most` rows, evenly spread over all: the same choice every time."""
    if rows.size <= most:
        return rows
    return rows[np.arange(most) * rows.size // most]


def looks(facts: Facts, rows: Rows) -> pa.Table:
    """Return key, size and etag of rows whose size is known: what tells samples apart."""
    table = facts.table.select(["key", "size", "etag"]).take(pa.array(rows))
    return table.filter(pc.greater(table["size"], 0))


def shared(left: pa.Table, right: pa.Table) -> list[str]:
    """Return the keys of `left` that look like a sample of `right`, sorted."""
    found = left.join(right, keys=["size", "etag"], join_type="left semi")
    return sorted(found["key"].to_pylist())


def twins(table: pa.Table) -> list[tuple[str, int]]:
    """Return (key, count) of each group of samples that look the same, most first."""
    told_apart = ["size", "etag"]
    # Keys are looked at only where there are several, which is rare.
    counted = table.select(told_apart).group_by(told_apart).aggregate([([], "count_all")])
    several = counted.filter(pc.greater(counted["count_all"], 1)).select(told_apart)
    alike = table.join(several, keys=told_apart, join_type="inner").group_by(told_apart)
    named = alike.aggregate([("key", "min"), ("key", "count")])
    several = named.sort_by([("key_count", "descending"), ("key_min", "ascending")])
    pairs = zip(several["key_min"].to_pylist(), several["key_count"].to_pylist(), strict=True)
    return [(str(key), int(count)) for key, count in pairs]


def extent(catalog: Catalog, rows: Rows, resolution_type: str) -> NDArray[np.float64]:
    """Return what `minimum_image_size` is held against: float64 [n].

    The short edge, px, with "pixel"; the edge of the square of equal area, px, with
    "pixel_area"; megapixels with "area".
    """
    width, height = sides(catalog, rows)
    if resolution_type == "pixel":
        return np.minimum(width, height)
    area = width * height
    return area / 1e6 if resolution_type == "area" else np.sqrt(area)


def largest(facts: Facts, rows: Rows, most: int) -> Rows:
    """Return the rows of the largest objects, the largest first."""
    return rows[np.argsort(-sizes(facts, rows), kind="stable")[:most]]


def contact_rows(catalog: Catalog, most: int) -> Rows:
    """Choose rows to look at: every bucket as often as its share, and the same every time."""
    rows = kept_rows(catalog)
    if rows.size <= most:
        return rows
    even = set(spread(np.arange(rows.size), most).tolist())
    ends = np.cumsum([0, *(len(bucket.rows) for bucket in catalog.decisions.buckets)])
    # A bucket too small for its share to reach one sample still shows its first.
    missed = [int(a) for a, b in pairwise(ends) if even.isdisjoint(range(a, b))]
    places = sorted([*missed[: most // 2], *sorted(even)[: most - len(missed[: most // 2])]])
    return rows[places]


def one(row: int) -> Rows:
    """Return a single row as an array."""
    return np.array([row], dtype=np.int64)


def among(rows: Rows, wanted: Iterable[int]) -> list[int]:
    """Return those of the wanted rows that are among `rows`, which ascend."""
    looked_for = np.array(sorted(wanted), dtype=np.int64)
    found: list[int] = looked_for[np.isin(looked_for, rows)].tolist()
    return found


def scatter(catalog: Catalog, rows: Rows, most: int) -> list[tuple[int, int]]:
    """Return (width, height) of at most `most` measured rows, evenly spread, px."""
    width, height = sides(catalog, rows)
    measured = spread(rows[(width > 0) & (height > 0)], most)
    pairs = zip(*sides(catalog, measured), strict=True)
    return [(int(w), int(h)) for w, h in pairs]


def details(facts: Facts, rows: Rows) -> list[str]:
    """Return what is wrong with rows in full, "reason: detail"; "" where only a filter struck."""
    table = facts.table.select(["error", "text_error"]).take(pa.array(rows))
    found = pc.fill_null(pc.coalesce(table["error"], table["text_error"]), "")
    return [str(text) for text in found.to_pylist()]
