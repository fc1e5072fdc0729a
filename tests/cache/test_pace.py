"""Copies go the way that was quicker lately, and the other one is not forgotten."""

import pytest

from factory.cache import pace as pace_module
from factory.cache.pace import PROBE, Pace

MIB = 2**20


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        """Begin at 0 s."""
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time, s."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace_module, "perf_counter", made)
    return made


def run(pace: Pace, clock: Clock, copies: int, *, alone: float, together: float) -> int:
    """Copy some MiB, at so many seconds each; return how often several threads did."""
    chosen = 0
    for _ in range(copies):
        several = pace.together()
        began = clock.now
        clock.now += together if several else alone
        pace.note(several, MIB, began)
        chosen += several
    return chosen


def test_both_ways_are_tried_at_once_and_the_quicker_one_is_kept(clock: Clock) -> None:
    assert run(Pace(), clock, PROBE, alone=2.0, together=1.0) == PROBE - 1
    assert run(Pace(), clock, PROBE, alone=1.0, together=9.0) == 1


def test_where_other_work_comes_and_goes_the_way_changes(clock: Clock) -> None:
    pace = Pace()
    run(pace, clock, PROBE, alone=2.0, together=1.0)
    busy = run(pace, clock, 4 * PROBE, alone=3.0, together=90.0)
    assert busy <= 6  # one that shows it, and those that are tried
    run(pace, clock, 20 * PROBE, alone=2.0, together=1.0)
    assert run(pace, clock, PROBE, alone=2.0, together=1.0) == PROBE - 1


def test_one_copy_that_was_disturbed_does_not_change_the_way_for_long(clock: Clock) -> None:
    pace = Pace()
    run(pace, clock, PROBE, alone=1.0, together=1.9)
    run(pace, clock, 1, alone=1.0, together=1.9)  # the other way is tried
    run(pace, clock, 1, alone=8.0, together=1.9)
    assert run(pace, clock, 8 * PROBE, alone=1.0, together=1.9) < 4 * PROBE
