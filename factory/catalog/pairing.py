"""Samples and the conditioning pictures that belong to them, matched by path stem."""

import numpy as np
from numpy.typing import NDArray

from factory.catalog.decisions import Decisions, Reasons
from factory.catalog.facts import Facts
from factory.catalog.texts import stem

# A partner of half the size is off by at most one pixel in 50 along its short edge.
ASPECT_TOLERANCE = 0.02
NO_SOURCE = "no source sample"
OTHER_SHAPE = "shape differs from its source"


def below(key: str, prefix: str) -> str:
    """Return a key's stem relative to its backend's prefix."""
    return stem(key.removeprefix(prefix).lstrip("/"))


def pair(
    source: Facts, made: Decisions, source_prefix: str, partner: Facts, partner_prefix: str
) -> tuple[NDArray[np.int64], Decisions]:
    """Match the samples of a source with those of a conditioning backend.

    Args:
        source: Facts of the source, n rows.
        made: Decisions about the source.
        source_prefix: Folder its keys are below.
        partner: Facts of the conditioning backend, m rows.
        partner_prefix: Folder its keys are below.

    Returns:
        The partner's row for each source row, int64 [n], -1 where there is none; and the
        decisions about the m rows: cut exactly as their source samples are.
    """
    names = [below(key, source_prefix) for key in source.table["key"].to_pylist()]
    # Of several rows of one stem (a.png, a damaged a.jpg, a duplicate) the first kept one counts.
    ranked = sorted(range(len(names)), key=lambda n: (made.reason[n] == 0, -n))
    rows = {names[n]: n for n in ranked}
    keys = partner.table["key"].to_pylist()
    of_partner = np.array(
        [rows.get(below(key, partner_prefix), -1) for key in keys], dtype=np.int64
    )
    reasons = Reasons(len(partner))
    reasons.mark_texts(partner.table["error"].to_pylist())
    found = (of_partner >= 0) & (made.reason[of_partner] == 0)
    reasons.mark(~found, NO_SOURCE)
    reasons.mark(_other_shape(source, partner, of_partner), OTHER_SHAPE)
    decided = Decisions.of(
        reasons, made.target[of_partner], made.intermediary[of_partner], made.crop[of_partner]
    )
    partners = np.full(len(source), -1, dtype=np.int64)
    partners[of_partner[decided.order]] = decided.order
    return partners, decided


def without_partner(made: Decisions, partners: NDArray[np.int64], name: str) -> Decisions:
    """Drop source rows that a conditioning backend has no picture for."""
    reasons = Reasons(made.reason.size)
    reasons.names, reasons.code = list(made.reasons), made.reason.copy()
    reasons.mark(partners < 0, f"no partner in {name}")
    return Decisions.of(reasons, made.target, made.intermediary, made.crop, made.frames)


def _other_shape(source: Facts, partner: Facts, of_partner: NDArray[np.int64]) -> NDArray[np.bool_]:
    here = _aspect(source)[of_partner]
    return np.asarray(np.abs(_aspect(partner) / here - 1) > ASPECT_TOLERANCE)


def _aspect(facts: Facts) -> NDArray[np.float64]:
    width, height = facts.column("width"), facts.column("height")
    return np.asarray(np.maximum(width, 1) / np.maximum(height, 1), dtype=np.float64)
