"""What the benchmarks share.

A benchmark is a module here. The first sentence of its docstring says what it measures; it has
`arguments(parser)`, which adds its options, and `run(options)`, which yields its lines. A new
file is found by its name. One that is to be watched by `regress` also has
`quick(scratch, short=…)`, which yields what is measured of it, in a folder of its own; what takes
long it leaves out where that is to be short.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Metric, value, unit, and what the value depends on.
Line = tuple[str, float, str, dict[str, Any]]

# Enough for a steady median on a shared machine, few enough to wait for.
RUNS = 5
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Quick:
    """A short measurement of this project beside its floor.

    Attributes:
        name: Its name in the baseline.
        turn: Does both once, one after the other; returns the seconds of the floor, and those
            of the work. Of both only what is to be compared is in them, for as many samples.
    """

    name: str
    turn: Callable[[], tuple[float, float]]


def in_turn(
    floor: Callable[[], object],
    work: Callable[[], object],
    clock: Callable[[], float] = time.process_time,
) -> Callable[[], tuple[float, float]]:
    """Return what times two pieces of work, one after the other.

    By the processor time of all threads of this process, which what else runs on the machine
    hardly changes; by `time.perf_counter` where waiting is what is looked for, or where other
    processes do the work.
    """

    def turn() -> tuple[float, float]:
        begun = clock()
        floor()
        between = clock()
        work()
        return between - begun, clock() - between

    return turn
