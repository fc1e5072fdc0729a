"""Threads that make batches ahead: bounded, watched, and not waited for where they hang."""

import gc
import re
import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import FetchError
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.executors import BatchFuture


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("factory-fetch")]


def end_of(names: list[str]) -> None:
    for thread in threading.enumerate():
        if thread.name in names:
            thread.join(10)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


def test_order_holds_when_later_jobs_finish_first() -> None:
    second_is_done = threading.Event()

    def make(job: int) -> int:
        if job == 0:
            assert second_is_done.wait(10)
        if job == 1:
            second_is_done.set()
        return job

    assert list(BatchFetcher(make, range(4), Prefetch(workers=2))) == [0, 1, 2, 3]


def test_is_bounded_by_number() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for n in range(100):
            taken.append(n)
            yield n

    batches = iter(BatchFetcher(lambda n: n, jobs(), Prefetch(batches=3)))
    assert next(batches) == 0
    # The one delivered, and three ready or in the making.
    assert taken == [0, 1, 2, 3]
    batches.close()  # type: ignore[attr-defined]


def test_is_bounded_by_bytes_but_always_allows_one() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for n in range(10):
            taken.append(n)
            yield n

    settings = Prefetch(batches=4, megabytes=1)
    fetcher = BatchFetcher(lambda n: n, jobs(), settings, nbytes=lambda made: 2**21)
    batches = iter(fetcher)
    next(batches)
    assert len(taken) == 2  # the first one was made alone, since nothing was known of its size
    for _ in range(3):
        next(batches)
    assert len(taken) == 5  # then never more than one at a time
    assert list(batches) == [4, 5, 6, 7, 8, 9]


def test_batches_before_an_error_are_delivered() -> None:
    def make(job: int) -> int:
        return 1 // (2 - job)

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(BatchFetcher(make, range(9), Prefetch()))
    assert seen == [0, 1]


def test_a_batch_that_never_comes_ends_the_run_with_a_report() -> None:
    release = threading.Event()

    def hang_here(job: int) -> int:
        release.wait(30)
        return job

    fetcher = BatchFetcher(
        hang_here, range(3), Prefetch(timeout_s=0.05), describe=lambda n: f"step {n}"
    )
    try:
        with pytest.raises(FetchError) as caught:
            next(iter(fetcher))
    finally:
        release.set()
    text = str(caught.value)
    assert "no batch within prefetch.timeout_s=0.05 s: step 0 is still in the making" in text
    assert "in hang_here" in text
    assert "raise prefetch.timeout_s" in text
    assert "wait for a worker: 1: step 2" in text
    assert re.search(r"in the making: 2: step 0 \(for 0\.\d s\); step 1 \(for", text)
    assert "ready: none" in text
    assert "delivered: 0" in text
    assert text.count("--- factory-fetch_") == 2
    fetcher.close()
    end_of(threads())


def test_a_batch_given_up_on_is_not_waited_for() -> None:
    release = threading.Event()
    fetcher = BatchFetcher(lambda job: release.wait(30), range(3), Prefetch(timeout_s=0.05))
    with pytest.raises(FetchError, match="no batch within"):
        list(fetcher)
    fetcher.close()
    still_reading = threads()
    release.set()
    end_of(still_reading)
    assert still_reading


def test_a_timeout_of_the_job_itself_is_its_own_error() -> None:
    def make(job: int) -> int:
        raise TimeoutError("storage")

    with pytest.raises(TimeoutError, match="storage"):
        list(BatchFetcher(make, range(2), Prefetch()))


@pytest.mark.parametrize("batches", [1, 3])
def test_closed_while_the_next_job_is_planned(batches: int) -> None:
    """What is taken from the plan at that moment would be waited for, and made by nobody."""

    def jobs() -> Iterator[int]:
        yield 0
        fetcher.close()
        yield 1
        yield 2

    settings = Prefetch(batches=batches, timeout_s=0.2)
    fetcher: BatchFetcher[int, int] = BatchFetcher(lambda n: n, jobs(), settings)
    with pytest.raises(FetchError, match="this fetcher is closed"):
        list(fetcher)


def test_no_thread_before_the_first_batch() -> None:
    fetcher = BatchFetcher(lambda n: n, range(3), Prefetch())
    iter(fetcher)
    assert threads() == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mode", "fast"),
        ("pin_memory", "perhaps"),
        ("batches", 0),
        ("megabytes", 0),
        ("timeout_s", -1),
        ("workers", 0),
    ],
)
def test_settings_that_could_deliver_nothing_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"prefetch\.{setting}"):
        Prefetch(**{setting: value})  # type: ignore[arg-type]


def test_what_is_ready_is_in_the_report_of_a_stall() -> None:
    release, made = threading.Event(), threading.Event()

    def make(job: int) -> int:
        if job == 0:
            assert made.wait(10)
            release.wait(30)
        made.set()
        return job

    fetcher = BatchFetcher(make, range(9), Prefetch(batches=3, timeout_s=0.2), nbytes=None)
    try:
        with pytest.raises(FetchError) as caught:
            next(iter(fetcher))
    finally:
        release.set()
    assert "ready: 2: 1; 2 (0.0 MiB)" in str(caught.value)
    fetcher.close()
    end_of(threads())


def test_the_deadline_is_of_each_wait_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that takes its time between two batches uses up none of it."""
    given: list[float | None] = []
    wait = BatchFuture.wait

    def watched(future: BatchFuture[int, int], timeout: float | None) -> bool:
        given.append(timeout)
        return wait(future, timeout)

    monkeypatch.setattr(BatchFuture, "wait", watched)
    assert list(BatchFetcher(lambda n: n, range(5), Prefetch(timeout_s=7))) == [0, 1, 2, 3, 4]
    assert given == [7] * 5


def test_closing_waits_for_a_batch_in_the_making() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def make(job: int) -> int:
        if job:
            begun.set()
            go.wait(10)
            ended.set()
        return job

    batches = iter(BatchFetcher(make, range(2), Prefetch()))
    next(batches)
    begun.wait(10)
    closing = threading.Thread(target=batches.close)  # type: ignore[attr-defined]
    closing.start()
    go.set()
    closing.join(10)
    assert ended.is_set()


def test_the_last_batch_is_not_held_once_it_is_given_out() -> None:
    class Made:
        pass

    made: list[Any] = []
    batches = iter(BatchFetcher(lambda n: Made(), range(3), Prefetch(batches=1)))
    for batch in batches:
        made.append(weakref.ref(batch))
        del batch
        gc.collect()
        assert made[-1]() is None
    assert len(made) == 3


@given(
    batches=st.integers(1, 5),
    workers=st.integers(1, 4),
    choices=st.lists(st.integers(0, 100), min_size=12, max_size=12),
)
def test_whichever_is_made_first_the_order_stays(
    batches: int, workers: int, choices: list[int]
) -> None:
    """Jobs end in an order drawn at random: each waits until it is picked."""
    began: SimpleQueue[int | None] = SimpleQueue()
    gates = [threading.Event() for _ in choices]

    def make(job: int) -> int:
        began.put(job)
        assert gates[job].wait(10)
        return job

    def pick() -> None:
        held: list[int] = []
        for choice in choices:
            held.append(began.get() or 0)
            while not began.empty():
                held.append(began.get() or 0)
            gates[held.pop(choice % len(held))].set()
            for job in held:
                began.put(job)
            held.clear()

    picking = threading.Thread(target=pick)
    picking.start()
    settings = Prefetch(batches=batches, workers=workers)
    assert list(BatchFetcher(make, range(len(choices)), settings)) == list(range(len(choices)))
    picking.join(10)
