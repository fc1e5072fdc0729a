"""What this process does right now, for those who watch it."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Activity:
    """What one process does.

    Attributes:
        stage: "starting", "training", "validating", "waiting", "failed" or "done".
        what: On or for what, such as "epoch 0, step 12", or the error.
        for_s: Seconds it has been so.
    """

    stage: str = "starting"
    what: str = ""
    for_s: float = 0.0

    def __str__(self) -> str:
        """Say it in one line."""
        lines = self.what.strip().splitlines() or [""]
        return f"{self.stage} {lines[0]}".strip() + f" since {self.for_s:.1f} s"

    @classmethod
    def read(cls, value: Any) -> "Activity":
        """Take what another process sent.

        Raises:
            ValueError: It is nothing like it.
        """
        match value:
            case [str(stage), str(what), float(for_s) | int(for_s)]:
                return cls(stage, what, float(for_s))
        raise ValueError(f"not what a process does: {value!r}")

    def sent(self) -> list[Any]:
        """Return it as values for JSON."""
        return [self.stage, self.what, round(self.for_s, 3)]


class ActivityTracker:
    """The activity of a process: set by the thread that works, read by any other."""

    def __init__(self) -> None:
        """Begin as starting."""
        # One tuple, replaced whole: a reader never sees half of a change.
        self._state = ("starting", "", time.monotonic())

    def say(self, stage: str, what: str = "") -> None:
        """Set what is done from now on."""
        self._state = (stage, what, time.monotonic())

    @property
    def now(self) -> Activity:
        """What is done now, and for how long."""
        stage, what, since = self._state
        return Activity(stage, what, time.monotonic() - since)

    def track(
        self, batches: Iterable[Item], stage: str, name: Callable[[int], str]
    ) -> Iterator[Item]:
        """Yield batches, and set when one is waited for and when it is worked on.

        Args:
            batches: The batches.
            stage: What is done with each.
            name: Names the n-th one, from 0.
        """
        number = 0  # counted here: `enumerate` holds a batch until it has the next one
        self.say("waiting", f"for the batch of {name(number)}")
        for batch in batches:
            self.say(stage, name(number))
            yield batch
            del batch  # not held while the next one is waited for
            number += 1
            self.say("waiting", f"for the batch of {name(number)}")
