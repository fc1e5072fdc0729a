"""Scans of a registry's backends, side by side: measure what is new, publish the facts."""

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from factory.backends.image import SampleBackend
from factory.catalog.facts import Facts
from factory.engine.engine import Engine, Item, Report, Result, Unit, Worker
from factory.errors import FactoryError
from factory.metrics.stages import Telemetry
from factory.registry.registry import Registry

# Scans under way at once. They wait for servers most of the time, and what they may ask one for
# is counted for all of them; each holds a listing in memory, which more would add to.
SCANS = 4
# Seconds that an interrupted run gives scans to leave what they do. Threads that wait for a server
# longer than that end with the process.
LEAVE_S = 1.0


def scanned(registry: Registry) -> dict[str, Facts]:
    """Return the facts of every backend that has some, measured and published, by name.

    Where one fails, the others end before they measure anything further: what they have measured
    is kept. The first error, in the order of backends, is raised with notes of the others.

    Raises:
        FactoryError: A backend cannot be scanned.
    """
    facts, errors = scan_all(registry, stop_early=True)
    if errors:
        first, *others = errors
        for name in others:
            kind = type(errors[name]).__name__.removesuffix("Error")
            told = [f"{kind} error: {errors[name]}", *getattr(errors[name], "__notes__", [])]
            errors[first].add_note(f"backend {name!r} fails, too: " + "\n  ".join(told))
        raise errors[first]
    return facts


def scan_all(
    registry: Registry, *, stop_early: bool = False
) -> tuple[dict[str, Facts], dict[str, FactoryError]]:
    """Scan every backend that has facts, as far as each of them can be.

    Args:
        registry: The backends.
        stop_early: Whether an error keeps the other backends from measuring anything further.

    Returns:
        The facts by name, and the errors of backends that failed, both in the order of backends.
    """
    board = _Scans(registry, stop_early)
    names = list(registry.stored)
    if len(names) == 1:
        board.scan(names[0])
    else:
        _side_by_side(board, names, min(SCANS, len(names)))
    for name in names:
        registry.telemetry.stages += board.stages[name].stages
    errors: dict[str, FactoryError] = {}
    for name in names:
        match board.errors.get(name):
            case FactoryError() as error:
                errors[name] = error
            case Exception() as bug:
                raise bug
    return {name: board.facts[name] for name in names if name in board.facts}, errors


@dataclass
class _Scans:
    """What the scans of a registry found so far.

    Attributes:
        registry: The backends.
        stop_early: Whether an error stops the other scans.
        stop: Set where scans are to end at the next result of the engine.
    """

    registry: Registry
    stop_early: bool
    stop: threading.Event = field(default_factory=threading.Event)
    facts: dict[str, Facts] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    stages: dict[str, Telemetry] = field(default_factory=dict)

    def scan(self, name: str) -> None:
        """Scan one backend, and keep its facts or its error."""
        telemetry = self.stages[name] = Telemetry()
        try:
            engine = _StoppableEngine(self.registry.engine, self.stop)
            backend = self.registry.stored[name]
            self.facts[name] = _scan(self.registry, backend, engine, telemetry)
        except _StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - raised again where the scans were begun
            self.errors[name] = error
            if self.stop_early or not isinstance(error, FactoryError):
                self.stop.set()


def _side_by_side(board: _Scans, names: Iterable[str], count: int) -> None:
    """Scan backends in threads of their own, so that an interrupt reaches this one at once."""
    waiting: SimpleQueue[str] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        try:
            while not waiting.empty():
                board.scan(waiting.get_nowait())
        finally:
            ended.put(None)

    threads = [
        threading.Thread(target=work, name=f"factory-scan-{n}", daemon=True) for n in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            ended.get()
    except BaseException:
        board.stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(LEAVE_S / count)
        raise
    for thread in threads:
        thread.join()


def _scan(
    registry: Registry, backend: SampleBackend, engine: Engine, telemetry: Telemetry
) -> Facts:
    shelf, journal = registry.cache.facts_store(backend.name), registry.cache.journal(backend.name)
    with telemetry.stage(f"scan {backend.name}") as stage:
        try:
            backend.storage.check()
        except FactoryError as error:
            error.add_note(f"while checking the storage of backend {backend.name!r}")
            raise
        known = shelf.load()
        facts = backend.scan(known, engine, journal)
        same = known is not None and (facts.origin, facts.left_out) == (
            known.origin,
            known.left_out,
        )
        # What is wrong still was looked into: that is written down.
        same = same and not (known is not None and replace(facts, readers=known.readers).outdated)
        if known is None or not same or not facts.table.equals(known.table):
            facts = shelf.save(facts)
        journal.clear()
        stage.counts.update(samples=len(facts), changes=str(facts.changes))
    return facts


class _StoppedError(Exception):
    """A scan ends because another one failed, or the run was interrupted."""


@dataclass(frozen=True)
class _StoppableEngine:
    """An engine whose results end once `stop` is set."""

    engine: Engine
    stop: threading.Event

    @property
    def here(self) -> Engine:
        """Threads of this process."""
        return self.engine.here

    def copies(self) -> int:
        """Return how many copies of a worker do units side by side."""
        return self.engine.copies()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int | None = None,
    ) -> Generator[tuple[Item, Result | Exception], None, None]:
        """Yield what the engine yields, until the scan is to stop.

        Raises:
            _StoppedError: It is.
        """
        with closing(self.engine.map(function, items, at_once=at_once)) as results:
            for result in results:
                if self.stop.is_set():
                    raise _StoppedError
                yield result

    def work(
        self, worker: Worker[Unit, Report], units: Iterable[Unit]
    ) -> Generator[Report, None, None]:
        """Yield what the engine yields."""
        return self.engine.work(worker, units)

    def close(self) -> None:
        """Leave the engine open: it is the registry's."""
