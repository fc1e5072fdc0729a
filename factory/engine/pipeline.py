"""The bounded, ordered look-ahead; and stages of a pipeline that run side by side."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from math import inf
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Job = TypeVar("Job")
Begun = TypeVar("Begun")


class Lookahead(Iterator[Begun], Generic[Job, Begun]):
    """What was begun for some jobs, in their order, a bounded number and size of it ahead.

    Jobs are begun by whoever takes results, never on a clock; what works on them (threads, other
    processes, an event loop) is up to `begin`, and so is what a result is: mostly a future. Ready
    results count by their size, those under way by the largest one seen. Until a first one is
    ready nothing is known of sizes, so that one is alone. One is always allowed.

    One thread takes results; any other may fill, pause, look, or drop.

    Attributes:
        exhausted: Whether the last job was taken.
        paused: Whether no further job is begun.
    """

    def __init__(
        self,
        begin: Callable[[Job], Begun],
        jobs: Iterable[Job],
        *,
        most: int,
        nbytes: Callable[[Begun], int | None] | None = None,
        max_bytes: float = inf,
    ) -> None:
        """Store the parts; nothing is begun.

        Args:
            begin: Begins a job; returns what stands for its result, which is not None.
            jobs: The jobs; taken lazily, by one thread at a time. What they raise is raised in
                its turn, after the results of the jobs before.
            most: Most results ready or under way, the one that is taken next included.
            nbytes: Returns the bytes of a result; None while it is under way. Without it
                only `most` counts.
            max_bytes: Most bytes they hold, but for one result.
        """
        self._begin, self._jobs = begin, iter(jobs)
        self._most, self._nbytes, self._max_bytes = most, nbytes, max_bytes
        self._begun: deque[Begun] = deque()
        self._largest: int | None = None  # of all results that were ever ready
        self._filling = threading.Lock()
        self._failure: Exception | None = None
        self.exhausted = self.paused = False

    def fill(self) -> None:
        """Begin jobs while there is room."""
        if len(self._begun) >= self._most:
            return  # as mostly when a result is asked for: not even the lock is taken
        with self._filling:
            while not self.exhausted and self._has_room():
                try:
                    self._begun.append(self._begin(next(self._jobs)))
                except StopIteration:
                    self.exhausted = True
                except Exception as error:  # noqa: BLE001 - raised in its turn
                    self._failure, self.exhausted = error, True

    def head(self) -> Begun | None:
        """Begin what there is room for, and return what comes next; None if there is nothing.

        Raises:
            Exception: What went wrong with the jobs, once all before have been taken.
        """
        self.fill()
        with suppress(IndexError):
            return self._begun[0]
        if self._failure is not None:
            raise self._failure
        return None

    def pop(self) -> None:
        """Let go of what came next: it is taken."""
        with suppress(IndexError):  # dropped at this moment, by another thread
            self._measure([self._begun.popleft()])

    def __next__(self) -> Begun:
        """Return what comes next, and let go of it."""
        begun = self.head()
        if begun is None:
            raise StopIteration
        self.pop()
        return begun

    def begun(self) -> list[Begun]:
        """Return all that is ready or under way, in its order."""
        return list(self._begun)

    def drop(self) -> list[Begun]:
        """Begin nothing more, and give up what was begun; return it, to be cancelled."""
        self.exhausted = True
        dropped = self.begun()
        self._begun.clear()
        return dropped

    def _measure(self, some: Iterable[Begun]) -> list[int | None]:
        """Return the bytes of results, None of those under way; note the largest."""
        sizes = [] if self._nbytes is None else list(map(self._nbytes, some))
        known = [size for size in (self._largest, *sizes) if size is not None]
        self._largest = max(known, default=None)
        return sizes

    def _has_room(self) -> bool:
        if self.paused or len(self._begun) >= self._most:
            return False
        if not self._begun or self._nbytes is None:
            return True
        sizes, largest = self._measure(self.begun()), self._largest
        if largest is None:
            return False
        held = sum(largest if size is None else size for size in sizes)
        return held + largest <= self._max_bytes


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

    Unlike the jobs of a `Lookahead`, which are begun as results are taken, they are made while the
    consumer is busy for long, such as with a batch that it encodes. What the generator raises is
    raised where its next item would have been. Leaving the `with` block stops it: the item in the
    making is still finished, then the generator is closed, in its own thread.
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
