"""Reports about prefetching: what held up whom, and what every thread does during a stall."""

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factory.runtime.prefetch.executors import BatchFuture

# Below this share of the time nobody would notice the waiting.
SMALL_SHARE = 0.05
# Workers this busy have no time left: more of them would give more.
BUSY_SHARE = 0.8


@dataclass(frozen=True)
class FetchReport:
    """What a fetcher has done so far.

    Attributes:
        delivered: Batches given to the consumer.
        at_once: How many of them were ready when they were asked for.
        waited_s: Time the consumer waited, s.
        first_s: How much of it was for the first batch, which nothing can be ahead of, s.
        elapsed_s: Time from the first question to the last batch delivered, s.
        making_s: Time spent on making them, over all workers, s.
        nbytes: Bytes they held.
        workers: How many batches can be in the making at once; 0 where none is made ahead.
        ready: Batches that are ready now.
        making: Batches that are begun, or wait for a worker, now.
        held: Bytes of those that are ready now.
    """

    delivered: int = 0
    at_once: int = 0
    waited_s: float = 0.0
    first_s: float = 0.0
    elapsed_s: float = 0.0
    making_s: float = 0.0
    nbytes: int = 0
    workers: int = 0
    ready: int = 0
    making: int = 0
    held: int = 0

    def __add__(self, other: "FetchReport") -> "FetchReport":
        """Return what both have done, one after the other; what is ready now is the other's."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("delivered", "at_once", "waited_s", "first_s", "elapsed_s", "making_s",
                         "nbytes")
        }  # fmt: skip
        return replace(other, **sums, workers=max(self.workers, other.workers))

    @property
    def waited_share(self) -> float:
        """Share of the time that the consumer waited, 0 to 1, first batches apart."""
        whole = self.elapsed_s - self.first_s
        return max(0.0, min(1.0, (self.waited_s - self.first_s) / whole)) if whole > 0 else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the time that the workers were busy, 0 to 1."""
        whole = self.elapsed_s * self.workers
        return min(1.0, self.making_s / whole) if whole > 0 else 0.0

    @property
    def verdict(self) -> str:
        """One sentence that says which side holds up the other, and what may be done."""
        if not self.delivered:
            return "no batch was delivered"
        share = self.waited_share
        if share < SMALL_SHARE:
            ready = self.at_once / self.delivered
            return (
                f"batches were ready {ready:.0%} of the time, and the trainer waited for them "
                f"{share:.1%} of it: training itself is the bottleneck"
            )
        return f"the trainer waited {share:.0%} of the time for batches: {self._cause()}"

    def _cause(self) -> str:
        """Return why batches come late, and what may be done."""
        if not self.workers:
            return "nothing is made ahead; set prefetch=thread or prefetch=process"
        each = self.making_s / self.delivered
        if self.busy_share >= BUSY_SHARE:
            return (
                f"making them is the bottleneck ({each:.3g} s each, {self.workers} at once): "
                "raise prefetch.workers while there are cores, or give them less to do (latents "
                "encoded ahead, smaller pictures, a nearer storage)"
            )
        return (
            f"those who make them were busy {self.busy_share:.0%} of it, so some batches take "
            "much longer than others, or too few are kept: raise prefetch.batches or "
            "prefetch.megabytes"
        )


class FetchTotal:
    """What several fetchers have done, one after the other."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._before = FetchReport()
        self._now: Callable[[], FetchReport] = FetchReport

    def follow(self, now: Callable[[], FetchReport]) -> None:
        """Add what was followed so far, and follow another fetcher's report."""
        self._before, self._now = self.report, now

    @property
    def report(self) -> FetchReport:
        """What all of them have done so far."""
        return self._before + self._now()


# Named one by one; a long queue would bury the rest of the report.
SHOWN = 8


def stages(
    futures: Sequence[BatchFuture[Any, Any]],
    describe: Callable[[Any], str],
    delivered: int,
    paused: bool,
) -> str:
    """Return what is waiting, in the making, ready and delivered, a line each."""
    waiting = [t for t in futures if not t.done and t.begun is None]
    making = [t for t in futures if not t.done and t.begun is not None]
    ready = [t for t in futures if t.done]
    held = sum(future.nbytes for future in ready)
    lines = [
        f"wait for a worker: {_listed(waiting, describe)}",
        f"in the making: {_listed(making, describe)}",
        f"ready: {_listed(ready, describe)}" + (f" ({held / 2**20:.1f} MiB)" if ready else ""),
        f"delivered: {delivered}",
    ]
    if paused:
        lines.append("paused: no further batch is begun until resume()")
    return "\n".join(f"  {line}" for line in lines)


def _listed(futures: Sequence[BatchFuture[Any, Any]], describe: Callable[[Any], str]) -> str:
    if not futures:
        return "none"
    names = []
    for future in futures[:SHOWN]:
        age = None if future.done else future.age()
        names.append(describe(future.job) + ("" if age is None else f" (for {age:.1f} s)"))
    more = f"; {len(futures) - SHOWN} more" if len(futures) > SHOWN else ""
    return f"{len(futures)}: " + "; ".join(names) + more


def stacks() -> str:
    """Return what each thread of this process does, but for the one that asks."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, in spite of its name
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in frames.items():
        if ident != threading.get_ident():
            stack = "".join(traceback.format_stack(frame))
            parts.append(f"--- {names.get(ident, f'thread {ident}')}\n{stack}")
    return "\n".join(parts)
