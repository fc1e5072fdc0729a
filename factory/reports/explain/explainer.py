"""Explanations of steps, from a run's plan and, where there is one, its ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from factory.backends.sample_ids import MARK, find_sample, near_names
from factory.errors import ConfigError
from factory.ledger.reader import RecordedStep, read_ledger, recorded_steps
from factory.lightning.datamodule import FactoryDataModule
from factory.reports.explain.explanation import (
    MOST_STEPS,
    BackendChoice,
    ExplainedSample,
    ExplainedStep,
    ExplainRequest,
    Explanation,
    exclude_line,
)
from factory.reports.explain.samples import of_stream, samples_of, with_exclusions, with_layout
from factory.reports.wording import plural
from factory.sampling.plan import PlanStep

# Samples described one by one, some 100 microseconds each; further steps go without.
MOST_SAMPLES = 20_000
# Steps of a plan that are gone through for a sample where no ledger tells, some seconds.
MOST_SOUGHT = 100_000
# Samples named in the line to paste: those of a usual batch.
NAMED = 32


@dataclass
class Explainer:
    """Answers questions about one run.

    Attributes:
        data: Its data module, set up.
        run: Its folder, as text.
        end: How many optimizer steps it has, as far as its trainer's limits tell.
        ledgers: Where its ledger lies, and those of runs that it continued.
        notes: What holds for every answer.
    """

    data: FactoryDataModule
    run: str
    end: int
    ledgers: Sequence[Path] = ()
    notes: list[str] = field(default_factory=list)

    def answer(self, request: ExplainRequest) -> Explanation:
        """Find out what is asked.

        Raises:
            ConfigError: The steps are not among those of the run, or no sample has that name.
            CacheError: A file of the ledger is of another format.
        """
        on_record = recorded_steps(*self.ledgers)
        notes = list(self.notes)
        if not on_record.size:
            notes.append(
                "there is no ledger: this is the plan's word; which process used a sample, and "
                "what stood in for damaged ones, is not on record"
            )
        steps, sought = self._sought(request, on_record, notes)
        found = self._recorded(steps, notes)
        exclude = self._exclude(found, sought, on_record, notes)
        return Explanation(
            self.run,
            self.data.plan.fingerprint,
            (int(on_record[0]) + 1, int(on_record[-1]) + 1) if on_record.size else None,
            tuple(found),
            tuple(notes),
            exclude,
        )

    def _sought(
        self, request: ExplainRequest, on_record: NDArray[np.int64], notes: list[str]
    ) -> tuple[list[int], list[str]]:
        """Return the global steps asked about, and the ids of the sample asked about."""
        if request.first is not None and request.last is not None:
            end = max(self.end, int(on_record[-1]) + 1 if on_record.size else 0)
            if request.last >= end:
                raise ConfigError(
                    f"the run has the steps 1 to {end}, got step={request.last + 1}; set "
                    "trainer.max_steps to look at what a longer one would do"
                )
            return list(range(request.first, request.last + 1)), []
        name = str(request.sample)
        pairs = find_sample(name, self.data.sources)
        ids = [f"{each}{MARK}{self._key(each, row)}" for each, row in pairs]
        using: dict[str, int | str] = dict(pairs)
        # The key alone is what the ledger holds of a stream's sample.
        using |= {each: name.removeprefix(each + MARK) for each in self.data.streams}
        steps = set(read_ledger(*self.ledgers, using=using))
        if not pairs and not steps:
            shown = near_names(name, self.data.sources)
            hint = "give its storage key, as KEY or BACKEND:KEY"
            if shown:
                hint = f"did you mean {' or '.join(shown)}?"
            raise ConfigError(
                f"sample={name}: no backend has a sample of that name, and none is on record; "
                f"{hint}"
            )
        steps |= set(self._planned_uses(dict(pairs), on_record))
        ordered = sorted(steps)
        if len(ordered) > MOST_STEPS:
            notes.append(f"the first {MOST_STEPS} of {len(ordered)} steps are shown")
        where = f"{len(ordered)} of the run's {self.end} steps" if ordered else "no step of the run"
        notes.insert(0, f"{' and '.join(ids) or name} is used by {where}")
        return ordered[:MOST_STEPS], ids

    def _planned_uses(self, rows: Mapping[str, int], on_record: NDArray[np.int64]) -> list[int]:
        """Go through the planned steps that are not on record for a row of each backend."""
        plan, known = self.data.plan, set(on_record.tolist())
        found = []
        for number in range(min(self.end, MOST_SOUGHT)) if rows else ():
            if number not in known:
                planned = plan.at(*plan.position(number))
                if rows.get(planned.backend) in planned.rows.tolist():
                    found.append(number)
        return found

    def _recorded(self, steps: list[int], notes: list[str]) -> list[ExplainedStep]:
        if not steps:
            return []
        records = read_ledger(*self.ledgers, first=steps[0], last=steps[-1])
        notes += self._mismatches(records)
        budget, found = MOST_SAMPLES, []
        for number in steps:
            step = self._step(number, records.get(number), budget)
            budget -= len(step.samples)
            found.append(step)
        return found

    def _mismatches(self, records: Mapping[int, RecordedStep]) -> list[str]:
        """Say where catalog or plan are no longer those that the ledger was written with."""
        now = {each.name: each.identity for each in self.data.plan.backends}
        abouts = {each.about.fingerprint: each.about for each in records.values()}
        lines = []
        for about in abouts.values():
            changed = [n for n, identity in about.identities.items() if now.get(n) != identity]
            if changed:
                lines.append(
                    f"the samples of {', '.join(changed)} are not those that the ledger was "
                    "written with (some were added, removed or changed): row numbers on record "
                    "may stand for other samples now, and keys shown of them may be wrong"
                )
            elif about.fingerprint != self.data.plan.fingerprint:
                lines.append(
                    "the plan is not the one that the ledger was written with (an exclusion "
                    f"since, or another setting; {about.fingerprint[:12]} then, "
                    f"{self.data.plan.fingerprint[:12]} now): samples are those on record, the "
                    "reasons are those of the plan as it is now"
                )
        return lines

    def _step(self, number: int, recorded: RecordedStep | None, budget: int) -> ExplainedStep:
        plan = self.data.plan
        epoch, place = plan.position(number)
        planned, reasons = plan.at(epoch, place), plan.explain(epoch, place)
        names = [each.name for each in plan.backends]
        at = names.index(planned.backend)
        choices = tuple(
            BackendChoice(
                name, reasons["weights"][name], reasons["shares"][name], reasons["counts"][name],
                reasons["owed"][name], None if plan.ending.carries else reasons["left"][name],
                reasons["windows"][name],
            )
            for name in names
        )  # fmt: skip
        agrees = recorded is None or self._agree(planned, recorded)
        backend = recorded.backend if recorded else planned.backend
        samples = self._samples(planned, recorded, agrees) if budget > 0 else []
        about = recorded.about if recorded else None
        return ExplainedStep(
            number=number + 1,
            epoch=(recorded.epoch if recorded else epoch) + 1,
            step=(recorded.step if recorded else place) + 1,
            steps=plan.steps(epoch) if agrees else 0,
            backend=backend,
            bucket=recorded.bucket if recorded else planned.bucket,
            pass_number=planned.pass_index + 1 if agrees else 0,
            passes=0 if plan.ending.carries else plan.backends[at].repeats + 1,
            fills=planned.duplicates if agrees else 0,
            since=reasons["stretch_start"] + 1,
            choices=choices if agrees else (),
            ranks=about.ranks if about else None,
            micros=about.micros if about else None,
            samples=tuple(samples),
            notes=tuple(self._notes(planned, recorded, agrees, budget)),
        )

    def _agree(self, planned: PlanStep, recorded: RecordedStep) -> bool:
        """Tell whether plan and ledger draw a step from the same bucket of the same backend."""
        if planned.backend != recorded.backend:
            return False
        return planned.backend in self.data.streams or planned.bucket == recorded.bucket

    def _samples(
        self, planned: PlanStep, recorded: RecordedStep | None, agrees: bool
    ) -> list[ExplainedSample]:
        backend = recorded.backend if recorded else planned.backend
        source = self.data.sources.get(backend)
        if source is None:
            samples = of_stream(recorded)
        else:
            epoch = recorded.epoch if recorded else planned.epoch
            rows = recorded.rows if recorded else planned.rows
            samples = samples_of(rows, source, seed=self.data.seed, epoch=epoch)
        if recorded is not None:
            samples = with_layout(samples, recorded)
        if agrees and source is not None:
            samples = with_exclusions(samples, planned, self.data.plan, self.data.sources)
        return samples

    def _notes(
        self, planned: PlanStep, recorded: RecordedStep | None, agrees: bool, budget: int
    ) -> list[str]:
        notes = []
        if budget <= 0:
            notes.append(f"only {MOST_SAMPLES} samples are described at once; ask for fewer steps")
        if recorded is None:
            if planned.backend in self.data.streams:
                notes.append("samples of a stream are unknown until they are read")
            return notes
        if not agrees:
            notes.append(f"the plan as it is now takes {planned.backend}, bucket {planned.bucket}")
        if recorded.missing:
            ranks = ", ".join(map(str, recorded.missing))
            notes.append(f"of rank {ranks} this step is not, or not wholly, on record")
        elif agrees and planned.backend not in self.data.streams:
            other = _unlike(planned, recorded)
            if other:
                notes.append(f"the plan as it is now has other samples at {plural(other, 'place')}")
        return notes

    def _exclude(
        self, steps: Sequence[ExplainedStep], ids: Sequence[str], on_record: NDArray[np.int64],
        notes: list[str],
    ) -> str:  # fmt: skip
        """Return the line to paste: for a sample from now on, for a step from that step on."""
        from_step = int(on_record[-1]) + 2 if on_record.size else 1
        named = list(ids)
        if not ids and steps:
            from_step = steps[0].number
            used = (
                f"{step.backend}{MARK}{sample.key}"
                for step in steps
                for sample in step.samples
                if sample.key and step.backend in self.data.sources
            )
            named = list(dict.fromkeys(used))
        kept = self.data.exclude
        gone = {each for one in kept if one.from_step <= from_step for each in one.ids}
        named = [each for each in named if gone.isdisjoint((each, each.partition(MARK)[2]))]
        if len(named) > NAMED:
            notes.append(f"the line to paste names the first {NAMED} of {len(named)} samples")
        return exclude_line(named[:NAMED], from_step, kept) if named else ""

    def _key(self, backend: str, row: int) -> str:
        return self.data.sources[backend].catalog.facts.key(row)


def _unlike(planned: PlanStep, recorded: RecordedStep) -> int:
    """Count the places at which a plan has other rows than were used or replaced."""
    used = recorded.rows.copy()
    if len(used) != len(planned.rows):
        return max(len(used), len(planned.rows))
    for micro in recorded.micros:
        for one in micro.replaced:
            used[one.place] = one.row
    return int((used != planned.rows).sum())
