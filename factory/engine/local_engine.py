"""Bulk work on this machine: a thread pool, for work that waits or releases the GIL."""

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from factory.engine.engine import Item, Report, Result, Unit, Worker
from factory.engine.pipeline import Lookahead
from factory.limits import AtLeast, check_limits

# Reading waits on storage half of the time and decoding releases the GIL, so two threads a
# core keep both busy (images/s level off there: 1.9x of one thread on 2 cores).
THREADS_PER_CORE = 2
# Results waiting per worker: enough that a slow consumer never finds the pool idle.
IN_FLIGHT_PER_WORKER = 4


@dataclass(frozen=True)
class LocalEngine:
    """Threads of this process.

    Attributes:
        workers: Threads reading and decoding; None means 2 per core.
    """

    workers: Annotated[int | None, AtLeast(1)] = None

    def __post_init__(self) -> None:
        """Refuse a pool without threads."""
        check_limits(self, "engine")

    @property
    def here(self) -> "LocalEngine":
        """This engine."""
        return self

    def copies(self) -> int:
        """Return 1: the worker itself does all units."""
        return 1

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int | None = None,
    ) -> Generator[tuple[Item, Result | Exception], None, None]:
        """Yield (item, result or exception) in the order of the items.

        What is still running when the consumer leaves early is not waited for.
        """
        workers = self.workers or THREADS_PER_CORE * (os.cpu_count() or 1)
        workers = min(workers, at_once or workers)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="factory-engine")
        try:
            yield from map(
                _outcome,
                Lookahead(
                    lambda item: (item, pool.submit(function, item)),
                    items,
                    most=workers * IN_FLIGHT_PER_WORKER,
                ),
            )
        except GeneratorExit:
            # Perhaps closed by the garbage collector, in the midst of another thread's start:
            # joining then waits for a lock of `threading` that this very thread holds.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown(wait=True)

    def work(
        self, worker: Worker[Unit, Report], units: Iterable[Unit]
    ) -> Generator[Report, None, None]:
        """Have the worker itself do all units, one after another."""
        return worker(units, self)

    def close(self) -> None:
        """Do nothing: threads end with the work they were started for."""


def _outcome(job: tuple[Item, Future[Any]]) -> tuple[Item, Any]:
    item, future = job
    error = future.exception()
    if error is None:
        return item, future.result()
    if isinstance(error, Exception):
        return item, error
    raise error  # KeyboardInterrupt and its like are nobody's result
