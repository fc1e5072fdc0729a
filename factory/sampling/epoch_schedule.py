"""Schedule of one epoch: the backend of each step, and which of its batches the step takes."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.epoch_end import MOST_STEPS, EpochEnd
from factory.sampling.selection import FADE_BLOCK, fade_factors
from factory.sampling.slider_groups import Turns

# Totals are noted every so many steps; a look-up counts at most this many bytes past a note.
NOTE_EVERY = 1024
# Played at the first question; each later stretch of play at least doubles what is known.
FIRST_PLAY = 4096
# Least choices asked for when a backend is about to run out, so that a random selection,
# which can come close without finishing, does not do so one step at a time.
LEAST_PLAY = 64
# Where a schedule may be longer than this, memory grows as it is played instead of being
# reserved; what is reserved and not touched costs nothing, but some systems count it.
MOST_RESERVED = 2**28


@dataclass(frozen=True)
class Span:
    """The steps of an epoch in which a backend may serve, and in which its weight falls.

    Attributes:
        opens: First step that may draw from it, from 0.
        closes: First step that may not any more.
        fade: First step of the fade, which may lie before the epoch, and the first step at
            which nothing is left; None for a weight that stays.
    """

    opens: int
    closes: int
    fade: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ScheduleStretch:
    """A run of steps with the same active backends, whose weights stay or fall together.

    Attributes:
        first: Its first step in the epoch, from 0.
        counts: Batches each backend had given before it, int64 [k].
        active: Indices of the backends that take part, int64 [n].
        weights: Weight of every backend at its first step, 0 for those that do not take
            part, float64 [k].
        shares: Share of the steps that each backend asks for at its first step, float64 [k].
        fading: Whether a weight falls from step to step; `EpochSchedule.asked` sums such shares up.
        carried: Batches each backend gave in epochs before since the same backends began to
            take part at the same weights, where the balance goes on; else zeros. int64 [k].
    """

    first: int
    counts: NDArray[np.int64]
    active: NDArray[np.int64]
    weights: NDArray[np.float64]
    shares: NDArray[np.float64]
    fading: bool
    carried: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Balance:
    """What an epoch of fixed length hands to the next, so that shares hold over its end.

    Attributes:
        active: Indices of the backends that take part, int64 [n].
        given: Batches each backend gave since these began to, int64 [k].
    """

    active: NDArray[np.int64]
    given: NDArray[np.int64]


class EpochSchedule:
    """The order in which k backends serve the steps of one epoch.

    Played as far as it was asked for, then kept: one byte a step (two beyond 256 backends)
    and a note of all counts every `NOTE_EVERY` steps, so that any known step is found in
    constant time. Safe to ask from several threads.
    """

    def __init__(
        self,
        quotas: NDArray[np.int64],
        spans: Sequence[Span | None],
        weights: NDArray[np.float64],
        turns: Turns,
        ending: EpochEnd,
        start: int = 0,
        balance: Balance | None = None,
    ) -> None:
        """Describe an epoch.

        Args:
            quotas: int64 [k], batches that exhaust a backend, 1 or more.
            spans: Steps in which each backend may serve; None for not at all.
            weights: float64 [k], 0 or more; a backend of weight 0 never serves.
            turns: How weights become a sequence.
            ending: When the epoch ends.
            start: Step from which selections and turns count on, from 0.
            balance: What it goes on with; None to begin a balance of its own.
        """
        self._start, self._balance = start, balance
        self._quotas, self._weights = quotas, weights
        self._turns, self._ending = turns, ending
        known = [span or Span(0, 0) for span in spans]
        self._opens = np.array([span.opens for span in known], dtype=np.int64)
        self._closes = np.array([span.closes for span in known], dtype=np.int64)
        never = (MOST_STEPS * 2, MOST_STEPS * 2 + 1)
        fades = np.array([span.fade or never for span in known], dtype=np.int64)
        self._fades, self._faded = fades[:, 0], fades[:, 1]
        self._lock = threading.Lock()
        self._most = ending.longest(quotas)
        reserved = min(self._most, MOST_RESERVED)
        # Reserved, not touched: memory is used only as far as the schedule is played.
        self._chosen = np.empty(reserved, dtype=np.min_scalar_type(max(len(quotas) - 1, 0)))
        self._notes = np.zeros((reserved // NOTE_EVERY + 1, len(quotas)), dtype=np.int64)
        self._counts = np.zeros(len(quotas), dtype=np.int64)
        self._stretches: list[ScheduleStretch] = []
        self._played = 0
        self._ended = False

    @property
    def length(self) -> int:
        """Steps of the epoch; plays it to its end unless that is known without."""
        serving = (self._weights > 0) & (self._closes > self._opens)
        whole = serving & (self._opens == 0) & (self._closes >= self._most)
        if self._ending.steps is not None and whole.any():
            return self._ending.steps
        if self._ending == EpochEnd():
            most = int(self._quotas[serving].sum())
            if (self._opens[serving] == 0).all() and (self._closes[serving] >= most).all():
                return most
        self.play(self._most + 1)
        return self._played

    def find(self, step: int) -> tuple[int, int]:
        """Return (index of the backend that serves the step, its batches before it).

        Args:
            step: A step inside the epoch, from 0.
        """
        self.play(step + 1)
        backend = self._chosen[step]
        note = step // NOTE_EVERY
        since = np.count_nonzero(self._chosen[note * NOTE_EVERY : step] == backend)
        return int(backend), int(self._notes[note, backend]) + int(since)

    def counts(self, step: int) -> NDArray[np.int64]:
        """Return the batches each backend gives before the step: int64 [k].

        Args:
            step: A step of the epoch, from 0, or the epoch's length.
        """
        self.play(step)
        note = min(step // NOTE_EVERY, len(self._notes) - 1)
        since = self._chosen[note * NOTE_EVERY : step]
        counts: NDArray[np.int64] = self._notes[note] + np.bincount(
            since, minlength=len(self._quotas)
        )
        return counts

    def stretches(self, until: int | None = None) -> list[ScheduleStretch]:
        """Return the stretches in order; with `until`, those that begin at or before it."""
        self.play(self._most + 1 if until is None else until + 1)
        return [part for part in self._stretches if until is None or part.first <= until]

    def balance(self, steps: int) -> Balance | None:
        """Return what the epoch hands on after its last step; None after a fade."""
        last = self.stretches(steps - 1)[-1]
        if last.fading:
            return None
        return Balance(last.active, last.carried + self.counts(steps) - last.counts)

    def weights(self, stretch: ScheduleStretch, step: int) -> NDArray[np.float64]:
        """Return the weights at a step of a stretch, 0 for backends without part: [k]."""
        weights: NDArray[np.float64] = self._weights_of(stretch, step, 1)[0]
        return weights

    def asked(self, first: int, last: int) -> NDArray[np.float64]:
        """Return how many batches the shares of some steps ask for: float64 [k].

        Args:
            first: The first step, from 0.
            last: The step after the last one; may be the epoch's length.
        """
        found = np.zeros(len(self._quotas))
        stretches = self.stretches(last)
        ends = [*(part.first for part in stretches[1:]), last]
        for part, end in zip(stretches, ends, strict=True):
            begin, count = max(part.first, first), min(end, last) - max(part.first, first)
            if count <= 0:
                continue
            if part.fading:
                found += self._turns.shares(self._weights_of(part, begin, count)).sum(axis=0)
            else:
                found += part.shares * count
        return found

    def digest(self, steps: int) -> str:
        """Return a hash of which backend serves each of the first steps, 32 hex digits."""
        self.play(steps)
        wide = self._chosen[:steps].astype("<u2")
        return blake2b(wide.tobytes(), digest_size=16).hexdigest()

    def play(self, steps: int) -> None:
        """Play at least the first `steps` steps, or all there are.

        Raises:
            PlanError: The epoch would become longer than `MOST_STEPS`.
        """
        if steps <= self._played:
            return
        with self._lock:
            while self._played < steps and not self._ended:
                self._play_on(steps)

    def _play_on(self, steps: int) -> None:
        """Play until a backend leaves, a window opens or closes, or enough is known."""
        stretch = self._stretch()
        if stretch is None:
            self._ended = True
            return
        active = stretch.active
        left = self._ending.left(self._quotas, self._counts)[active]
        if stretch.fading:
            weights = self._weights_of(stretch, stretch.first, self._edge(FADE_BLOCK))
            first = self._start + stretch.first
            picks = self._turns.fading(active, weights[:, active], first)
        else:
            picks = self._turns.steady(
                active,
                stretch.weights[active],
                (stretch.carried + self._counts - stretch.counts)[active],
                self._start + self._played,
                self._reach(stretch, left, steps),
            )
        picks = picks[: _until_exhaustion(picks, left)]
        self._counts[active] += np.bincount(picks, minlength=len(active))
        self._keep(active[picks])

    def _stretch(self) -> ScheduleStretch | None:
        """Return the stretch of the next step, a new one if other backends take part now."""
        step = self._played
        able = (self._opens <= step) & (step < self._closes) & (self._weights > 0)
        serving = self._ending.serving(able, self._counts >= self._quotas, step)
        active = np.flatnonzero(serving)
        if not active.size:
            return None
        fading = bool(((self._fades <= step) & serving).any())
        last = self._stretches[-1] if self._stretches else None
        if last is None or fading or last.fading or not np.array_equal(active, last.active):
            weights = np.where(serving, self._weights, 0.0)
            weights *= fade_factors(self._fades, self._faded, step, 1)[0]
            shares = self._turns.shares(weights[None])[0]
            counts, carried = self._counts.copy(), np.zeros_like(self._counts)
            before = self._balance
            goes_on = before is not None and not step and not fading
            if before is not None and goes_on and np.array_equal(active, before.active):
                carried = before.given
            self._stretches.append(
                ScheduleStretch(step, counts, active, weights, shares, fading, carried)
            )
        return self._stretches[-1]

    def _weights_of(self, stretch: ScheduleStretch, first: int, count: int) -> NDArray[np.float64]:
        """Return the weights at some steps of a stretch, float64 [count, k]."""
        if not stretch.fading:
            return np.broadcast_to(stretch.weights, (count, len(self._quotas)))
        serving = np.where(stretch.weights > 0, self._weights, 0.0)
        left = fade_factors(self._fades, self._faded, first, count)
        left *= serving
        return left

    def _edge(self, most: int) -> int:
        """Return the steps until a window opens, closes or fades, `most` at most."""
        edges = np.concatenate([self._opens, self._closes, self._fades])
        nearest = int(edges.min(initial=self._most, where=edges > self._played))
        return min(nearest - self._played, most)

    def _reach(self, stretch: ScheduleStretch, left: NDArray[np.int64], steps: int) -> int:
        """Say how far to play: never past a window's edge, and little past an exhaustion."""
        step = self._played
        until = left / stretch.shares[stretch.active]
        if self._ending.rule == "cycle" and self._ending.steps is None:
            self._check_length(stretch, np.where(left < MOST_STEPS, until, 0))
        wanted = max(steps - step, step, FIRST_PLAY)
        edge = self._edge(int(left.sum()))
        return min(edge, max(LEAST_PLAY, min(int(until.min()) + 2, wanted)))

    def _check_length(self, stretch: ScheduleStretch, until: NDArray[np.float64]) -> None:
        """Refuse to go on until a backend of a tiny share has given all it holds."""
        ends = np.minimum(self._played + until, self._closes[stretch.active])
        if ends.max() >= MOST_STEPS:
            index = int(stretch.active[ends.argmax()])
            raise PlanError(
                f"sampling.epoch=cycle: an epoch would take {ends.max():.2g} steps or more until "
                f"backend number {index + 1} has given all it holds at a share of "
                f"{stretch.shares[index]:.2g}; raise its probability, or set epoch_steps"
            )

    def _keep(self, chosen: NDArray[np.int64]) -> None:
        end = self._played + len(chosen)
        if end > len(self._chosen):
            self._grow(end)
        self._chosen[self._played : end] = chosen
        first, last = self._played // NOTE_EVERY, end // NOTE_EVERY
        if last > first:
            rows = self._chosen[first * NOTE_EVERY : last * NOTE_EVERY].reshape(-1, NOTE_EVERY)
            for backend in range(len(self._quotas)):
                given = np.cumsum(np.count_nonzero(rows == backend, axis=1))
                given += self._notes[first, backend]
                self._notes[first + 1 : last + 1, backend] = given
        self._played = end

    def _grow(self, steps: int) -> None:
        """Make room for at least so many steps; what was read from stays as it is."""
        room = min(max(steps, 2 * len(self._chosen)), max(self._most, steps))
        chosen = np.empty(room, dtype=self._chosen.dtype)
        chosen[: self._played] = self._chosen[: self._played]
        notes = np.zeros((room // NOTE_EVERY + 1, len(self._quotas)), dtype=np.int64)
        notes[: len(self._notes)] = self._notes
        self._chosen, self._notes = chosen, notes


def _until_exhaustion(picks: NDArray[np.integer], left: NDArray[np.int64]) -> int:
    """Return how many picks pass until a backend has none left; all if that never happens."""
    given = np.bincount(picks, minlength=len(left))
    ends = [
        int(np.flatnonzero(picks == backend)[left[backend] - 1]) + 1
        for backend in np.flatnonzero(given >= left)
    ]
    return min(ends, default=len(picks))
