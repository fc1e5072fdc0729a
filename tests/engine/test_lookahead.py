"""How far ahead jobs are begun: by number, and by bytes that are known or guessed."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engine.pipeline import Lookahead

OPERATIONS = st.lists(
    st.one_of(
        st.just(("take", 0)), st.tuples(st.just("finish"), st.integers(0, 9)),
        st.just(("pause", 0)), st.just(("resume", 0)),
    ),
    max_size=60,
)  # fmt: skip


@dataclass(eq=False)
class Work:
    """A job under way, and its bytes once it is done."""

    job: int
    nbytes: int | None = None


def size(work: Work) -> int | None:
    return work.nbytes


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    batches=st.integers(1, 6),
    limit=st.integers(1, 100),
    operations=OPERATIONS,
)
def test_nothing_is_begun_beyond_the_bounds(
    sizes: list[int], batches: int, limit: int, operations: list[tuple[str, int]]
) -> None:
    making: list[Work] = []
    delivered: list[int] = []

    def begin(job: int) -> Work:
        assert not ahead.paused
        others = ahead.begun()
        assert len(others) < batches
        if others:  # one is always allowed
            known = [each.nbytes for each in others if each.nbytes is not None]
            guess = max([0, *known, *(sizes[job] for job in delivered)])
            under_way = 1 + sum(each.nbytes is None for each in others)
            assert sum(known) + guess * under_way <= limit
            assert known or delivered  # else nothing was known of sizes
        work = Work(job)
        making.append(work)
        return work

    ahead = Lookahead(begin, range(len(sizes)), most=batches, nbytes=size, max_bytes=limit)
    for operation, number in operations:
        if operation == "finish" and making:
            work = making.pop(number % len(making))
            work.nbytes = sizes[work.job]
        elif operation in ("pause", "resume"):
            ahead.paused = operation == "pause"
        else:
            head = ahead.head()
            if head is not None and head.nbytes is not None:
                delivered.append(head.job)
                ahead.pop()
                ahead.fill()
    assert delivered == list(range(len(delivered)))


@given(nbytes=st.integers(1, 40), batches=st.integers(1, 6), limit=st.integers(1, 200))
def test_of_equal_results_memory_stays_below_the_bound(
    nbytes: int, batches: int, limit: int
) -> None:
    most = 0
    ahead = Lookahead(
        lambda job: Work(job, nbytes), range(30), most=batches, nbytes=size, max_bytes=limit
    )
    while ahead.head() is not None:
        most = max(most, nbytes * len(ahead.begun()))
        ahead.pop()
    # The bound is not only kept but used.
    assert most == nbytes * max(1, min(batches, limit // nbytes))


def test_jobs_are_taken_lazily_and_come_in_their_order() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    ahead = Lookahead(Work, jobs(), most=3)
    assert taken == []
    assert next(ahead).job == 0
    assert taken == [0, 1, 2]
    assert [work.job for work in ahead] == list(range(1, 100))
    assert ahead.exhausted


def test_what_jobs_raise_comes_after_the_results_before() -> None:
    def jobs() -> Iterator[int]:
        yield 0
        yield 1
        raise ZeroDivisionError("here")

    ahead = Lookahead(Work, jobs(), most=9)
    assert next(ahead).job == 0
    assert next(ahead).job == 1
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="here"):
            next(ahead)


def test_so_does_a_job_that_cannot_be_begun() -> None:
    def begin(job: int) -> Work:
        return Work(6 // (2 - job))

    ahead = Lookahead(begin, range(9), most=5)
    assert [next(ahead).job for _ in range(2)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_an_interrupt_is_nobodys_result() -> None:
    def jobs() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lookahead(Work, jobs(), most=2).fill()


def test_what_is_dropped_is_returned_and_nothing_follows() -> None:
    ahead = Lookahead(Work, range(9), most=3)
    ahead.fill()
    assert [work.job for work in ahead.drop()] == [0, 1, 2]
    ahead.fill()
    assert ahead.head() is None
    assert list(ahead) == []
    assert ahead.drop() == []
