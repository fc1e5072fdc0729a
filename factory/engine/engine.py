"""The contract of engines: run one function over many items, in order, or a worker over units.

It lies below every floor because the catalog asks for bulk work and engines stand above it.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Unit = TypeVar("Unit")
Report = TypeVar("Report")
Unit_contra = TypeVar("Unit_contra", contravariant=True)
Report_co = TypeVar("Report_co", covariant=True)


class Worker(Protocol[Unit_contra, Report_co]):
    """Work that holds what is costly to have, such as an encoder; a picklable value.

    What it made of its units is durable once its iterator has ended. Done again, a unit gives
    the same.
    """

    def __call__(
        self, units: Iterable[Unit_contra], engine: "Engine"
    ) -> Generator[Report_co, None, None]:
        """Do some units, in their order, and tell of it along the way.

        Args:
            units: Small picklable values; taken as there is room for them.
            engine: Threads of this process that belong to this worker.
        """


class Engine(Protocol):
    """Where bulk work runs.

    Functions and workers given to an engine are picklable values (instances with `__call__`,
    not closures), so that an engine may send them to another process or machine.
    """

    @property
    def here(self) -> "Engine":
        """Threads of this process, for work too small to be sent away, such as one batch's."""

    def copies(self) -> int:
        """Return how many copies of a worker do units side by side."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int | None = None,
    ) -> Generator[tuple[Item, Result | Exception], None, None]:
        """Yield (item, result) in the order of the items; a raised exception is the result.

        Args:
            function: What is done with each item.
            items: The items.
            at_once: Most threads of one process that work at once, for work that they keep
                each other from; None leaves it to the engine.

        Only a bounded number of items is in flight, so results that are not taken hold the
        work back. Closing the iterator stops it.
        """

    def work(
        self, worker: Worker[Unit, Report], units: Iterable[Unit]
    ) -> Generator[Report, None, None]:
        """Have units done, and yield the reports on them, in no particular order.

        What was made is durable once the iterator has ended. Closing it stops the work.

        Args:
            worker: Does them; there are `copies` of it.
            units: The units; a bounded number is in flight.
        """

    def close(self) -> None:
        """Let go of what this engine started; it may be used again."""
