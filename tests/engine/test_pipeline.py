"""Stages run side by side, hold no more than they may, and end together."""

import threading
from collections.abc import Generator, Iterator

import pytest

from factory.engine.pipeline import Ahead, Behind

NAME = "stage-under-test"
# No test waits so long: whoever waits is woken, and a hang is a failure.
SECONDS = 20


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert NAME not in {thread.name for thread in threading.enumerate()}


def numbers(count: int, made: list[int]) -> Generator[int, None, None]:
    for n in range(count):
        made.append(n)
        yield n


def ahead(items: Generator[int, None, None], limit: int) -> Ahead[int]:
    return Ahead(items, size=lambda _: 1, limit=limit, name=NAME)


def test_items_come_in_their_order() -> None:
    with ahead(numbers(50, []), 3) as items:
        assert list(items) == list(range(50))


def test_items_are_made_before_they_are_asked_for_and_no_more_than_fit() -> None:
    made: list[int] = []
    reached = threading.Event()

    def watched() -> Generator[int, None, None]:
        for n in numbers(50, made):
            if n == 4:
                reached.set()
            yield n

    with ahead(watched(), 4) as items:
        assert reached.wait(SECONDS)  # four wait, the fifth is made and finds no room
        assert made == [0, 1, 2, 3, 4]
        assert next(items) == 0


def test_an_item_of_any_size_has_room_where_none_waits() -> None:
    with Ahead(numbers(3, []), size=lambda _: 100, limit=1, name=NAME) as items:
        assert list(items) == [0, 1, 2]


def test_what_the_generator_raises_is_raised_after_the_items_before() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ZeroDivisionError("here")

    with ahead(failing(), 9) as items:
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError, match="here"):
            next(items)


def test_leaving_early_closes_the_generator() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with ahead(endless(), 2) as items:
        next(items)
    assert closed.is_set()


def test_what_is_handed_over_is_done_in_its_order_before_the_end() -> None:
    done: list[int] = []
    with Behind(done.append, limit=3, name=NAME) as behind:
        for n in range(50):
            behind.put(n, 1)
    assert done == list(range(50))


def test_whoever_hands_over_waits_for_room() -> None:
    go, told = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        assert go.wait(SECONDS)
        done.append(number)

    def hand_over() -> None:
        with Behind(work, limit=2, name=NAME) as behind:
            for n in range(3):
                behind.put(n, 1)
            told.set()
            behind.put(3, 1)  # one is done, two wait
            assert done

    giver = threading.Thread(target=hand_over)
    giver.start()
    assert told.wait(SECONDS)
    go.set()
    giver.join(SECONDS)
    assert done == [0, 1, 2, 3]


def test_what_the_function_raises_stops_whoever_hands_over() -> None:
    def fail(number: int) -> None:
        raise ZeroDivisionError(number)

    def hand_over() -> None:
        with Behind(fail, limit=1, name=NAME) as behind:
            for n in range(1000):  # the third one at the latest waits until the first has failed
                behind.put(n, 1)

    with pytest.raises(ZeroDivisionError, match="0"):
        hand_over()


def test_what_the_function_raises_at_the_last_item_is_raised_at_the_end() -> None:
    def fail(number: int) -> None:
        raise ZeroDivisionError(number)

    with pytest.raises(ZeroDivisionError), Behind(fail, limit=1, name=NAME) as behind:
        behind.put(0, 1)


def test_after_a_failure_what_waits_is_forgotten() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        begun.set()
        assert go.wait(SECONDS)
        done.append(number)

    behind = Behind(work, limit=9, name=NAME)
    for n in range(5):
        behind.put(n, 1)
    assert begun.wait(SECONDS)
    behind._lane.stop()  # as leaving by an exception does first
    go.set()
    with pytest.raises(ZeroDivisionError), behind:
        raise ZeroDivisionError
    assert done == [0]


def test_what_failed_before_the_end_is_raised_at_the_end() -> None:
    def fail(item: int) -> None:
        raise ZeroDivisionError(item)

    behind = Behind(fail, limit=9, name=NAME)
    behind.put(1, 1)
    behind._thread.join(SECONDS)  # it has failed before the block is left
    with pytest.raises(ZeroDivisionError), behind:
        pass
