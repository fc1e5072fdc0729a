"""Exclusions: samples that are left out from a step on, and their substitutes.

An excluded sample is replaced where it stands: the rest of the order does not move by one
place, so a run can go on without a sample after the step at which it did harm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.limits import AtLeast, check_limits
from factory.sampling.passes import PlanBackend
from factory.sampling.substitutes import candidates, substitute_key


@dataclass(frozen=True)
class Exclude:
    """Samples that are not used from a step on; what an entry of `data.exclude` builds.

    Attributes:
        ids: Samples, as BACKEND:KEY or KEY; scripts/explain.py prints them.
        from_step: First optimizer step of the whole run without them, from 1. Validation, which no
            step belongs to, always does without them.
    """

    ids: Sequence[str]
    from_step: Annotated[int, AtLeast(1)] = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            PlanError: There is no id, or the step is below 1.
        """
        check_limits(self, "exclude", PlanError)

    def setting_problems(self) -> Iterator[str]:
        """Yield why nothing would be left out."""
        if isinstance(self.ids, str) or not self.ids:
            yield f"ids must name at least one sample, as [photos:people/a.jpg]; got {self.ids!r}"


@dataclass(frozen=True)
class ExcludedPlace:
    """A place of a batch whose sample is excluded.

    Attributes:
        place: Place in the global batch, from 0.
        row: Row of the excluded sample.
        substitute: Row of the sample that is used instead.
    """

    place: int
    row: int
    substitute: int


@dataclass(frozen=True)
class Excluded:
    """The rows of one backend that are left out, each from a step on.

    Attributes:
        steps: For each row the first global step, from 0, that does without it.
        keys: For each row its storage key; rows without one are named by their number.
    """

    steps: Mapping[int, int]
    keys: Mapping[int, str] = field(default_factory=dict)

    def at(self, global_step: int) -> frozenset[int]:
        """Return the rows left out at a global step, from 0."""
        found: frozenset[int] = frozenset()
        for first, rows in self._stages:
            if first > global_step:
                break
            found = rows
        return found

    def describe(self, backend: str) -> list[dict[str, Any]]:
        """Return what is left out as entries of `data.exclude` name it, by step, from 1."""
        names: dict[int, list[str]] = {}
        for row, first in self.steps.items():
            names.setdefault(first + 1, []).append(self.keys.get(row, str(row)))
        return [
            {"from_step": step, "backend": backend, "ids": sorted(ids)}
            for step, ids in sorted(names.items())
        ]

    @cached_property
    def _stages(self) -> list[tuple[int, frozenset[int]]]:
        """The rows left out from each step on at which they change, by step."""
        firsts = sorted(set(self.steps.values()))
        return [
            (first, frozenset(row for row, since in self.steps.items() if since <= first))
            for first in firsts
        ]


def check_excluded(backends: Sequence[PlanBackend], excluded: Mapping[str, Excluded]) -> None:
    """Refuse exclusions that cannot be carried out.

    Raises:
        PlanError: A backend is unknown or a stream, or all samples of a bucket are excluded.
    """
    by_name = {each.name: each for each in backends}
    for name, left_out in excluded.items():
        backend = by_name.get(name)
        if backend is None:
            raise PlanError(
                f"exclude names the backend {name!r}; those trained on are {', '.join(by_name)}"
            )
        if backend.sequential:
            raise PlanError(
                f"backend {name!r} is a stream, whose samples are unknown until they are read, so "
                "none can be excluded; take it out of data.exclude, or drop rows by a column: "
                f"data.backends.{name}.filters"
            )
        _check_buckets(backend, left_out)


def _check_buckets(backend: PlanBackend, excluded: Excluded) -> None:
    struck = _struck(backend, excluded)
    ends = np.concatenate([[0], np.cumsum(struck, dtype=np.int64)])
    counts, sizes = np.diff(ends[backend.offsets]), backend.sizes
    for bucket in np.flatnonzero((counts == sizes) & (sizes > 0)).tolist():
        raise PlanError(
            f"backend {backend.name!r}: all {sizes[bucket]} samples of bucket "
            f"{backend.buckets[bucket]} are excluded, so nothing can stand in for them; keep one "
            f"of them out of data.exclude, or drop the others at the start of a run, as with "
            f"data.backends.{backend.name}.metadata.exclude"
        )


def _struck(backend: PlanBackend, excluded: Excluded) -> NDArray[np.bool_]:
    """Mark the excluded rows in a backend's order, bool [n]; by a table, without sorting."""
    rows = np.array(sorted(excluded.steps), dtype=backend.order.dtype)
    return np.isin(backend.order, rows, kind="table")


def replace_excluded(
    backend: PlanBackend,
    excluded: frozenset[int],
    rows: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    number: int,
    bucket: str,
) -> tuple[NDArray[np.int64], tuple[ExcludedPlace, ...]]:
    """Replace the excluded rows of a batch by others of its bucket.

    Args:
        backend: The backend.
        excluded: Rows that are left out.
        rows: Rows of the global batch, int64 [B].
        seed: Seed of the plan.
        epoch: The epoch, from 0.
        number: Which of the backend's batches in the epoch it is, from 0.
        bucket: Name of its bucket.

    Returns:
        The rows with each excluded one replaced, int64 [B], and what was replaced. Rows that
        are not in the batch come first; no place but those of excluded rows changes.
    """
    planned = rows.tolist()
    struck = [place for place, row in enumerate(planned) if row in excluded]
    if not struck:
        return rows, ()
    place_of = backend.buckets.index(bucket)
    order = backend.order[backend.offsets[place_of] : backend.offsets[place_of + 1]]
    used, made = set(planned), []
    for place in struck:
        key = substitute_key(seed, epoch, backend.name, number, place)
        # There is one: a bucket is never excluded as a whole.
        row = next(row for row in candidates(order, key, used) if row not in excluded)
        used.add(row)
        made.append(ExcludedPlace(place, planned[place], row))
    replaced = rows.copy()
    replaced[struck] = [swap.substitute for swap in made]
    return replaced, tuple(made)


def without_excluded(backend: PlanBackend, excluded: Excluded) -> PlanBackend:
    """Return a backend of validation without the rows left out, at whatever step.

    Raises:
        PlanError: No sample is left.
    """
    keep = ~_struck(backend, excluded)
    if not keep.any():
        raise PlanError(
            f"backend {backend.name!r}: all {len(backend.order)} samples are excluded; keep one "
            f"out of data.exclude, or remove the backend: '~data.backends.{backend.name}'"
        )
    ends = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
    changed: dict[str, Any] = {"order": backend.order[keep], "offsets": ends[backend.offsets]}
    return PlanBackend(**{**vars(backend), **changed})
