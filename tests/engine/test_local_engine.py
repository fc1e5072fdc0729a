"""Bulk work in threads: ordered, bounded, exceptions as results."""

import gc
import threading
from collections.abc import Iterator

import pytest

from factory.engine.local_engine import LocalEngine


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(LocalEngine().map(str, range(200))) == [(n, str(n)) for n in range(200)]


def test_an_exception_is_the_result_of_its_item_alone() -> None:
    outcomes = list(LocalEngine(workers=2).map(lambda n: 1 // n, [1, 0, 2]))
    assert outcomes[0] == (1, 1)
    assert isinstance(outcomes[1][1], ZeroDivisionError)
    assert outcomes[2] == (2, 0)


def test_only_a_bounded_number_is_in_flight() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(1000):
            taken.append(n)
            yield n

    results = LocalEngine(workers=2).map(lambda n: n, items())
    next(results)
    assert len(taken) == 8
    results.close()  # type: ignore[attr-defined]


def test_closing_stops_the_threads() -> None:
    results = LocalEngine(workers=3).map(lambda n: n, range(1000))
    next(results)
    del results
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("factory-engine"):
            thread.join(10)  # they end by themselves; closing does not wait for them
            assert not thread.is_alive()


def test_an_engine_without_threads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine\.workers must be at least 1, got 0"):
        LocalEngine(workers=0)


def test_leaving_early_waits_for_nothing() -> None:
    """The garbage collector may close it in any thread, also in one that must not wait."""
    go, finished = threading.Event(), []

    def work(number: int) -> None:
        if number:
            go.wait(10)
            finished.append(number)

    outcomes = LocalEngine(workers=2).map(work, range(6))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert finished == []
    go.set()
