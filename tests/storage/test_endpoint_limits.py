"""Requests to one server: how many at once, in which order, and after which pause."""

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.storage import endpoint_limits
from factory.storage.endpoint_limits import Endpoint, endpoint, request_counts
from tests.storage.test_retry import Clock


async def take(server: Endpoint, log: list[object], name: object, free: asyncio.Event) -> None:
    async with server.slot():
        log.append(name)
        await free.wait()


def test_first_come_first_served() -> None:
    async def scene() -> list[object]:
        server, log, free = Endpoint("http://x", 2), [], asyncio.Event()
        tasks = []
        for name in range(6):
            tasks.append(asyncio.create_task(take(server, log, name, free)))
            await asyncio.sleep(0)
        assert log == [0, 1]
        free.set()
        await asyncio.gather(*tasks)
        assert server.counts.requests == 6
        assert server.is_idle
        return log

    assert asyncio.run(scene()) == list(range(6))


def test_who_leaves_the_queue_costs_nobody_a_turn() -> None:
    async def scene() -> list[object]:
        server, log, free = Endpoint("http://x", 1), [], asyncio.Event()
        tasks = [asyncio.create_task(take(server, log, name, free)) for name in range(4)]
        for _ in range(3):
            await asyncio.sleep(0)
        tasks[1].cancel()  # it waits
        await asyncio.sleep(0)
        tasks[0].cancel()  # it has the turn, which passes to another that leaves at once
        await asyncio.sleep(0)
        tasks[2].cancel()
        free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert server.is_idle
        return log

    assert asyncio.run(scene())[-1] == 3


def test_threads_and_coroutines_share_one_queue() -> None:
    server, barrier = Endpoint("http://x", 3), threading.Barrier(3)
    lock, now, most = threading.Lock(), [0], [0]

    def inside(change: int) -> None:
        with lock:
            now[0] += change
            most[0] = max(most[0], now[0])

    def in_thread() -> None:
        with server.slot_in_thread(20):
            inside(1)
            barrier.wait(20)  # three must be under way together, or nobody goes on
            inside(-1)

    async def in_loop() -> None:
        async with server.slot():
            inside(1)
            await asyncio.to_thread(barrier.wait, 20)
            inside(-1)

    with ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(in_thread) for _ in range(5)]
        jobs += [pool.submit(asyncio.run, in_loop()) for _ in range(4)]
        for job in jobs:
            job.result(30)
    assert most[0] == 3
    assert server.is_idle


def test_a_thread_waits_no_longer_than_it_may() -> None:
    server = Endpoint("http://x", 1)
    with server.slot_in_thread(1):
        with pytest.raises(TimeoutError), server.slot_in_thread(0.01):
            pass
        server.shrink(float("inf"), 5)
    with pytest.raises(TimeoutError, match="pause"), server.slot_in_thread(0.01):
        pass
    assert server.counts.requests == 1


def test_the_number_halves_once_a_round_and_grows_by_one() -> None:
    clock = Clock()
    server = Endpoint("http://x", 16, clock=clock)
    begun, clock.now = clock.now, clock.now + 1
    for _ in range(5):  # of one round: the first says it all
        server.shrink(begun, None)
    assert server.counts.limit == 8
    server.shrink(clock.now, None)
    assert (server.counts.limit, server.counts.throttled) == (4, 6)
    for _ in range(5):
        server.grow()
    assert server.counts.limit == 5
    for _ in range(1000):
        server.grow()
    assert server.counts.limit == 16
    for step in range(9):
        clock.now += step
        server.shrink(clock.now, None)
    assert server.counts.limit == 1


@given(st.lists(st.sampled_from(["grow", "shrink", "old"]), max_size=60), st.integers(1, 40))
def test_the_number_stays_between_one_and_its_limit(acts: list[str], limit: int) -> None:
    clock = Clock()
    server = Endpoint("http://x", limit, clock=clock)
    for act in acts:
        clock.now += 1
        if act == "grow":
            server.grow()
        else:
            server.shrink(clock.now if act == "shrink" else 0.0, None)
        assert 1 <= server.counts.limit <= limit


def test_a_pause_holds_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    server = Endpoint("http://x", 4, clock=clock)
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(endpoint_limits.asyncio, "sleep", sleep)
    monkeypatch.setattr(endpoint_limits.time, "sleep", lambda seconds: asyncio.run(sleep(seconds)))

    async def scene() -> None:
        async with server.slot() as slot:
            slot.throttled(7)
            slot.throttled(3)  # the longest counts
        async with server.slot():
            assert clock.now == 107

    asyncio.run(scene())
    with server.slot_in_thread(60) as slot:
        slot.throttled(999)
    with server.slot_in_thread(60):
        assert clock.now == 127  # a server may not ask for more than 20 s
    assert slept == [7, 20]
    assert server.counts.waited_s == 27


def test_one_budget_for_each_server_whatever_the_path() -> None:
    one = endpoint("http://user:secret@one.test/a/b?c=d", 3)
    assert one is endpoint("http://one.test:80/else", 2)
    assert one is not endpoint("https://one.test/", 2)
    assert one is not endpoint("http://one.test:81/", 2)
    assert one.name == "http://one.test:80"
    assert one.counts.limit == 3
    assert endpoint("http://one.test", 9).counts.limit == 9
    assert "http://one.test:80" in [each.endpoint for each in request_counts()]


def test_a_forked_child_has_budgets_of_its_own() -> None:
    async def leave_open(server: Endpoint) -> None:
        server.allow(1)
        async with server.slot():
            context = multiprocessing.get_context("fork")
            answers = context.SimpleQueue()

            def child() -> None:
                with endpoint("http://forked.test", 1).slot_in_thread(1):
                    answers.put([each.requests for each in request_counts()])

            process = context.Process(target=child)
            process.start()
            process.join(30)
            assert process.exitcode == 0
            assert answers.get() == [1]

    asyncio.run(leave_open(endpoint("http://forked.test", 1)))


def test_idle_servers_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_limits, "_REMEMBERED", 10)
    known = endpoint_limits._Endpoints("")
    busy = known.of("http://busy", 2)
    with busy.slot_in_thread(1):
        for number in range(50):
            known.of(f"http://{number}", 2)
        assert known.of("http://busy", 2) is busy
        assert len(known.counts()) <= 11
