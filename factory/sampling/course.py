"""Which backend serves each step of one epoch, and which of its batches is it?"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.sampling.selection import Selection

# Totals are noted every so many steps; a look-up counts at most this many bytes past a note.
NOTE_EVERY = 1024
# Played at the first question; each later stretch of play at least doubles what is known.
FIRST_PLAY = 4096
# Least choices asked for when a backend is about to run out, so that a random selection,
# which can come close without finishing, does not do so one step at a time.
LEAST_PLAY = 64

Weigh = Callable[[], NDArray[np.float64]]


@dataclass(frozen=True)
class Span:
    """The steps of an epoch, from 0, in which a backend may serve: opens <= step < closes."""

    opens: int
    closes: int


@dataclass(frozen=True, eq=False)
class Stretch:
    """A run of steps with the same active backends and the same weights.

    Attributes:
        first: Its first step in the epoch, from 0.
        counts: Batches each backend had given before it, int64 [k].
        active: Indices of the backends that take part, int64 [n].
        weights: Weight of every backend, 0 for those that do not take part, float64 [k].
    """

    first: int
    counts: NDArray[np.int64]
    active: NDArray[np.int64]
    weights: NDArray[np.float64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """The weights, scaled to sum 1: float64 [k]."""
        shares: NDArray[np.float64] = self.weights / self.weights.sum()
        return shares


class Course:
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
        selection: Selection,
        key: int,
    ) -> None:
        """Describe an epoch.

        Args:
            quotas: int64 [k], batches after which a backend leaves.
            spans: Steps in which each backend may serve; None for not at all.
            weights: float64 [k], 0 or more; a backend of weight 0 never serves.
            selection: How weights become a sequence.
            key: 64-bit key for the selection.
        """
        self._quotas = quotas
        self._weights = weights
        self._selection = selection
        self._key = key
        never = Span(0, 0)
        self._opens = np.array([(span or never).opens for span in spans], dtype=np.int64)
        self._closes = np.array([(span or never).closes for span in spans], dtype=np.int64)
        self._lock = threading.Lock()
        most = int(quotas.sum())
        # Reserved, not touched: memory is used only as far as the course is played.
        self._chosen = np.empty(most, dtype=np.min_scalar_type(max(len(quotas) - 1, 0)))
        self._notes = np.zeros((most // NOTE_EVERY + 1, len(quotas)), dtype=np.int64)
        self._counts = np.zeros(len(quotas), dtype=np.int64)
        self._stretches: list[Stretch] = []
        self._played = 0
        self._ended = False

    @property
    def length(self) -> int:
        """Steps of the epoch; plays it to its end unless no window opens or closes in it."""
        serving = (self._weights > 0) & (self._closes > self._opens)
        most = int(self._quotas[serving].sum())
        if (self._opens[serving] == 0).all() and (self._closes[serving] >= most).all():
            return most
        self.play(most + 1)
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

    def stretches(self, until: int | None = None) -> list[Stretch]:
        """Return the stretches in order; with `until`, those that begin at or before it."""
        self.play(int(self._quotas.sum()) + 1 if until is None else until + 1)
        return [part for part in self._stretches if until is None or part.first <= until]

    def play(self, steps: int) -> None:
        """Play at least the first `steps` steps, or all there are."""
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
        left = (self._quotas - self._counts)[active]
        picks = self._selection.choices(
            stretch.weights[active],
            (self._counts - stretch.counts)[active],
            self._played,
            self._reach(stretch, left, steps),
            self._key,
        )
        picks = picks[: _until_exhaustion(picks, left)]
        self._counts[active] += np.bincount(picks, minlength=len(active))
        self._keep(active[picks])

    def _stretch(self) -> Stretch | None:
        """Return the stretch of the next step, a new one if other backends take part now."""
        step = self._played
        able = (self._opens <= step) & (step < self._closes) & (self._counts < self._quotas)
        weights = np.where(able, self._weights, 0.0)
        active = np.flatnonzero(weights)
        if not active.size:
            return None
        if not self._stretches or not np.array_equal(active, self._stretches[-1].active):
            self._stretches.append(Stretch(step, self._counts.copy(), active, weights))
        return self._stretches[-1]

    def _reach(self, stretch: Stretch, left: NDArray[np.int64], steps: int) -> int:
        """Say how far to play: never past a window's edge, and little past an exhaustion."""
        step = self._played
        edges = np.concatenate([self._opens, self._closes, [step + int(left.sum())]])
        edge = int(edges[edges > step].min()) - step
        exhaustion = int((left / stretch.shares[stretch.active]).min()) + 2
        wanted = max(steps - step, step, FIRST_PLAY)
        return min(edge, max(LEAST_PLAY, min(exhaustion, wanted)))

    def _keep(self, chosen: NDArray[np.int64]) -> None:
        end = self._played + len(chosen)
        self._chosen[self._played : end] = chosen
        first, last = self._played // NOTE_EVERY, end // NOTE_EVERY
        if last > first:
            rows = self._chosen[first * NOTE_EVERY : last * NOTE_EVERY].reshape(-1, NOTE_EVERY)
            for backend in range(len(self._quotas)):
                given = np.cumsum(np.count_nonzero(rows == backend, axis=1))
                given += self._notes[first, backend]
                self._notes[first + 1 : last + 1, backend] = given
        self._played = end


def _until_exhaustion(picks: NDArray[np.integer], left: NDArray[np.int64]) -> int:
    """Return how many picks pass until a backend has none left; all if that never happens."""
    given = np.bincount(picks, minlength=len(left))
    ends = [
        int(np.flatnonzero(picks == backend)[left[backend] - 1]) + 1
        for backend in np.flatnonzero(given >= left)
    ]
    return min(ends, default=len(picks))
