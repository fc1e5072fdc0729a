"""Threads that make batches: one of them alone, or all."""

import threading

import pytest

from factory.runtime.prefetch.executors import ThreadCrew
from factory.runtime.prefetch.future import Ticket


def done(crew: ThreadCrew[int, str], number: int) -> str | None:
    """Have one job done; return the name of the thread that did it."""
    ticket: Ticket[int, str] = Ticket(number)
    crew.submit(ticket)
    assert ticket.wait(60)
    return ticket.made


@pytest.fixture
def crew() -> ThreadCrew[int, str]:
    """Return three threads, all of which were at work."""
    together = threading.Barrier(3)

    def make(number: int) -> str:
        if number < 3:
            together.wait(60)
        return threading.current_thread().name

    crew = ThreadCrew(make, 3, None)
    tickets: list[Ticket[int, str]] = [Ticket(number) for number in range(3)]
    for ticket in tickets:
        crew.submit(ticket)
    for ticket in tickets:
        assert ticket.wait(60)
    return crew


def test_alone_the_first_does_all_and_then_all_do_again(crew: ThreadCrew[int, str]) -> None:
    crew.alone = True
    names = [done(crew, number) for number in range(10, 30)]
    # Those that waited for a job already are given one more each.
    others = [name for name in names if name != "factory-fetch_0"]
    assert len(others) == len(set(others)) <= 2
    crew.alone = False
    for ticket in (tickets := [Ticket[int, str](number) for number in range(3)]):
        crew.submit(ticket)  # which wait for each other
    assert all(ticket.wait(60) for ticket in tickets)
    crew.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_closed_none_is_left_waiting(crew: ThreadCrew[int, str], when: str) -> None:
    if when == "before":
        crew.alone = True
        for number in range(10, 15):
            done(crew, number)
    crew.close()
    crew.alone = True  # by a thread that has just done its job
    assert not crew.alone
    for thread in crew._threads:
        thread.join(60)
        assert not thread.is_alive()
