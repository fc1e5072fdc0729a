"""Which jobs are begun ahead of the consumer, and how many may be?"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic

from factory.runtime.prefetch.future import Job, Made, Ticket


class Window(Generic[Job, Made]):
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
            measured: Whether tickets will know their bytes; else only `batches` counts.
        """
        self._jobs = iter(jobs)
        self._batches, self._max_bytes, self._measured = batches, max_bytes, measured
        self._ahead: deque[Ticket[Job, Made]] = deque()
        self._taking = threading.Lock()
        self.exhausted = False
        self.paused = False
        self.largest = 0
        self._known = False  # whether a batch was ever measured

    def fill(self, begin: Callable[[Ticket[Job, Made]], None]) -> None:
        """Take jobs while there is room, and begin each."""
        with self._taking:
            while not self.exhausted and self._room():
                ticket = self.take()
                if ticket is None:
                    return
                self._ahead.append(ticket)
                if not ticket.done:
                    begin(ticket)

    def take(self) -> Ticket[Job, Made] | None:
        """Return the next job's ticket; None after the last one.

        Where jobs cannot be told, the ticket has failed: the error comes in its turn.
        """
        try:
            return Ticket(next(self._jobs))
        except StopIteration:
            self.exhausted = True
            return None
        except Exception as error:  # noqa: BLE001 - raised at the consumer
            self.exhausted = True
            ticket: Ticket[Job, Made] = Ticket(None)  # type: ignore[arg-type]
            ticket.stage = "planning"
            ticket.fail(error)
            return ticket

    def head(self) -> Ticket[Job, Made] | None:
        """Return the ticket whose turn it is."""
        return self._ahead[0] if self._ahead else None

    def pop(self) -> None:
        """Let the first one go: its batch is delivered."""
        with suppress(IndexError):  # dropped at this moment, by another thread
            self.largest = max(self.largest, self._ahead.popleft().nbytes)
            self._known = True

    def tickets(self) -> list[Ticket[Job, Made]]:
        """Return all that are ready or in the making, in plan order."""
        return list(self._ahead)

    def drop(self) -> list[Ticket[Job, Made]]:
        """Give up everything; return what that was."""
        self.exhausted = True
        dropped = list(self._ahead)
        self._ahead.clear()
        for ticket in dropped:
            ticket.cancelled = True
        return dropped

    def _room(self) -> bool:
        ahead = list(self._ahead)
        if self.paused or len(ahead) >= self._batches:
            return False
        if not ahead or not self._measured:
            return True
        if not self._known and not any(ticket.done for ticket in ahead):
            return False
        self.largest = max(self.largest, *(ticket.nbytes for ticket in ahead))
        held = sum(ticket.nbytes if ticket.done else self.largest for ticket in ahead)
        return held + self.largest <= self._max_bytes
