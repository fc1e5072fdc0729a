"""When a request is sent again, and when it is given up, on a clock of our own."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.storage import event_loop, retry
from factory.storage.endpoint_limits import Endpoint
from factory.storage.event_loop import send_with_retries
from factory.storage.retry import (
    Attempts,
    ExhaustedError,
    Fault,
    RetryLimits,
    RetryQuota,
    retry_after,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tries(
    attempts: int = 5,
    deadline_s: float = 60.0,
    quota: RetryQuota | None = None,
    clock: Callable[[], float] | None = None,
    draw: float = 1.0,
) -> Attempts:
    patience = RetryLimits(attempts, deadline_s)
    return Attempts(patience, quota or RetryQuota(), clock=clock or Clock(), draw=lambda: draw)


def waits(made: Attempts, fault: Fault) -> list[float]:
    found = []
    while True:
        made.begin()
        wait = made.wait_after(fault)
        if wait is None:
            return found
        found.append(wait)


def test_waits_double_up_to_a_limit_and_are_drawn_below_it() -> None:
    assert waits(tries(5), Fault("no")) == [0.25, 0.5, 1.0, 2.0]
    assert waits(tries(5, draw=0.5), Fault("no")) == [0.125, 0.25, 0.5, 1.0]
    assert waits(tries(5, draw=0.0), Fault("no")) == [0.0] * 4
    assert waits(tries(10, deadline_s=1e6), Fault("no"))[-3:] == [16.0, 20.0, 20.0]


def test_the_server_may_ask_to_wait_longer_but_not_for_ever() -> None:
    assert waits(tries(3, draw=0.0), Fault("no", retry_after_s=7)) == [7.0, 7.0]
    assert waits(tries(3, draw=0.0), Fault("no", retry_after_s=9999)) == [20.0, 20.0]


def test_one_attempt_is_no_retry() -> None:
    made = tries(1)
    assert waits(made, Fault("it broke")) == []
    assert made.summary == (
        "tried once in 0.0 s, the last: it broke; storage.max_attempts=1 allows no more"
    )


def test_no_wait_goes_beyond_the_deadline() -> None:
    clock = Clock()
    made = tries(deadline_s=10, clock=clock)
    made.begin()
    assert made.wait_after(Fault("no", retry_after_s=5)) == 5.25
    clock.now += 5.25
    made.begin()
    assert made.left_s == pytest.approx(4.75)
    assert made.wait_after(Fault("no", retry_after_s=5)) is None
    assert "tried 2 times in 5.2 s" in made.summary
    assert "storage.deadline_s=10 leaves no time for more" in made.summary


def test_bytes_that_come_move_the_deadline() -> None:
    made = tries(deadline_s=10)
    made.received(3 * 2**20)
    assert made.left_s == 13


def test_damaged_bytes_are_asked_for_once_more() -> None:
    assert len(waits(tries(9), Fault("other bytes", damaged=True))) == 1


def test_retries_cost_and_successes_pay() -> None:
    quota = RetryQuota(20)
    made = tries(quota=quota)
    made.begin()
    assert made.wait_after(Fault("no")) is not None
    assert quota.left == 15
    made.begin()
    assert made.wait_after(Fault("no", timeout=True)) is not None
    assert quota.left == 5
    made.succeeded()  # gives back what the last retry took
    assert quota.left == 15
    tries(quota=quota).succeeded()
    assert quota.left == 16


def test_without_quota_nothing_is_sent_again_until_something_succeeds() -> None:
    quota = RetryQuota(5)
    assert len(waits(tries(9, quota=quota), Fault("no"))) == 1
    made = tries(9, quota=quota)
    assert waits(made, Fault("no")) == []
    assert "none is sent again for now" in made.summary
    for _ in range(5):
        tries(quota=quota).succeeded()
    assert len(waits(tries(9, quota=quota), Fault("no"))) == 1


@given(st.lists(st.sampled_from(["take", "take timeout", "give"]), max_size=200))
def test_the_quota_stays_within_its_bounds(acts: list[str]) -> None:
    quota = RetryQuota(30)
    for act in acts:
        before = quota.left
        if act == "give":
            quota.give(1)
        else:
            cost = 10 if act.endswith("timeout") else 5
            assert quota.take(cost) == (before >= cost)
        assert 0 <= quota.left <= 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        (
            {
                "retry-after": "Fri, 31 Dec 1999 23:59:59 GMT",
                "date": "Fri, 31 Dec 1999 23:59:29 GMT",
            },
            30.0,
        ),
        (
            {
                "retry-after": "Fri, 31 Dec 1999 23:59:59 GMT",
                "date": "Sat, 01 Jan 2000 23:59:29 GMT",
            },
            0.0,
        ),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59", "date": "x"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


# The driver


class PassingError(Exception):
    pass


def sending(*outcomes: object) -> Callable[..., object]:
    left = list(outcomes)

    async def send(progress: object) -> object:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return send


def judge(error: Exception) -> Fault | None:
    return Fault("it passes") if isinstance(error, PassingError) else None


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "persist" in request.node.name:
        monkeypatch.setattr(retry, "BACKOFF_S", 0.0)


def test_persist_returns_what_comes_in_the_end() -> None:
    endpoint = Endpoint("http://x", 2)
    send = sending(PassingError(), PassingError(), "found")
    assert asyncio.run(send_with_retries(send, judge, endpoint, RetryLimits(3, 10))) == "found"  # type: ignore[arg-type]
    assert (endpoint.counts.requests, endpoint.counts.retries) == (3, 2)


def test_persist_gives_up_with_the_last_cause() -> None:
    endpoint = Endpoint("http://x", 2)
    causes = [PassingError(), PassingError()]
    with pytest.raises(ExhaustedError) as caught:
        asyncio.run(send_with_retries(sending(*causes), judge, endpoint, RetryLimits(2, 10)))  # type: ignore[arg-type]
    assert caught.value.cause is causes[1]
    assert endpoint.counts.failed == 1


def test_persist_lets_through_what_will_not_pass() -> None:
    endpoint = Endpoint("http://x", 2)
    with pytest.raises(KeyError):
        asyncio.run(send_with_retries(sending(KeyError("k")), judge, endpoint, RetryLimits(2, 10)))  # type: ignore[arg-type]
    assert endpoint.counts.requests == 1


@pytest.mark.parametrize("taken", [True, False])
def test_persist_ends_at_its_deadline_in_the_queue_too(taken: bool) -> None:
    endpoint = Endpoint("http://x", 1)

    async def hang(progress: object) -> None:
        await asyncio.Event().wait()

    async def scene() -> None:
        if taken:
            async with endpoint.slot():
                await send_with_retries(hang, judge, endpoint, RetryLimits(2, 0.05))
        else:
            await send_with_retries(hang, judge, endpoint, RetryLimits(2, 0.05))

    with pytest.raises(ExhaustedError, match=r"storage\.deadline_s=0\.05"):
        asyncio.run(scene())
    assert endpoint.is_idle


def test_reads_ahead_are_cancelled_when_one_raises() -> None:
    async def job(number: int) -> int:
        if number:
            await asyncio.Event().wait()
        raise KeyError(number)

    flights: event_loop.OrderedRequests[int, int] = event_loop.OrderedRequests(job, range(9), 4)
    flying = list(flights._pending)
    with pytest.raises(KeyError):
        next(flights)
    assert all(future.cancelled() for future in flying[1:])
    assert list(flights) == []
