"""Explanations from a ledger alone, where the data of the run cannot be reached."""

from collections.abc import Sequence
from pathlib import Path

from factory.errors import ConfigError, FactoryError
from factory.ledger.reader import RecordedStep, read_ledger, recorded_steps
from factory.reports.explain.explanation import (
    MOST_STEPS,
    ExplainedStep,
    ExplainRequest,
    Explanation,
)
from factory.reports.explain.samples import of_stream, with_layout


def recorded_findings(
    run: str, ledgers: Sequence[Path], request: ExplainRequest, reason: FactoryError
) -> Explanation:
    """Find out what is asked, as far as the ledger tells.

    Args:
        run: The run's folder, as text.
        ledgers: Where its ledger lies, and those of runs that it continued.
        request: What is asked.
        reason: Why there are no catalogs and no plan.

    Raises:
        FactoryError: The reason itself, where there is no ledger.
        ConfigError: The steps are not on record, or no sample is of that name.
    """
    on_record = recorded_steps(*ledgers)
    if not on_record.size:
        reason.add_note("and there is no ledger of the run that would tell without it")
        raise reason
    first, last = int(on_record[0]) + 1, int(on_record[-1]) + 1
    records = _sought(ledgers, request)
    if not records:
        raise ConfigError(
            f"sample={request.sample}: without its catalog the ledger tells rows, not names, but "
            f"of streams and of samples that were replaced; ask for a step of {first} to {last}"
            if request.sample
            else f"steps {first} to {last} are on record; of others only the plan knows, whose "
            f"data cannot be reached ({reason})"
        )
    newest = max(records.values(), key=lambda each: each.global_step)
    known = (
        "names, cuts and captions of samples stand in the catalogs there, and so do the reasons "
        "of the plan; rows are the catalog's row numbers"
    )
    notes = [
        f"the data of the run cannot be reached, so this is the ledger's word alone ({reason})",
        known,
    ]
    if len(records) > MOST_STEPS:
        notes.append(f"the first {MOST_STEPS} of {len(records)} steps are shown")
    steps = tuple(_step(each) for each in list(records.values())[:MOST_STEPS])
    return Explanation(run, newest.about.fingerprint, (first, last), steps, tuple(notes), "")


def _sought(ledgers: Sequence[Path], request: ExplainRequest) -> dict[int, RecordedStep]:
    """Return the steps asked about, by their number."""
    if request.first is not None:
        return read_ledger(*ledgers, first=request.first, last=request.last)
    name = str(request.sample)
    return {
        number: each
        for number, each in read_ledger(*ledgers).items()
        if {name, name.removeprefix(f"{each.backend}:")} & _names(each)
    }


def _names(recorded: RecordedStep) -> set[str]:
    """Return the samples of a step that are named on record."""
    keys = {key for micro in recorded.micros for key in micro.keys or ()}
    replaced = [one for micro in recorded.micros for one in micro.replaced]
    return keys | {one.key for one in replaced} | {one.substitute_key for one in replaced}


def _step(recorded: RecordedStep) -> ExplainedStep:
    missing = ", ".join(map(str, recorded.missing))
    return ExplainedStep(
        number=recorded.global_step + 1,
        epoch=recorded.epoch + 1,
        step=recorded.step + 1,
        steps=0,
        backend=recorded.backend,
        bucket=recorded.bucket,
        pass_number=0,
        passes=0,
        fills=0,
        since=1,
        choices=(),
        ranks=recorded.about.ranks,
        micros=recorded.about.micros,
        samples=tuple(with_layout(of_stream(recorded), recorded)),
        notes=(f"of rank {missing} this step is not, or not wholly, on record",) * bool(missing),
    )
