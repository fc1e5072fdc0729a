"""What several jobs have in common crosses to another process once, and goes when they do."""

import gc
from typing import Any

import pytest

from factory.runtime.batches.sent_once import Receiver, Sender, SentOnce


class Common(SentOnce):
    """Something that jobs have in common."""

    def __init__(self, name: str) -> None:
        """Keep what it says."""
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is made."""
        return Common, (self.name,)


def test_it_is_one_over_there_too_and_sent_once() -> None:
    sender, receiver = Sender(), Receiver()
    common, other = Common("x" * 1000), Common("other")
    first = sender.dumps([1, common, common])
    second = sender.dumps([2, common, other])
    assert len(first) > 1000 > len(second)
    _, one, again = receiver.loads(first)
    _, two, third = receiver.loads(second)
    assert one is again is two
    assert one is not common
    assert (one.name, third.name) == (common.name, "other")


def test_it_goes_when_nobody_has_it_here_any_more() -> None:
    sender, receiver = Sender(), Receiver()
    common = Common("a")
    receiver.loads(sender.dumps(common))
    receiver.loads(sender.dumps(0))
    assert len(receiver._kept) == 1
    del common
    gc.collect()
    receiver.loads(sender.dumps(0))
    assert not receiver._kept


def test_over_thousands_of_jobs_no_more_is_kept_than_is_in_use() -> None:
    sender, receiver = Sender(), Receiver()
    for number in range(1000):
        assert receiver.loads(sender.dumps(Common(str(number)))).name == str(number)
    assert len(receiver._kept) <= 2
    assert len(sender._sent) == 0


def test_what_was_not_sent_is_sent_with_the_next() -> None:
    """A job that cannot be pickled takes along neither what is new in it nor what is gone."""
    sender, receiver = Sender(), Receiver()
    gone, common = Common("gone"), Common("new")
    receiver.loads(sender.dumps(gone))
    del gone
    gc.collect()
    with pytest.raises((AttributeError, TypeError)):
        sender.dumps([common, lambda: 0])
    assert receiver.loads(sender.dumps(common)).name == "new"
    assert len(receiver._kept) == 1


def test_each_connection_has_its_own() -> None:
    common = Common("a")
    one, two = Sender(), Sender()
    assert Receiver().loads(one.dumps(common)).name == "a"
    assert Receiver().loads(two.dumps(common)).name == "a"
