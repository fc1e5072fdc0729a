"""How far ahead jobs are begun: by number, and by bytes that are known or guessed."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.runtime.prefetch.executors import BatchFuture
from factory.runtime.prefetch.window import BatchWindow

OPERATIONS = st.lists(
    st.one_of(
        st.just(("take", 0)), st.tuples(st.just("finish"), st.integers(0, 9)),
        st.just(("pause", 0)), st.just(("resume", 0)),
    ),
    max_size=60,
)  # fmt: skip


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    batches=st.integers(1, 6),
    limit=st.integers(1, 100),
    operations=OPERATIONS,
)
def test_nothing_is_begun_beyond_the_bounds(
    sizes: list[int], batches: int, limit: int, operations: list[tuple[str, int]]
) -> None:
    window: BatchWindow[int, int] = BatchWindow(
        range(len(sizes)), batches=batches, max_bytes=limit, measured=True
    )
    making: list[BatchFuture[int, int]] = []
    delivered: list[int] = []

    def begin(future: BatchFuture[int, int]) -> None:
        assert not window.paused
        ahead = window.futures()
        assert ahead[-1] is future
        assert len(ahead) <= batches
        if len(ahead) > 1:  # one is always allowed
            known = [each.nbytes for each in ahead if each.done]
            guess = max([0, *known, *(sizes[job] for job in delivered)])
            guessed = guess * sum(not each.done for each in ahead)
            assert sum(known) + guessed <= limit
            assert known or delivered  # else nothing was known of sizes
        making.append(future)

    for operation, number in operations:
        if operation == "finish" and making:
            future = making.pop(number % len(making))
            future.complete(future.job, sizes[future.job], 0.0)
        elif operation in ("pause", "resume"):
            window.paused = operation == "pause"
        else:
            window.fill(begin)
            head = window.head()
            if head is not None and head.done:
                delivered.append(head.job)
                window.pop()
                window.fill(begin)
    assert delivered == list(range(len(delivered)))


@given(size=st.integers(1, 40), batches=st.integers(1, 6), limit=st.integers(1, 200))
def test_of_equal_batches_memory_stays_below_the_bound(size: int, batches: int, limit: int) -> None:
    window: BatchWindow[int, int] = BatchWindow(
        range(30), batches=batches, max_bytes=limit, measured=True
    )
    most = 0

    def begin(future: BatchFuture[int, int]) -> None:
        nonlocal most
        future.complete(future.job, size, 0.0)
        most = max(most, sum(each.nbytes for each in window.futures()))

    window.fill(begin)
    while window.head() is not None:
        window.pop()
        window.fill(begin)
    # The bound is not only kept but used.
    assert most == size * max(1, min(batches, limit // size))


def test_jobs_are_taken_lazily() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    window: BatchWindow[int, int] = BatchWindow(jobs(), batches=3, max_bytes=1, measured=False)
    assert taken == []
    window.fill(lambda future: None)
    assert taken == [0, 1, 2]


def test_what_is_dropped_is_cancelled_and_nothing_follows() -> None:
    window: BatchWindow[int, int] = BatchWindow(range(9), batches=3, max_bytes=1, measured=False)
    window.fill(lambda future: None)
    assert [future.cancelled for future in window.drop()] == [True] * 3
    window.fill(lambda future: pytest.fail("begun after the end"))
    assert window.head() is None
