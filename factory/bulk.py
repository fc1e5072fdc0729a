"""The contract of engines: run one function over many items, in order.

It lies below every floor because the catalog asks for bulk work and engines stand above it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Where bulk work runs.

    Functions given to an engine are picklable values (instances with `__call__`, not
    closures), so that an engine may send them to another process or machine.
    """

    def map(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int | None = None,
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """Yield (item, result) in the order of the items; a raised exception is the result.

        Args:
            function: What is done with each item.
            items: The items.
            at_once: Most items worked on at once, for work that threads keep each other from;
                None leaves it to the engine.

        Only a bounded number of items is in flight, so results that are not taken hold the
        work back. Closing the iterator stops it.
        """
