"""Stages of a run: time and memory of each, and progress bars."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from factory.untrusted_text import printable, terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("factory")

# Often enough to catch a decoded picture's spike, rare enough to cost nothing (0.02 ms a look).
SAMPLE_SECONDS = 0.05
# Name of the file in a run folder that stages are written to.
METRICS = "metrics.json"
# Of a job of hours some hundred lines, and none of one that is over before anybody looks.
LINE_SECONDS = 30.0


class LogFile(logging.FileHandler):
    """A log in a file; where it cannot be written, it says so once and the program goes on."""

    def __init__(self, filename: str) -> None:
        """Open the file for appending, in UTF-8 whatever the locale."""
        super().__init__(filename, encoding="utf-8")
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say once that the file cannot be written; what else goes wrong is logging's to say."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            with suppress(OSError):
                sys.stderr.write(f"the log {self.baseFilename} cannot be written: {error}\n")


@dataclass
class Stage:
    """One measured piece of work.

    Attributes:
        name: What was done, such as "scan photos".
        seconds: Wall time.
        rss_mb: Resident memory when it ended, MiB.
        peak_rss_mb: Highest resident memory seen while it ran, MiB.
        counts: What was counted on the way, such as {"samples": 300}.
    """

    name: str
    seconds: float = 0.0
    rss_mb: float = 0.0
    peak_rss_mb: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)


class _PeakSampler:
    """Watches this process's resident memory from a thread of its own."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self.peak = self.now()
        self._thread = threading.Thread(target=self._run, name="factory-rss", daemon=True)
        self._thread.start()

    def now(self) -> float:
        """Return resident memory in MiB."""
        return float(self._process.memory_info().rss) / 2**20

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self.now())

    def stop(self) -> tuple[float, float]:
        """End the thread and return (resident now, highest seen) in MiB."""
        self._stop.set()
        self._thread.join()
        now = self.now()
        return now, max(self.peak, now)


class Telemetry:
    """Collects the stages of one registry; nothing in it is global."""

    def __init__(self) -> None:
        """Start with no stages."""
        self.stages: list[Stage] = []
        self._under_way: dict[int, tuple[Stage, float, _PeakSampler]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Measure the work done inside the `with` block; log one line when it ends."""
        stage = Stage(name)
        sampler = _PeakSampler()
        start = time.perf_counter()
        self._under_way[id(stage)] = stage, start, sampler
        try:
            yield stage
        finally:
            del self._under_way[id(stage)]
            stage.seconds = time.perf_counter() - start
            stage.rss_mb, stage.peak_rss_mb = sampler.stop()
            self.stages.append(stage)
            counts = "".join(f" {key}={value}" for key, value in stage.counts.items())
            logger.info(
                "%s: %.2f s, rss %.0f MiB, peak %.0f MiB%s",
                name, stage.seconds, stage.rss_mb, stage.peak_rss_mb, counts,
            )  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the stages as JSON, those under way as far as they are; never half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for stage, start, sampler in list(self._under_way.values()):
            stage.seconds = time.perf_counter() - start
            stage.rss_mb = sampler.now()
            stage.peak_rss_mb = max(sampler.peak, stage.rss_mb)
        done = [*self.stages, *(stage for stage, _, _ in self._under_way.values())]
        text = json.dumps({"stages": [asdict(stage) for stage in done]}, indent=1, default=str)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)


class _Lines:
    """Tells of progress in the log now and then, with rate and remaining time."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._lock = 0, threading.Lock()
        self._start = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """Count what was done; say so if nothing was said for a while."""
        now = time.monotonic()
        with self._lock:
            self._done += count
            due = now - self._told >= LINE_SECONDS and 0 < self._done != self._total
            self._told = now if due else self._told
        if due:
            logger.info("%s: %s", self._title, self._text(now - self._start))

    def _text(self, seconds: float) -> str:
        rate = self._done / seconds
        if self._total is None:
            return f"{self._done:,} {self._unit}, {rate:,.1f} {self._unit}/s"
        left = timedelta(seconds=round((self._total - self._done) / rate))
        done = f"{self._done:,} of {self._total:,} {self._unit}"
        return f"{done}, {rate:,.1f} {self._unit}/s, {left} left"


@contextmanager
def progress(title: str, total: int | None, unit: str = "it") -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and remaining time on a terminal; yield `advance(n)`.

    Away from a terminal (a log file, a test) nothing is drawn: a line of the log says how far
    it is every `LINE_SECONDS`, and the stage's own line what was done. Safe to advance from
    several threads.
    """
    if not sys.stderr.isatty():
        yield _Lines(title, total, unit).advance
        return
    with _BARS.bar(printable(title), total, unit) as advance:
        yield advance


class _Bars:
    """The bars of this process: one display on the terminal, whatever works side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: Progress | None = None
        self._count = 0

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Show one bar more while the `with` block runs."""
        with self._lock:
            shown = self._shown
            if shown is None:
                shown = self._shown = _display()
                shown.start()
            self._count += 1
        task = shown.add_task(title, total=total, unit=unit, rate="")
        start = time.perf_counter()
        done, counting = 0, threading.Lock()

        def advance(count: int) -> None:
            nonlocal done
            with counting:
                done += count
                rate = done / max(time.perf_counter() - start, 1e-3)
            shown.update(task, advance=count, rate=f"{rate:,.0f} {unit}/s")

        try:
            yield advance
        finally:
            self._end(shown, task)

    def _end(self, shown: "Progress", task: "TaskID") -> None:
        """Take a bar away; the last one takes the display with it."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._shown = None
                shown.stop()
            else:
                shown.remove_task(task)


def _display() -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=terminal(stderr=True), transient=True)


_BARS = _Bars()
