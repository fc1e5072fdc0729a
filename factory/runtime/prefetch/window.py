"""The window of batches that are prepared ahead of the consumer, bounded by number and bytes."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic

from factory.runtime.prefetch.executors import BatchFuture, Job, Made


class BatchWindow(Generic[Job, Made]):
    """The jobs between the plan and the consumer, in plan order.

    Ready batches count by their size, those in the making by the largest one seen. Until a
    first one is made nothing is known of sizes, so that one is made alone. One batch is
    always allowed.

    Attributes:
        exhausted: Whether the last job was taken.
        paused: Whether no further job is begun.
        largest: Bytes of the largest batch seen.
    """

    def __init__(
        self, jobs: Iterable[Job], *, batches: int, max_bytes: float, measured: bool
    ) -> None:
        """Store the bounds.

        Args:
            jobs: The work; taken lazily, by one thread at a time.
            batches: Most batches ready or in the making.
            max_bytes: Most bytes they hold, but for one batch.
            measured: Whether futures will know their bytes; else only `batches` counts.
        """
        self._jobs = iter(jobs)
        self._batches, self._max_bytes, self._measured = batches, max_bytes, measured
        self._ahead: deque[BatchFuture[Job, Made]] = deque()
        self._taking = threading.Lock()
        self.exhausted = False
        self.paused = False
        self.largest = 0
        self._known = False  # whether a batch was ever measured

    def fill(self, begin: Callable[[BatchFuture[Job, Made]], None]) -> None:
        """Take jobs while there is room, and begin each."""
        with self._taking:
            while not self.exhausted and self._room():
                future = self.take()
                if future is None:
                    return
                self._ahead.append(future)
                if not future.done:
                    begin(future)

    def take(self) -> BatchFuture[Job, Made] | None:
        """Return the next job's future; None after the last one.

        Where jobs cannot be told, the future has failed: the error comes in its turn.
        """
        try:
            return BatchFuture(next(self._jobs))
        except StopIteration:
            self.exhausted = True
            return None
        except Exception as error:  # noqa: BLE001 - raised at the consumer
            self.exhausted = True
            future: BatchFuture[Job, Made] = BatchFuture(None)  # type: ignore[arg-type]
            future.stage = "planning"
            future.fail(error)
            return future

    def head(self) -> BatchFuture[Job, Made] | None:
        """Return the future whose turn it is."""
        return self._ahead[0] if self._ahead else None

    def pop(self) -> None:
        """Let the first one go: its batch is delivered."""
        with suppress(IndexError):  # dropped at this moment, by another thread
            self.largest = max(self.largest, self._ahead.popleft().nbytes)
            self._known = True

    def futures(self) -> list[BatchFuture[Job, Made]]:
        """Return all that are ready or in the making, in plan order."""
        return list(self._ahead)

    def drop(self) -> list[BatchFuture[Job, Made]]:
        """Give up everything; return what that was."""
        self.exhausted = True
        dropped = list(self._ahead)
        self._ahead.clear()
        for future in dropped:
            future.cancelled = True
        return dropped

    def _room(self) -> bool:
        ahead = list(self._ahead)
        if self.paused or len(ahead) >= self._batches:
            return False
        if not ahead or not self._measured:
            return True
        if not self._known and not any(future.done for future in ahead):
            return False
        self.largest = max(self.largest, *(future.nbytes for future in ahead))
        held = sum(future.nbytes if future.done else self.largest for future in ahead)
        return held + self.largest <= self._max_bytes
