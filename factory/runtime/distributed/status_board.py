"""Status of every rank, and which failure stops the run; no I/O."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.runtime.prefetch.activity import Activity

# A process that fails because another died often reports it before the dead one's connection
# is seen to close. For this long its failure is not yet taken for the cause, seconds: closing
# takes milliseconds, and a busy machine may need a hundred times that.
SETTLE_S = 0.5


@dataclass(frozen=True)
class RankFailure:
    """Why the run cannot go on.

    Attributes:
        rank: The process at fault.
        why: What is wrong with it.
    """

    rank: int
    why: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"rank {self.rank} {self.why}"


@dataclass
class _Entry:
    doing: Activity
    heard: float
    lost: bool = False
    failed: float | None = None


class StatusBoard:
    """The last known status of each process, and the failure that follows; no I/O."""

    def __init__(
        self, ranks: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with every process heard from just now.

        Args:
            ranks: Number of processes.
            timeout_s: Seconds of silence after which one counts as hanging.
            clock: A monotonic clock, seconds.
        """
        self._timeout_s, self._clock = timeout_s, clock
        now = clock()
        self._entries = [_Entry(Activity(), now) for _ in range(ranks)]
        self._judged = now

    def hear(self, rank: int, doing: Activity) -> None:
        """Record what a process reports it is doing."""
        entry, now = self._entries[rank], self._clock()
        entry.doing, entry.heard = doing, now
        if doing.stage == "failed" and entry.failed is None:
            entry.failed = now

    def lose(self, rank: int) -> None:
        """Record that a process closed its connection."""
        self._entries[rank].lost = True

    def failure(self, beat_s: float, of: Sequence[int] | None = None) -> RankFailure | None:
        """Return why the run cannot go on, if so.

        Args:
            beat_s: Seconds between calls.
            of: The processes that report to this one directly; all if None.
        """
        now = self._clock()
        # A process that was itself suspended heard nothing meanwhile: that is not others' silence.
        stood_still = max(0.0, now - self._judged - 2 * beat_s)
        self._judged = now
        for entry in self._entries:
            entry.heard += stood_still
        judged = range(len(self._entries)) if of is None else of
        entries = {rank: self._entries[rank] for rank in judged}
        return _dead(entries) or _failed(entries, now) or _silent(entries, now, self._timeout_s)

    def sent(self) -> list[Any]:
        """Return the status of all processes, as values for JSON."""
        now = self._clock()
        return [
            [entry.doing.sent(), round(now - entry.heard, 3), entry.lost] for entry in self._entries
        ]

    def adopt(self, statuses: Any) -> None:
        """Replace the status by that of rank 0, which hears from all processes.

        Raises:
            ValueError: It is not what `sent` returns.
        """
        if not isinstance(statuses, list) or len(statuses) != len(self._entries):
            raise ValueError(f"not what is known of {len(self._entries)} processes: {statuses!r}")
        now = self._clock()
        for entry, known in zip(self._entries, statuses, strict=True):
            match known:
                case [doing, float(ago) | int(ago), bool(lost)]:
                    entry.doing, entry.heard = Activity.read(doing), now - float(ago)
                    entry.lost = lost
                case _:
                    raise ValueError(f"not what is known of a process: {known!r}")

    def lines(self, me: int, own: Activity) -> list[str]:
        """Return a line on each process: what it is doing.

        Args:
            me: This process.
            own: What this process is doing.
        """
        now = self._clock()
        lines = []
        for rank, entry in enumerate(self._entries):
            if rank == me:
                lines.append(f"rank {rank} (this one): {own}")
                continue
            end = ", its connection is closed" if entry.lost else ""
            ago = f"heard of {now - entry.heard:.1f} s ago{end}"
            lines.append(f"rank {rank}: {entry.doing} ({ago})")
        return lines


def _dead(entries: Mapping[int, _Entry]) -> RankFailure | None:
    for rank, entry in entries.items():
        if entry.lost and entry.doing.stage not in ("done", "failed"):
            return RankFailure(rank, "ended without a word")
    return None


def _failed(entries: Mapping[int, _Entry], now: float) -> RankFailure | None:
    """Blame the first that failed, once it is clear that none died before it."""
    failed = [
        (entry.failed or now, rank)
        for rank, entry in entries.items()
        if entry.doing.stage == "failed"
        and (entry.lost or (entry.failed is not None and now - entry.failed >= SETTLE_S))
    ]
    if not failed:
        return None
    _, rank = min(failed)
    return RankFailure(rank, f"failed: {entries[rank].doing.what}")


def _silent(entries: Mapping[int, _Entry], now: float, timeout_s: float) -> RankFailure | None:
    for rank, entry in entries.items():
        silence = now - entry.heard
        if silence > timeout_s and entry.doing.stage not in ("done", "failed"):
            return RankFailure(rank, f"has given no sign of life for {silence:.1f} s")
    return None
