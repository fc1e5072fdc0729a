"""Stages of a pipeline that run side by side, with a bounded number of bytes between them."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class _Lane(Generic[Item]):
    """Items on their way from one thread to another; a single one may be of any size."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._items: deque[tuple[Item, int]] = deque()
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: Item, size: int) -> bool:
        """Add an item once there is room; tell whether it will be taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room(size))
            if not self._stopped:
                self._items.append((item, size))
                self._held += size
                self._changed.notify_all()
            return not self._stopped

    def _has_room(self, size: int) -> bool:
        return not self._items or self._held + size <= self._limit

    def take(self) -> Item:
        """Return the next item.

        Raises:
            StopIteration: There is none left.
            BaseException: The thread that puts them failed, after these.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ended or self._items)
            if self._items:
                item, size = self._items.popleft()
                self._held -= size
                self._changed.notify_all()
                return item
            if self._error is not None and not self._stopped:
                raise self._error
            raise StopIteration

    def end(self, error: BaseException | None = None) -> None:
        """Say that no item follows, and why if something failed."""
        with self._changed:
            # What stopped the lane before stays the reason.
            self._ended, self._error = True, self._error or error
            self._changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """Say that no item is taken any more, and why if something failed."""
        with self._changed:
            self._stopped = True
            self._error = error or self._error
            self._items.clear()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what stopped the lane, if something did."""
        if self._stopped and self._error is not None:
            raise self._error


class Ahead(Iterator[Item]):
    """Items of a generator, made in a thread of its own before they are asked for.

    What the generator raises is raised where its next item would have been. Leaving the
    `with` block stops it: the item in the making is still finished, then the generator is
    closed, in its own thread.
    """

    def __init__(
        self,
        items: Generator[Item, None, None],
        *,
        size: Callable[[Item], int],
        limit: int,
        name: str,
    ) -> None:
        """Begin.

        Args:
            items: Makes the items.
            size: Bytes of an item.
            limit: Bytes of items that wait to be taken; one item always may, and one more
                is in the making.
            name: Name of the thread.
        """
        self._items, self._size = items, size
        self._lane: _Lane[Item] = _Lane(limit)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        """Return the next item, once it is made."""
        return self._lane.take()

    def __enter__(self) -> Self:
        """Return the iterator."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop, and wait for the thread."""
        self._lane.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._lane.put(item, self._size(item)):
                    self._items.close()
                    return
        except BaseException as error:  # noqa: BLE001 - raised by the thread that takes
            self._lane.end(error)
        else:
            self._lane.end()


class Behind(Generic[Item]):
    """Calls a function with items, in their order, in a thread of its own.

    Leaving the `with` block waits for all of them; leaving it by an exception for the call
    under way alone, and forgets the rest. What the function raises is raised at the next
    `put`, or at the end.
    """

    def __init__(self, function: Callable[[Item], object], *, limit: int, name: str) -> None:
        """Begin.

        Args:
            function: What is done with each item.
            limit: Bytes of items that wait for it; one item always may.
            name: Name of the thread.
        """
        self._function = function
        self._lane: _Lane[Item] = _Lane(limit)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item, size: int) -> None:
        """Hand over an item of some bytes, once there is room for it."""
        if not self._lane.put(item, size):
            self._lane.check()

    def __enter__(self) -> Self:
        """Return the stage."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for what was handed over, or stop if the block failed."""
        if kind is None:
            self._lane.end()
        else:
            self._lane.stop()
        self._thread.join()
        if kind is None:
            self._lane.check()

    def _run(self) -> None:
        try:
            while True:
                self._function(self._lane.take())
        except StopIteration:
            return
        except BaseException as error:  # noqa: BLE001 - raised by the thread that puts
            self._lane.stop(error)
