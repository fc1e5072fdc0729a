"""Samples of an explained step: their facts, decisions, and the rank that used them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from factory.backends.conditioning import is_generated
from factory.backends.prepared import PreparedBackend
from factory.ledger.reader import RecordedStep
from factory.reports.explain.explanation import ExplainedSample, ReplacedSample
from factory.sampling.plan import Plan, PlanStep


def samples_of(
    rows: NDArray[np.int64], source: PreparedBackend, *, seed: int, epoch: int
) -> list[ExplainedSample]:
    """Describe the samples of rows, in their order.

    Args:
        rows: Catalog rows, int64 [B].
        source: Their backend.
        seed: Seed of the choice among captions.
        epoch: The epoch, from 0.
    """
    catalog = source.catalog
    known = len(catalog.facts)
    found = []
    for place, row in enumerate(rows.tolist()):
        # A ledger of another catalog may name rows that this one has not.
        sample = (
            _described(source, row, seed, epoch) if 0 <= row < known else ExplainedSample(0, row)
        )
        found.append(replace(sample, place=place))
    return found


def _described(source: PreparedBackend, row: int, seed: int, epoch: int) -> ExplainedSample:
    catalog, one = source.catalog, [row]
    facts, decisions = catalog.facts, catalog.decisions
    width, height, size = (int(facts.take(n, one)[0]) for n in ("width", "height", "size"))
    sample = ExplainedSample(
        0, row, facts.key(row), width=width, height=height, bytes=size,
        etag=str(facts.texts("etag", one)[0]),
    )  # fmt: skip
    reason = int(decisions.reason[row])
    if reason:
        return replace(sample, dropped=decisions.reasons[reason])
    (crop,) = source.crops(np.array([row]), epoch).each()
    return replace(
        sample,
        resized=crop.intermediary,
        crop=crop.offset,
        target=crop.target,
        caption=catalog.caption(row, seed=seed, epoch=epoch),
        partners=dict(_partners(source, row, seed, epoch)),
    )


def _partners(
    source: PreparedBackend, row: int, seed: int, epoch: int
) -> Iterator[tuple[str, str]]:
    """Yield each conditioning backend that is used, and the key of the partner there."""
    found = source.partner_rows(np.array([row]), seed=seed, epoch=epoch)
    for name, rows in found.items():
        if rows[0] >= 0:
            partner = source.conditioning[name][0]
            made = " (generated)" if is_generated(partner.backend) else ""
            yield name, partner.catalog.facts.key(int(rows[0])) + made


def of_stream(recorded: RecordedStep | None) -> list[ExplainedSample]:
    """Return what is known of a stream's samples: what the ledger holds of them."""
    if recorded is None:
        return []
    rows = recorded.rows.tolist()
    keys = [key for micro in recorded.micros for key in micro.keys or [""] * len(micro.rows)]
    pairs = zip(rows, keys, strict=True)
    return [ExplainedSample(place, row, key) for place, (row, key) in enumerate(pairs)]


def with_layout(
    samples: Sequence[ExplainedSample], recorded: RecordedStep
) -> list[ExplainedSample]:
    """Add who used each sample, and where it stands in the global batch."""
    found, rest, about = [], iter(samples), recorded.about
    for micro in recorded.micros:
        share = micro.rank // about.context_parallel
        first = (share * about.micros + micro.micro) * len(micro.rows)
        damaged = {one.place: one for one in micro.replaced}
        for place in range(first, first + len(micro.rows)):
            sample = replace(next(rest), place=place, rank=micro.rank, micro=micro.micro)
            if place in damaged:
                one = damaged[place]
                swapped = ReplacedSample(one.key, one.stage, one.reason)
                sample = replace(sample, instead_of=(swapped,))
            found.append(sample)
    return found


def with_exclusions(
    samples: Sequence[ExplainedSample],
    planned: PlanStep,
    plan: Plan,
    sources: Mapping[str, PreparedBackend],
) -> list[ExplainedSample]:
    """Add which samples stand in for excluded ones, and which only fill the batch.

    Where an excluded sample was used all the same, before it was excluded, nothing stands in.
    """
    used = {sample.place: sample.row for sample in samples}
    excluded = {s.place: s.row for s in planned.excluded if used.get(s.place) != s.row}
    fills = len(planned.rows) - planned.duplicates
    found = []
    for each in samples:
        sample = replace(each, fills=each.place >= fills)
        if each.place in excluded:
            row = excluded[each.place]
            since = plan.exclude[planned.backend].steps[row] + 1
            key = sources[planned.backend].catalog.facts.key(row)
            swapped = ReplacedSample(key, "exclude", f"excluded from step {since} on")
            sample = replace(sample, instead_of=(*each.instead_of, swapped))
        found.append(sample)
    return found
