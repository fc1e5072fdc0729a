"""Batches ahead of the consumer: in order, bounded, and gone without a trace when closed."""

import gc
import threading
from collections.abc import Iterator

import pytest

from factory.errors import FetchError, MediaError
from factory.runtime.fetcher import BatchFetcher, Prefetch


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("factory-fetch")]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    assert threads() == []


@pytest.mark.parametrize("mode", ["thread", "inline"])
def test_delivers_in_order(mode: str) -> None:
    fetcher = BatchFetcher(lambda n: n * n, range(50), Prefetch(mode=mode))
    assert list(fetcher) == [n * n for n in range(50)]
    assert fetcher.delivered == 50


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
    known = len(taken)
    assert known == 4  # before the first batch its size was unknown
    for _ in range(3):
        next(batches)
    assert len(taken) == 5  # then never more than one at a time
    assert list(batches) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("mode", ["thread", "inline"])
def test_an_error_keeps_its_type_and_place_and_names_the_job(mode: str) -> None:
    def make(job: int) -> int:
        if job == 2:
            raise MediaError("truncated", "x.jpg")
        return job

    seen: list[int] = []
    fetcher = BatchFetcher(make, range(9), Prefetch(mode=mode), describe=lambda n: f"step {n}")
    with pytest.raises(MediaError, match="truncated") as caught:
        seen.extend(fetcher)
    assert caught.value.__notes__ == ["while making the batch of step 2"]


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
    fetcher.close()


def test_a_batch_given_up_on_is_not_waited_for() -> None:
    release = threading.Event()
    fetcher = BatchFetcher(lambda job: release.wait(30), range(3), Prefetch(timeout_s=0.05))
    with pytest.raises(FetchError, match="no batch within"):
        list(fetcher)
    fetcher.close()
    still_reading = threads()
    release.set()
    for thread in threading.enumerate():
        if thread.name in still_reading:
            thread.join(10)
    assert still_reading


def test_a_timeout_of_the_job_itself_is_its_own_error() -> None:
    def make(job: int) -> int:
        raise TimeoutError("storage")

    with pytest.raises(TimeoutError, match="storage"):
        list(BatchFetcher(make, range(2), Prefetch()))


def test_a_consumer_that_stops_early_leaves_nothing() -> None:
    for made in BatchFetcher(lambda n: n, range(1000), Prefetch()):
        if made == 3:
            break
    gc.collect()
    assert threads() == []


def test_an_exception_in_the_consumer_leaves_nothing() -> None:
    def consume() -> None:
        for _ in BatchFetcher(lambda n: n, range(1000), Prefetch()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()
    assert threads() == []


def test_close_stops_an_iteration_under_way() -> None:
    fetcher = BatchFetcher(lambda n: n, range(1000), Prefetch())
    batches = iter(fetcher)
    next(batches)
    fetcher.close()
    assert threads() == []
    with pytest.raises(FetchError, match="closed"):
        next(batches)


def test_no_thread_before_the_first_batch() -> None:
    fetcher = BatchFetcher(lambda n: n, range(3), Prefetch())
    iter(fetcher)
    assert threads() == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mode", "fast"), ("batches", 0), ("megabytes", 0), ("timeout_s", -1), ("workers", 0)],
)
def test_settings_that_could_deliver_nothing_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"prefetch\.{setting}"):
        Prefetch(**{setting: value})  # type: ignore[arg-type]
