"""Work for engines, importable where it is done."""

import os
import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from factory.engine.engine import Engine


def inverse(number: int) -> float:
    """Fail at 0."""
    return 1 / number


def place(number: int) -> tuple[int, int]:
    """Tell the process it is done in."""
    return number, os.getpid()


@dataclass(frozen=True)
class Doubling:
    """Doubles numbers; dies, or fails, at one of them.

    Attributes:
        folder: Where it is noted how often each number was begun.
        deadly: The process is killed at this number, so many times.
        times: How many times.
        wrong: At this one an error is raised.
    """

    folder: str
    deadly: int | None = None
    times: int = 1
    wrong: int | None = None

    def __call__(
        self, units: Iterable[int], engine: Engine
    ) -> Generator[tuple[int, int], None, None]:
        """Yield (number, its double)."""
        del engine
        for number in units:
            begun = Path(self.folder, f"{number}")
            with begun.open("a") as file:
                file.write("x")
            if number == self.deadly and len(begun.read_text()) <= self.times:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self.wrong:
                raise ZeroDivisionError(f"at {number}")
            yield number, 2 * number
