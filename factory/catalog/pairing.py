"""Pairing of samples with their conditioning pictures, by path stem."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, find_name, stems
from factory.catalog.decisions import Buckets, Decisions, Reasons, mark_filtered
from factory.catalog.facts import Facts
from factory.catalog.globs import relative
from factory.catalog.row_filters import RowFilter

# A partner of half the size is off by at most one pixel in 50 along its short edge.
ASPECT_TOLERANCE = 0.02
NO_SOURCE = "no source sample"
OTHER_SHAPE = "shape differs from its source"
SPARE = "another partner of its source comes first"


def pair(
    source: Facts,
    made: Decisions,
    source_prefix: str,
    partner: Facts,
    partner_prefix: str,
    filters: Sequence[RowFilter] = (),
    own: Decisions | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Decisions]:
    """Match the samples of a source with those of a conditioning backend.

    Args:
        source: Facts of the source, n rows.
        made: Decisions about the source.
        source_prefix: Folder its keys are below.
        partner: Facts of the conditioning backend, m rows.
        partner_prefix: Folder its keys are below.
        filters: Conditions on columns of the conditioning backend's table.
        own: Decisions about the conditioning backend by its own sizes and filters; without
            them its pictures are cut as their sources, and must have their shape.

    Returns:
        The partner's row for each source row, int64 [n], -1 where there is none; the source's
        row for each partner row, int64 [m], likewise; and the decisions about the m rows: in
        the buckets of their source samples, or in their own. Of several partners of one sample
        the first usable one counts, and the others are dropped.
    """
    of_partner = _matches(source, made, source_prefix, partner, partner_prefix)
    reasons = _unusable(partner, filters) if own is None else Reasons.of(own)
    reasons.mark(~((of_partner >= 0) & (made.reason[of_partner] == 0)), NO_SOURCE)
    if own is None:
        reasons.mark(_other_shape(source, partner, of_partner), OTHER_SHAPE)
    partners = np.full(len(source), -1, dtype=np.int64)
    # Backwards, so that of several partners of one sample the first one counts.
    chosen = np.flatnonzero(reasons.code == 0)[::-1]
    partners[of_partner[chosen]] = chosen
    reasons.mark(partners[of_partner] != np.arange(len(partner)), SPARE)
    if own is not None:
        return partners, of_partner, own.keeping(reasons)
    buckets = Buckets(len(partner))
    buckets.put(_targets(made, len(source))[of_partner], 0)
    return partners, of_partner, buckets.decisions(reasons, made.frames)


def _matches(
    source: Facts, made: Decisions, source_prefix: str, partner: Facts, partner_prefix: str
) -> NDArray[np.int64]:
    """Return the source's row for each partner row, int64 [m]; -1 where there is none."""
    names = _names(source, source_prefix)
    # Of several rows of one stem (a.png, a damaged a.jpg, a duplicate) the first kept one counts.
    ranked = np.argsort(made.reason != 0, kind="stable")
    places = find_name(_names(partner, partner_prefix), names.take(pa.array(ranked)))
    return np.where(places >= 0, ranked[places], -1).astype(np.int64)


def _unusable(partner: Facts, filters: Sequence[RowFilter]) -> Reasons:
    """Drop what cannot be read, and what fails a filter."""
    reasons = Reasons(len(partner))
    reasons.mark_texts(partner.table["error"])
    for first, rows in partner.chunks():
        mark_filtered(reasons, rows, filters, first)
    return reasons


def _names(facts: Facts, prefix: str) -> Column:
    return stems(relative(facts.table["key"], prefix)).combine_chunks()


def _targets(made: Decisions, rows: int) -> NDArray[np.int32]:
    """Return the target size of each kept row, int32 [n, 2]; 1 x 1 for the others."""
    target = np.ones((rows, 2), dtype=np.int32)
    for bucket in made.buckets:
        target[bucket.rows] = bucket.width, bucket.height
    return target


def _other_shape(source: Facts, partner: Facts, of_partner: NDArray[np.int64]) -> NDArray[np.bool_]:
    here = _aspect(source)[of_partner]
    return np.asarray(np.abs(_aspect(partner) / here - 1) > ASPECT_TOLERANCE)


def _aspect(facts: Facts) -> NDArray[np.float64]:
    width, height = facts.column("width"), facts.column("height")
    return np.asarray(np.maximum(width, 1) / np.maximum(height, 1), dtype=np.float64)
