"""Who is to blame, by what was heard of each process and when."""

from typing import Any

import pytest

from factory.runtime.distributed.status_board import SETTLE_S, StatusBoard
from factory.runtime.prefetch.activity import Activity, ActivityTracker

TURN_S = 0.1


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> StatusBoard:
    return StatusBoard(3, 10.0, clock)


def live(board: StatusBoard, clock: Clock, seconds: float, *ranks: int) -> Any:
    """Let time pass in turns, in which only some ranks are heard of."""
    failure = None
    for _ in range(round(seconds / TURN_S)):
        clock.now += TURN_S
        for rank in ranks:
            board.hear(rank, Activity("training", "step 1"))
        failure = failure or board.failure(TURN_S)
    return failure


def test_a_silent_one_hangs_once_the_time_is_up(board: StatusBoard, clock: Clock) -> None:
    assert live(board, clock, 9.9, 0, 2) is None
    assert "rank 1 has given no sign of life for 10" in str(live(board, clock, 0.3, 0, 2))


def test_one_that_stood_still_itself_blames_nobody(board: StatusBoard, clock: Clock) -> None:
    live(board, clock, 1, 0, 1, 2)
    clock.now += 1000
    assert board.failure(TURN_S) is None
    assert live(board, clock, 9, 0, 1) is None
    assert "rank 2" in str(live(board, clock, 2, 0, 1))


def test_a_dead_one_is_blamed_before_one_that_failed_by_it(
    board: StatusBoard, clock: Clock
) -> None:
    board.hear(2, Activity("failed", "RuntimeError: connection closed"))
    clock.now += SETTLE_S / 2
    assert board.failure(TURN_S) is None
    board.lose(1)
    assert str(board.failure(TURN_S)) == "rank 1 ended without a word"


def test_of_those_that_failed_the_first_is_blamed(board: StatusBoard, clock: Clock) -> None:
    board.hear(2, Activity("failed", "ValueError: first"))
    clock.now += 0.1
    board.hear(0, Activity("failed", "ValueError: second"))
    clock.now += SETTLE_S
    assert str(board.failure(SETTLE_S)) == "rank 2 failed: ValueError: first"


def test_one_that_said_goodbye_may_end_and_be_silent(board: StatusBoard, clock: Clock) -> None:
    board.hear(1, Activity("done"))
    board.lose(1)
    assert live(board, clock, 50, 0, 2) is None


def test_what_one_knows_another_takes_over(board: StatusBoard, clock: Clock) -> None:
    board.hear(1, Activity("waiting", "for the batch of epoch 0, step 3", 4.0))
    board.lose(2)
    clock.now += 2
    other = StatusBoard(3, 10.0, clock)
    other.adopt(board.sent())
    lines = other.lines(0, Activity("training", "epoch 0, step 3", 1.0))
    assert lines == [
        "rank 0 (this one): training epoch 0, step 3 since 1.0 s",
        "rank 1: waiting for the batch of epoch 0, step 3 since 4.0 s (heard of 2.0 s ago)",
        "rank 2: starting since 0.0 s (heard of 2.0 s ago, its connection is closed)",
    ]
    # At first hand it hears of rank 0 alone, and blames nobody else.
    assert other.failure(TURN_S, [0]) is None


@pytest.mark.parametrize("told", [None, [], [1, 2, 3], [[["a", "b"], 1.0, False]] * 3, {"a": 1}])
def test_what_is_no_knowledge_is_refused(board: StatusBoard, told: Any) -> None:
    with pytest.raises(ValueError, match="not what"):
        board.adopt(told)


def test_progress_tells_what_is_waited_for_and_worked_on() -> None:
    progress, seen = ActivityTracker(), []

    def batches() -> Any:
        for number in range(2):
            seen.append(str(progress.now).rpartition(" since")[0])
            yield number

    told = progress.track(batches(), "training", lambda number: f"step {number}")
    seen.extend(str(progress.now).rpartition(" since")[0] for _ in told)
    assert seen == [
        "waiting for the batch of step 0", "training step 0",
        "waiting for the batch of step 1", "training step 1",
    ]  # fmt: skip
