"""Timeline of epochs: the global step at which each begins, and its length."""

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.epoch_end import EpochEnd
from factory.sampling.epoch_schedule import Balance, EpochSchedule, Span
from factory.sampling.permutation import derive_key
from factory.sampling.selection import Selection
from factory.sampling.slider_groups import Turns

# Courses kept ready: the epoch being trained, the one prefetched, and two looked at.
KEPT_SCHEDULES = 4


@dataclass(frozen=True, eq=False)
class _Run:
    """Epochs in a row of one length, all without a window's edge inside.

    Attributes:
        epoch: The first of them, from 0.
        start: Global step at which that one begins, from 0.
        length: Optimizer steps of each.
        count: How many there are; infinity if nothing ever changes again.
        before: Batches each backend gave before the first of them, where passes go on over the
            ends of epochs; else zeros. int64 [k].
        balance: What the first of them goes on with; None to begin a balance.
    """

    epoch: int
    start: int
    length: int
    count: float
    before: NDArray[np.int64]
    balance: Balance | None = None

    @property
    def epoch_end(self) -> float:
        """The epoch after the run."""
        return self.epoch + self.count

    @property
    def step_end(self) -> float:
        """The global step after the run."""
        return self.start + self.count * self.length


class EpochTimeline:
    """Lays epochs end to end on the axis of global steps.

    Windows are set in global steps, so where an epoch begins can change what is in it. Epochs
    between two edges of windows are alike, so any epoch is reached in as many moves as there
    are edges, not epochs. The exceptions are fades, where each epoch has weights of its own,
    and selections seeded by epoch under a rule that makes lengths or counts depend on them:
    there, the epochs on the way are played once. Of epochs of fixed length each goes on with the
    balance of the one before, lest a backend whose share is below half a batch of each never
    comes; far ones are counted, see `factory.sampling.slider_groups.Turns.given`.
    """

    def __init__(
        self,
        names: Sequence[str],
        windows: Sequence[ActiveWindow],
        quotas: NDArray[np.int64],
        weights: NDArray[np.float64],
        selection: Selection,
        seed: int,
        ending: EpochEnd,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        """Describe the backends, k of each.

        Args:
            names: Names, for messages.
            windows: When each takes part.
            quotas: int64 [k], batches that exhaust each in an epoch.
            weights: float64 [k], 0 or more.
            selection: How weights become a sequence.
            seed: Seed of the plan.
            ending: When an epoch ends.
            groups: int64 [k], groups that take turns; None where nothing rotates.
        """
        self._ending, self._groups = ending, groups
        self._names = list(names)
        self._windows = list(windows)
        self._quotas = quotas
        self._weights = weights
        self._selection = selection
        self._seed = seed
        self._longest = ending.longest(quotas)
        self._lock = threading.Lock()
        self._runs: list[_Run] = []
        self._given: dict[int, NDArray[np.int64]] = {}
        self._kept = threading.Lock()
        self._schedules: dict[tuple[tuple[Span | None, ...], int, int], EpochSchedule] = {}

    def start(self, epoch: int) -> int:
        """Return the global step, from 0, at which an epoch begins.

        Raises:
            PlanError: An epoch up to this one has no active backend.
        """
        run = self._run(epoch)
        return run.start + (epoch - run.epoch) * run.length

    def length(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch.

        Raises:
            PlanError: An epoch up to this one has no active backend.
        """
        return self._run(epoch).length

    def position(self, global_step: int) -> tuple[int, int]:
        """Return (epoch, step inside it) of a global step; all count from 0.

        Raises:
            PlanError: An epoch on the way has no active backend.
        """
        if global_step < 0:
            raise PlanError(f"global steps count from 0, got {global_step}")
        self._extend(lambda run: run.step_end <= global_step)
        at = bisect_right(self._runs, global_step, key=lambda run: run.start) - 1
        run = self._runs[at]
        epochs, step = divmod(global_step - run.start, run.length)
        return run.epoch + epochs, step

    def schedule(self, epoch: int) -> EpochSchedule:
        """Return the order of backends in an epoch.

        Raises:
            PlanError: An epoch before this one has no active backend.
        """
        run = self._run(epoch)
        return self._schedule(epoch, run.start + (epoch - run.epoch) * run.length, run)

    def before(self, epoch: int) -> NDArray[np.int64]:
        """Return the batches each backend gave in the passes that an epoch goes on with.

        Zeros, int64 [k], where every epoch begins its passes anew.

        Raises:
            PlanError: An epoch before this one has no active backend.
        """
        run = self._run(epoch)
        return run.before + self._given_by(run, epoch)

    @property
    def alike(self) -> bool:
        """Whether all epochs are equally long."""
        opened = all(window == ActiveWindow() for window in self._windows)
        if self._ending == EpochEnd() or not self._selection.seeded:
            return opened
        return opened and self._ending.steps is not None

    def _given_by(self, run: _Run, epoch: int) -> NDArray[np.int64]:
        """Return the batches of each backend in a run before one of its epochs, int64 [k].

        Zeros where every epoch begins its passes anew.
        """
        nothing = np.zeros_like(self._quotas)
        if not self._ending.carries or epoch == run.epoch:
            return nothing
        first = self._schedule(run.epoch, run.start, run)
        if run.count == 1:
            return first.counts(run.length)
        stretch = first.stretches(0)[0]  # the only one, of every epoch of the run
        with self._kept:
            near = {at: sums for at, sums in self._given.items() if run.epoch < at <= epoch}
        known = max(near, default=run.epoch)
        given = near.get(known, nothing)
        active, done = stretch.active, (known - run.epoch) * run.length
        found = nothing.copy()
        found[active] = self._turns(run.epoch).given(
            active, stretch.weights[active], (stretch.carried + given)[active],
            run.start + done, (epoch - run.epoch) * run.length - done,
        ) - stretch.carried[active]  # fmt: skip
        with self._kept:
            if len(self._given) >= KEPT_SCHEDULES:
                self._given.pop(next(iter(self._given)))
            self._given[epoch] = found
        return found

    def _balance(self, run: _Run, epoch: int) -> Balance | None:
        """Return the balance with which an epoch of a run begins."""
        if not self._ending.carries or epoch == run.epoch:
            return run.balance
        first = self._schedule(run.epoch, run.start, run).stretches(0)[0]
        return Balance(first.active, first.carried + self._given_by(run, epoch))

    def _run(self, epoch: int) -> _Run:
        if epoch < 0:
            raise PlanError(f"epochs count from 0, got {epoch}")
        self._extend(lambda run: run.epoch_end <= epoch)
        at = bisect_right(self._runs, epoch, key=lambda run: run.epoch) - 1
        return self._runs[at]

    def _extend(self, short: Callable[[_Run], bool]) -> None:
        """Add runs until the last one no longer falls short."""
        with self._lock:
            while not self._runs or short(self._runs[-1]):
                self._runs.append(self._next_run())

    def _next_run(self) -> _Run:
        nothing = np.zeros(len(self._names), dtype=np.int64)
        last = self._runs[-1] if self._runs else _Run(0, 0, 0, 0, nothing)
        epoch, start = int(last.epoch_end), int(last.step_end)
        before, balance = last.before, None
        if self._ending.carries and last.count:
            before = before + self._given_by(last, epoch)
            at = start - last.length
            balance = self._schedule(epoch - 1, at, last).balance(last.length)
        run = _Run(epoch, start, 0, 1, before, balance)
        length = self._schedule(epoch, start, run).length
        if not length:
            raise PlanError(self._nobody(epoch, start))
        return replace(run, length=length, count=self._alike(epoch, start, length))

    def _alike(self, epoch: int, start: int, length: int) -> float:
        """Count the epochs from this one that end before anything opens or closes."""
        if self._selection.seeded and self._ending != EpochEnd():
            return 1  # epochs of one length by chance, if at all
        counts = []
        for window in self._windows:
            if window.fade is not None and window.fade[0] < start + length:
                # Inside a fade no two epochs are alike; after it nothing is left to change.
                counts += [1] if start < window.fade[1] else []
            edges = [window.start_epoch - 1, *([window.end_epoch] if window.end_epoch else [])]
            counts += [edge - epoch for edge in edges if edge > epoch]
            steps = [window.first_step, window.steps_end(0), *(window.fade or ())]
            # One step short: a window that opens just as an epoch ends makes it longer.
            counts += [max((edge - 1 - start) // length, 1) for edge in steps if edge > start]
        return min(counts, default=math.inf)

    def _schedule(self, epoch: int, start: int, run: _Run) -> EpochSchedule:
        """Return the schedule of an epoch of a run that begins at a global step."""
        turns, spans = self._turns(epoch), self._spans(epoch, start)
        begins = start if self._ending.carries else 0
        with self._kept:
            schedule = self._schedules.get((spans, turns.key, begins))
        if schedule is not None:
            return schedule
        balance = self._balance(run, epoch)
        schedule = EpochSchedule(
            self._quotas, spans, self._weights, turns, self._ending, begins, balance
        )
        with self._kept:
            if len(self._schedules) >= KEPT_SCHEDULES:
                self._schedules.pop(next(iter(self._schedules)))
            return self._schedules.setdefault((spans, turns.key, begins), schedule)

    def _turns(self, epoch: int) -> Turns:
        seeded = self._selection.seeded
        key = derive_key(self._seed, epoch, "selection") if seeded else 0
        return Turns(self._selection, key, self._groups)

    def _spans(self, epoch: int, start: int) -> tuple[Span | None, ...]:
        return tuple(self._span(window, epoch, start) for window in self._windows)

    def _span(self, window: ActiveWindow, epoch: int, start: int) -> Span | None:
        """Return the steps of an epoch inside a window; None if there are none.

        Cut to the longest an epoch can be, so that epochs which differ only in how far away
        an edge lies share one schedule.
        """
        opens = max(window.first_step - start, 0)
        closes = min(window.steps_end(start + self._longest) - start, self._longest)
        if not window.in_epoch(epoch + 1) or opens >= closes:
            return None
        fade = window.fade
        if fade is None or fade[0] - start >= self._longest:
            return Span(opens, closes)
        return Span(opens, closes, (fade[0] - start, fade[1] - start))

    def _nobody(self, epoch: int, start: int) -> str:
        shown = "; ".join(
            f"{name}: {window}" + ("" if weight > 0 else ", weight 0")
            for name, window, weight in zip(self._names, self._windows, self._weights, strict=True)
        )
        return (
            f"no backend is active in epoch {epoch + 1}, which begins with step {start + 1}; "
            f"end the run before it, or widen a window ({shown})"
        )
