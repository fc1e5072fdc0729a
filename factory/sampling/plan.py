"""Which samples make up any step of any epoch?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.course import Course, Stretch
from factory.sampling.epochs import Epochs
from factory.sampling.exclusion import Excluded, Swap, check_excluded, stand_ins
from factory.sampling.fingerprint import describe_strategy, hash_description, hash_rows
from factory.sampling.passes import Passes, PlanBackend, ShortBatch
from factory.sampling.schedule import check_windows
from factory.sampling.selection import Balanced, Selection
from factory.sampling.weights import MixtureEntry, UniformWeighting, Weighting

# Raised whenever the same settings give another order than before, so that a checkpoint of
# the old order is not continued with the new one.
ORDER_VERSION = 1

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
        pass_index: The pass over the backend they belong to, from 0.
        number: Which of the backend's batches in the epoch it is, from 0.
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
    seed: int = 0
    excluded: tuple[Swap, ...] = ()
    barred: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Account:
    """What one backend gives in one epoch.

    Attributes:
        backend: Its name.
        batches: Global batches.
        rows: Samples, duplicates included.
        duplicates: Samples given only to fill short batches.
        dropped: Samples left out of completed passes by short_batch=drop.
        requested: Share of the epoch's steps that its weight asks for, 0 to 1: averaged over
            the steps, as the shares change whenever a backend leaves or a window opens.
        achieved: Share of the epoch's steps it serves, 0 to 1.
    """

    backend: str
    batches: int
    rows: int
    duplicates: int
    dropped: int
    requested: float
    achieved: float


class Plan:
    """The order of samples, as a pure function of (seed, epoch, step).

    Nothing here depends on ranks, threads, workers or on what was asked before. A backend
    leaves an epoch after `repeats + 1` passes or when its window closes; the epoch ends when
    all have left. Safe to ask from several threads; a pickled plan carries its arguments only.
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
            exclude: Rows left out from a step on, by the name of their backend.

        Raises:
            PlanError: The backends cannot be planned; names the setting and what mends it.
        """
        _check(backends, batch_size)
        self.backends = tuple(backends)
        self.batch_size = batch_size
        self.seed = seed
        self.weighting = weighting
        self.selection = selection
        self.short_batch = short_batch
        self.exclude = dict(exclude or {})
        check_excluded(backends, self.exclude)
        self._passes = [Passes(each, batch_size, short_batch, seed) for each in backends]
        self.weights = self._weigh()
        names = [each.name for each in backends]
        windows = [each.window for each in backends]
        takes_part = zip(names, windows, self.weights, strict=True)
        check_windows({name: window for name, window, weight in takes_part if weight > 0})
        quotas = np.array([each.per_epoch for each in self._passes], dtype=np.int64)
        self._epochs = Epochs(names, windows, quotas, self.weights, selection, seed)
        # The epoch asked for last: (epoch, its first global step, its length, its course).
        self._opened: tuple[int, int, int, Course] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; what was played is played again where it is needed."""
        rebuild = partial(
            Plan,
            batch_size=self.batch_size,
            seed=self.seed,
            weighting=self.weighting,
            selection=self.selection,
            short_batch=self.short_batch,
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
        start, course = self._open(epoch, step)
        index, number = course.find(step)
        batch = self._passes[index].batch(epoch, number)
        planned = PlanStep(
            epoch=epoch,
            step=step,
            global_step=start + step,
            backend=self.backends[index].name,
            bucket=batch.bucket,
            rows=batch.rows,
            duplicates=batch.duplicates,
            pass_index=batch.pass_index,
            number=number,
            seed=self.seed,
        )
        return self._without_excluded(planned, index) if self.exclude else planned

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
        counts = self._epochs.course(epoch).counts(step).tolist()
        return {each.name: count for each, count in zip(self.backends, counts, strict=True)}

    def prepare(self, epoch: int) -> None:
        """Play an epoch's mixture to its end, so that every later question is answered at once.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        self._epochs.course(epoch).play(self.steps(epoch))

    def stretches(self, epoch: int) -> list[Stretch]:
        """Return the parts of an epoch in which backends and weights stay the same.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        return self._epochs.course(epoch).stretches()

    def accounting(self, epoch: int) -> list[Account]:
        """Count what each backend gives in an epoch, in the order of the backends.

        Raises:
            PlanError: No backend is active in this epoch or in one before it.
        """
        steps = self.steps(epoch)
        course = self._epochs.course(epoch)
        requested = np.zeros(len(self.backends))
        stretches = course.stretches()
        ends = [stretch.first for stretch in stretches[1:]] + [steps]
        for stretch, end in zip(stretches, ends, strict=True):
            requested += stretch.shares * (end - stretch.first)
        accounts = []
        for index, batches in enumerate(course.counts(steps).tolist()):
            tally = asdict(self._passes[index].tally(epoch, batches))
            name, asked = self.backends[index].name, float(requested[index]) / steps
            share = batches / steps
            accounts.append(Account(name, batches, requested=asked, achieved=share, **tally))
        return accounts

    def explain(self, epoch: int, step: int) -> dict[str, Any]:
        """Say why a step draws from its backend, in values that JSON can hold.

        Returns:
            The fields of `PlanStep`, and: "stretch_start", the step since which backends and
            weights are the same; and for each backend by name "weights" and "shares" (0 for
            those not taking part), "counts", batches since then before this step, "owed",
            batches its share asks for by the end of this step less its count, "left", batches
            until it leaves the epoch, and "windows".

        Raises:
            PlanError: The step is outside the epoch, or no backend is active in it.
        """
        _, course = self._open(epoch, step)
        planned = self.at(epoch, step)
        stretch = course.stretches(step)[-1]
        given = course.counts(step)
        since = given - stretch.counts
        owed = stretch.shares * (step - stretch.first + 1) - since
        quotas = np.array([passes.per_epoch for passes in self._passes])
        names = [each.name for each in self.backends]

        def named(values: NDArray[Any]) -> dict[str, Any]:
            return dict(zip(names, values.tolist(), strict=True))

        return {
            **vars(planned),
            "rows": planned.rows.tolist(),
            "excluded": [vars(swap) for swap in planned.excluded],
            "barred": sorted(planned.barred),
            "stretch_start": stretch.first,
            "weights": named(stretch.weights),
            "shares": named(stretch.shares),
            "counts": named(since),
            "owed": named(owed),
            "left": named(quotas - given),
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
            "order_version": ORDER_VERSION,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "short_batch": str(self.short_batch),
            "weighting": describe_strategy(self.weighting),
            "selection": describe_strategy(self.selection),
            "backend_order": [each.name for each in self.backends],
            "backends": {
                each.name: {
                    "buckets": dict(zip(each.buckets, each.sizes.tolist(), strict=True)),
                    "rows": self._row_hashes[each.name],
                    "identity": each.identity,
                    "probability": each.probability,
                    "repeats": each.repeats,
                    "batch_size": passes.batch_size,
                    "window": asdict(each.window),
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
        rows, swaps = stand_ins(
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

    def _open(self, epoch: int, step: int) -> tuple[int, Course]:
        """Return (global step at which the epoch begins, its course) for a step inside it."""
        opened = self._opened
        if opened is None or opened[0] != epoch:
            start, length = self._epochs.start(epoch), self._epochs.length(epoch)
            opened = self._opened = (epoch, start, length, self._epochs.course(epoch))
        _, start, length, course = opened
        if not 0 <= step < length:
            raise PlanError(f"epoch {epoch} has the steps 0 to {length - 1}, got {step}")
        return start, course

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


def _check(backends: Sequence[PlanBackend], batch_size: int) -> None:
    if not backends:
        raise PlanError("there is no backend to train on; add one under data.backends")
    names = [each.name for each in backends]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"backend names must differ; used twice: {', '.join(twice)}")
    if batch_size < 1:
        raise PlanError(f"batch_size must be 1 or more, got {batch_size}")
