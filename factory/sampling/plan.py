"""The plan: the samples of any step of any epoch, as a pure function of the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow, check_windows
from factory.sampling.epoch_end import EpochEnd, EpochRule
from factory.sampling.epoch_schedule import EpochSchedule, ScheduleStretch
from factory.sampling.epoch_timeline import EpochTimeline
from factory.sampling.exclusion import Excluded, ExcludedPlace, check_excluded, replace_excluded
from factory.sampling.fingerprint import describe_strategy, hash_description, hash_rows
from factory.sampling.passes import Passes, PlanBackend, ShortBatch
from factory.sampling.selection import Balanced, Selection
from factory.sampling.slider_groups import slider_groups
from factory.sampling.strategies import MixtureEntry, UniformWeighting, Weighting

# Raised whenever the same settings give another order than before, so that a checkpoint of
# the old order is not continued with the new one.
ORDER_VERSION = 1
# The same where epochs are of fixed length: since 2, balances go on over their ends.
CARRIED_VERSION = 2

_UNIFORM = UniformWeighting()
_BALANCED = Balanced()


@dataclass(frozen=True, eq=False)
class PlanStep:
    """One optimizer step.

    Attributes:
        epoch: The epoch, from 0.
        step: The step inside the epoch, from 0.
        global_step: The step since the run began, from 0.
        backend: Name of the backend it draws from.
        bucket: Name of the bucket, such as "128x96".
        rows: Row ids of the whole global batch, int64 [B].
        duplicates: How many of them only fill a short batch.
        pass_index: The pass over the backend they belong to, from 0; of the run where passes
            go on over the ends of epochs, else of the epoch.
        number: Which of the backend's batches in the epoch it is, from 0.
        slider_strength: The backend's slider strength; None where it has none.
        seed: Seed of the plan; substitutes for its rows are drawn by it.
        excluded: Places whose sample is excluded, and what stands in for it; `rows` holds that.
        barred: Rows of the backend that are excluded at this step, to be used for nothing.
    """

    epoch: int
    step: int
    global_step: int
    backend: str
    bucket: str
    rows: NDArray[np.int64]
    duplicates: int
    pass_index: int
    number: int = 0
    slider_strength: float | None = None
    seed: int = 0
    excluded: tuple[ExcludedPlace, ...] = ()
    barred: frozenset[int] = frozenset()


@dataclass(frozen=True)
class BackendCounts:
    """What one backend gives in an epoch, or in some steps of it in a row.

    Attributes:
        backend: Its name.
        batches: Global batches.
        rows: Samples, duplicates included.
        duplicates: Samples given only to fill short batches.
        dropped: Samples left out of completed passes by short_batch=drop.
        requested: Share of the steps that its weight asks for, 0 to 1: averaged over the
            steps, as the shares change whenever a backend leaves, fades or comes in.
        achieved: Share of the steps it serves, 0 to 1.
    """

    backend: str
    batches: int
    rows: int
    duplicates: int
    dropped: int
    requested: float
    achieved: float


@dataclass(frozen=True, eq=False)
class _OpenEpoch:
    """An epoch being asked about.

    Attributes:
        epoch: The epoch, from 0.
        start: Global step at which it begins, from 0.
        length: Its optimizer steps.
        schedule: Its order of backends.
        before: Batches of each backend's passes that lie before it; None where they begin with it.
    """

    epoch: int
    start: int
    length: int
    schedule: EpochSchedule
    before: list[int] | None

    def place(self, backend: int, number: int) -> tuple[int, int]:
        """Return (epoch that seeds a backend's passes, batch of these passes)."""
        if self.before is None:
            return self.epoch, number
        return 0, self.before[backend] + number


class Plan:
    """The order of samples, as a pure function of (seed, epoch, step).

    Nothing here depends on ranks, threads, workers or on what was asked before. When an epoch
    ends is said in `factory.sampling.epoch_end.EpochEnd`. Safe to ask from several threads; a
    pickled plan carries its arguments only.
    """

    def __init__(
        self,
        backends: Sequence[PlanBackend],
        *,
        batch_size: int,
        seed: int,
        weighting: Weighting = _UNIFORM,
        selection: Selection = _BALANCED,
        short_batch: ShortBatch = "fill",
        epoch: EpochRule = "all_exhausted",
        epoch_steps: int | None = None,
        exclude: Mapping[str, Excluded] | None = None,
    ) -> None:
        """Lay out a plan; reads the offsets of the backends, not their rows.

        Args:
            backends: Where samples come from. Their order decides between equals.
            batch_size: Samples of a global batch, over all ranks and micro-batches.
            seed: Seed of every shuffle and draw.
            weighting: How probabilities become weights.
            selection: How weights become a sequence of backends.
            short_batch: What becomes of the last batch of a bucket, see `Passes`.
            epoch: The rule by which epochs end, see `EpochEnd`.
            epoch_steps: Length of every epoch in optimizer steps; None for the rule.
            exclude: Rows left out from a step on, by the name of their backend.

        Raises:
            PlanError: The backends cannot be planned; names the setting and what fixes it.
        """
        _check(backends, batch_size)
        self.backends = tuple(backends)
        self.batch_size, self.seed = batch_size, seed
        self.weighting, self.selection = weighting, selection
        self.short_batch = short_batch
        self.ending = EpochEnd(epoch, epoch_steps)
        self.exclude = dict(exclude or {})
        check_excluded(backends, self.exclude)
        self._passes = [Passes(each, batch_size, short_batch, seed) for each in backends]
        self.weights = self._weigh()
        names = [each.name for each in backends]
        windows = [each.window for each in backends]
        takes_part = zip(names, windows, self.weights, strict=True)
        check_windows({name: window for name, window, weight in takes_part if weight > 0})
        quotas = np.array([each.per_epoch for each in self._passes], dtype=np.int64)
        groups = slider_groups([each.slider_strength for each in backends])
        self._epochs = EpochTimeline(
            names, windows, quotas, self.weights, selection, seed, self.ending, groups
        )
        self._opened: _OpenEpoch | None = None  # the epoch asked for last

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; what was played is played again where it is needed."""
        rebuild = partial(
            Plan,
            batch_size=self.batch_size,
            seed=self.seed,
            weighting=self.weighting,
            selection=self.selection,
            short_batch=self.short_batch,
            epoch=self.ending.rule,
            epoch_steps=self.ending.steps,
            exclude=self.exclude,
        )
        return rebuild, (self.backends,)

    def steps(self, epoch: int) -> int:
        """Return the length of an epoch, from 0, in optimizer steps.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        return self._epochs.length(epoch)

    def at(self, epoch: int, step: int) -> PlanStep:
        """Return any step of any epoch; both count from 0.

        Raises:
            PlanError: The step is outside the epoch, or no backend is active in it.
        """
        opened = self._open(epoch, step)
        index, number = opened.schedule.find(step)
        batch = self._passes[index].batch(*opened.place(index, number))
        backend = self.backends[index]
        planned = PlanStep(
            epoch,
            step,
            opened.start + step,
            backend.name,
            batch.bucket,
            batch.rows,
            batch.duplicates,
            batch.pass_index,
            number,
            backend.slider_strength,
            self.seed,
        )
        return self._without_excluded(planned, index) if self.exclude else planned

    @property
    def alike(self) -> bool:
        """Whether all epochs are equally long, as far as that is known without playing them."""
        return self._epochs.alike

    def position(self, global_step: int) -> tuple[int, int]:
        """Return (epoch, step inside it) of a global step; all count from 0.

        Raises:
            PlanError: No backend is active in an epoch on the way.
        """
        return self._epochs.position(global_step)

    def given(self, epoch: int, step: int) -> dict[str, int]:
        """Count the batches each backend gives in an epoch before a step, by name.

        Args:
            epoch: The epoch, from 0.
            step: The step, from 0 to the epoch's length.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        counts = self._epochs.schedule(epoch).counts(step).tolist()
        return {each.name: count for each, count in zip(self.backends, counts, strict=True)}

    def steps_before(self, epoch: int) -> int:
        """Count the optimizer steps of all epochs before one, which need not exist itself.

        Raises:
            PlanError: No backend is active in an epoch before it.
        """
        if not epoch:
            return 0
        return self._epochs.start(epoch - 1) + self._epochs.length(epoch - 1)

    def prepare(self, epoch: int) -> None:
        """Play an epoch's mixture to its end, so that every later question is answered at once.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        self._epochs.schedule(epoch).play(self.steps(epoch))

    def stretches(self, epoch: int) -> list[ScheduleStretch]:
        """Return the parts of an epoch in which backends and weights stay the same.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        return self._epochs.schedule(epoch).stretches()

    def shares(self, epoch: int) -> list[tuple[int, int, list[BackendCounts]]]:
        """Count what each backend gives in every stretch of an epoch.

        Returns:
            For each stretch (its first step, the step after its last one, accounts in the
            order of the backends).

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        firsts = [stretch.first for stretch in self.stretches(epoch)]
        edges = zip(firsts, [*firsts[1:], self.steps(epoch)], strict=True)
        return [(first, last, self.accounting(epoch, first, last)) for first, last in edges]

    def schedule_hash(self, epoch: int) -> str:
        """Hash which backend serves each step of an epoch: 32 hex digits.

        Unlike `fingerprint` it tells whether the mixture is the same, whatever the rows.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        return self._epochs.schedule(epoch).digest(self.steps(epoch))

    def accounting(
        self, epoch: int, first: int = 0, last: int | None = None
    ) -> list[BackendCounts]:
        """Count what each backend gives in an epoch, in the order of the backends.

        Args:
            epoch: The epoch, from 0.
            first: The first step that counts, from 0.
            last: The step after the last one that counts; None for the whole epoch.

        Raises:
            PlanError: No backend is active in this epoch or in one before it, or the steps
                are not inside it.
        """
        end = self.steps(epoch) if last is None else last
        self._open(epoch, first)
        opened = self._open(epoch, end - 1)
        before, after = opened.schedule.counts(first), opened.schedule.counts(end)
        asked, steps = opened.schedule.asked(first, end), max(end - first, 1)
        return [
            BackendCounts(
                each.name,
                int(after[index] - before[index]),
                **self._tally(opened, index, int(before[index]), int(after[index])),
                requested=float(asked[index]) / steps,
                achieved=float(after[index] - before[index]) / steps,
            )
            for index, each in enumerate(self.backends)
        ]

    def _tally(self, opened: _OpenEpoch, index: int, first: int, last: int) -> dict[str, int]:
        """Count the samples of some batches of a backend: rows, duplicates, dropped."""
        passes = self._passes[index]
        more, less = (
            asdict(passes.tally(*opened.place(index, number))) for number in (last, first)
        )
        return {name: more[name] - less[name] for name in more}

    def explain(self, epoch: int, step: int) -> dict[str, Any]:
        """Say why a step draws from its backend, in values that JSON can hold.

        Returns:
            The fields of `PlanStep`, and: "stretch_start", the step since which backends and
            weights are the same, below 0 for one of an epoch before; and for each backend by name
            "weights" and "shares" (0 for those not taking part), "counts", batches since then
            before this step, "owed", batches its share asks for by the end of this step less its
            count, "left", batches until it has given all it holds in this epoch, and "windows".

        Raises:
            PlanError: The step is outside the epoch, or no backend is active in it.
        """
        schedule = self._open(epoch, step).schedule
        planned = self.at(epoch, step)
        stretch = schedule.stretches(step)[-1]
        given = schedule.counts(step)
        since = given - stretch.counts + stretch.carried
        asked = stretch.shares * stretch.carried.sum() + schedule.asked(stretch.first, step + 1)
        owed = asked - since
        quotas = np.array([passes.per_epoch for passes in self._passes])
        names = [each.name for each in self.backends]

        def named(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(names, values.tolist(), strict=True))

        return {
            **vars(planned),
            "rows": planned.rows.tolist(),
            "excluded": [vars(swap) for swap in planned.excluded],
            "barred": sorted(planned.barred),
            "stretch_start": stretch.first - int(stretch.carried.sum()),
            "weights": named(schedule.weights(stretch, step)),
            "shares": named(schedule.asked(step, step + 1)),
            "counts": named(since),
            "owed": named(owed),
            "left": named(np.maximum(quotas - given, 0)),
            "windows": {each.name: str(each.window) for each in self.backends},
        }

    def describe(self) -> dict[str, Any]:
        """Return everything that shapes the order, nested by key, in values for JSON.

        Two plans of equal description give equal steps; see `difference` for what differs. The
        key "exclude" is there only if rows are: an entry whose "from_step", counted from 1, lies
        beyond the steps completed changes nothing about them.
        """
        entries = [
            one for name in sorted(self.exclude) for one in self.exclude[name].describe(name)
        ]
        return {
            **({"exclude": entries} if entries else {}),
            "order_version": ORDER_VERSION if self.ending.steps is None else CARRIED_VERSION,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "short_batch": str(self.short_batch),
            "weighting": describe_strategy(self.weighting),
            "selection": describe_strategy(self.selection),
            **_set(epoch=None if self.ending.rule == EpochEnd().rule else str(self.ending.rule)),
            **_set(epoch_steps=self.ending.steps),
            "backend_order": [each.name for each in self.backends],
            "backends": {
                each.name: {
                    "buckets": dict(zip(each.buckets, each.sizes.tolist(), strict=True)),
                    "rows": self._row_hashes[each.name],
                    "identity": each.identity,
                    "probability": each.probability,
                    "repeats": each.repeats,
                    "batch_size": passes.batch_size,
                    "window": _described(each.window),
                    **_set(slider_strength=each.slider_strength),
                }
                for each, passes in zip(self.backends, self._passes, strict=True)
            },
        }

    def _without_excluded(self, planned: PlanStep, index: int) -> PlanStep:
        """Replace what is excluded at a step; `index` is the place of its backend."""
        excluded = self.exclude.get(planned.backend)
        barred = excluded.at(planned.global_step) if excluded else frozenset()
        if not barred:
            return planned
        rows, swaps = replace_excluded(
            self.backends[index], barred, planned.rows,
            seed=self.seed, epoch=planned.epoch, number=planned.number, bucket=planned.bucket,
        )  # fmt: skip
        return replace(planned, rows=rows, excluded=swaps, barred=barred)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that shapes the order, 32 hex digits; reads all row ids once."""
        return hash_description(self.describe())

    @cached_property
    def _row_hashes(self) -> dict[str, str]:
        return {each.name: hash_rows(each.order) for each in self.backends}

    def _open(self, epoch: int, step: int) -> _OpenEpoch:
        """Return the epoch of a step inside it."""
        opened = self._opened
        if opened is None or opened.epoch != epoch:
            epochs = self._epochs
            before = epochs.before(epoch).tolist() if self.ending.carries else None
            start, length = epochs.start(epoch), epochs.length(epoch)
            opened = _OpenEpoch(epoch, start, length, epochs.schedule(epoch), before)
            self._opened = opened
        if not 0 <= step < opened.length:
            raise PlanError(f"epoch {epoch} has the steps 0 to {opened.length - 1}, got {step}")
        return opened

    def _weigh(self) -> NDArray[np.float64]:
        pairs = zip(self.backends, self._passes, strict=True)
        entries = [MixtureEntry(each.name, each.probability, run.per_epoch) for each, run in pairs]
        weights = np.asarray(self.weighting.weights(entries), dtype=np.float64)
        if weights.shape != (len(entries),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise PlanError(
                f"{self.weighting!r} must give {len(entries)} weights of 0 or more, one for each "
                f"backend; got {weights.tolist()}"
            )
        if not weights.any():
            names = ", ".join(entry.name for entry in entries)
            raise PlanError(f"all weights are zero; set probability above 0 for one of: {names}")
        return weights


def _described(window: ActiveWindow) -> dict[str, Any]:
    """Return a window's bounds; those of a fade only where there is one.

    What was added later is left out where it is not used, so that fingerprints stay. 0 and 1
    both mean the first step.
    """
    bounds = asdict(window)
    for name in ("start_step", "fade_from_step"):
        bounds[name] = 0 if bounds[name] == 1 else bounds[name]
    if window.fade is None:
        del bounds["fade_from_step"], bounds["fade_to_step"]
    return bounds


def _set(**values: Any) -> dict[str, Any]:
    """Return the settings that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _check(backends: Sequence[PlanBackend], batch_size: int) -> None:
    if not backends:
        raise PlanError("there is no backend to train on; add one under data.backends")
    names = [each.name for each in backends]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"backend names must differ; used twice: {', '.join(twice)}")
    if batch_size < 1:
        raise PlanError(f"batch_size must be 1 or more, got {batch_size}")
