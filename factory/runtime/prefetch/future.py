"""What becomes of one job of the fetcher: is it waiting, in the making, or made?"""

import time
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


class Ticket(Generic[Job, Made]):
    """One job on its way to the consumer; completed once, by whoever works on it.

    Attributes:
        job: The work.
        stage: What is done with it, for messages.
        made: The batch, once it is done.
        error: Why there is none.
        done: Whether it is made or failed.
        nbytes: Bytes the batch holds.
        begun: When work on it began, by the monotonic clock; None before.
        seconds: How long the work took.
        cancelled: Whether nobody wants it any more.
    """

    __slots__ = (
        "begun", "bell", "cancelled", "done", "error", "job", "made", "nbytes", "seconds", "stage",
    )  # fmt: skip

    def __init__(self, job: Job) -> None:
        """Begin with nothing done."""
        self.job = job
        self.stage = "making"
        self.made: Made | None = None
        self.error: BaseException | None = None
        self.nbytes = 0
        self.seconds = 0.0
        self.begun: float | None = None
        self.done = self.cancelled = False
        # Waited at without polling, quicker than a condition, and safe to ring from anywhere.
        self.bell: SimpleQueue[None] = SimpleQueue()

    def complete(self, made: Made, nbytes: int, seconds: float) -> None:
        """Note the batch, and wake whoever waits for it."""
        self.made, self.nbytes, self.seconds = made, nbytes, seconds
        self.done = True
        self.bell.put(None)

    def fail(self, error: BaseException) -> None:
        """Note why there is no batch, and wake whoever waits for it."""
        self.error = error
        self.done = True
        self.bell.put(None)

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done, or somebody rings for another reason; False if neither was."""
        if self.done:
            return True
        try:
            self.bell.get(timeout=timeout)
        except Empty:
            return self.done
        return True

    def age(self) -> float | None:
        """Return for how long it is in the making, s; None where work has not begun."""
        return None if self.begun is None else time.monotonic() - self.begun
