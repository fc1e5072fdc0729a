"""Threads that make batches: one of them alone, or all."""

import threading

import pytest

from factory.runtime.prefetch.executors import BatchFuture, ThreadExecutor


def done(executor: ThreadExecutor[int, str], number: int) -> str | None:
    """Have one job done; return the name of the thread that did it."""
    future: BatchFuture[int, str] = BatchFuture(number)
    executor.submit(future)
    assert future.wait(60)
    return future.made


@pytest.fixture
def executor() -> ThreadExecutor[int, str]:
    """Return three threads, all of which were at work."""
    together = threading.Barrier(3)

    def make(number: int) -> str:
        if number < 3:
            together.wait(60)
        return threading.current_thread().name

    executor = ThreadExecutor(make, 3, None)
    futures: list[BatchFuture[int, str]] = [BatchFuture(number) for number in range(3)]
    for future in futures:
        executor.submit(future)
    for future in futures:
        assert future.wait(60)
    return executor


def test_alone_the_first_does_all_and_then_all_do_again(executor: ThreadExecutor[int, str]) -> None:
    executor.alone = True
    names = [done(executor, number) for number in range(10, 30)]
    # Those that waited for a job already are given one more each.
    others = [name for name in names if name != "factory-fetch_0"]
    assert len(others) == len(set(others)) <= 2
    executor.alone = False
    for future in (futures := [BatchFuture[int, str](number) for number in range(3)]):
        executor.submit(future)  # which wait for each other
    assert all(future.wait(60) for future in futures)
    executor.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_closed_none_is_left_waiting(executor: ThreadExecutor[int, str], when: str) -> None:
    if when == "before":
        executor.alone = True
        for number in range(10, 15):
            done(executor, number)
    executor.close()
    executor.alone = True  # by a thread that has just done its job
    assert not executor.alone
    for thread in executor._threads:
        thread.join(60)
        assert not thread.is_alive()
