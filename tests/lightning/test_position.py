"""Where a run stands: committed steps, the next one, and epochs that end early."""

from factory.lightning.position import Position


def three_steps(epoch: int) -> int:
    del epoch
    return 3


def test_a_step_commits_with_its_last_micro_batch() -> None:
    position = Position()
    position.divide(2)
    position.begin(0, 0)
    seen = []
    for _ in range(4):
        position.count()
        seen.append(position.committed)
    assert seen == [(0, 0), (0, 1), (0, 1), (0, 2)]
    assert position.next(three_steps) == (0, 2)


def test_after_the_last_step_comes_the_next_epoch() -> None:
    position = Position()
    position.begin(4, 2)
    position.count()
    assert position.committed == (4, 3)
    assert position.next(three_steps) == (5, 0)


def test_an_epoch_may_be_ended_before_its_last_step_but_only_once() -> None:
    position = Position()
    position.begin(0, 0)
    position.count()
    position.finish()
    position.finish()
    assert position.committed == (1, 0)


def test_a_loop_that_does_not_count_is_taken_by_what_it_was_given() -> None:
    position = Position()
    position.begin(0, 0)
    assert position.next(three_steps) == (0, 0)
    position.give_out_last()
    assert position.next(three_steps) == (1, 0)


def test_a_counted_epoch_goes_on_although_its_last_batch_was_given_out() -> None:
    position = Position()
    position.begin(0, 0)
    position.count()
    position.give_out_last()
    assert position.next(three_steps) == (0, 1)


def test_it_is_restored_until_something_begins() -> None:
    position = Position()
    position.move(2, 1)
    assert position.restored
    assert position.next(three_steps) == (2, 1)
    position.begin(2, 1)
    assert not position.restored


def test_another_division_keeps_what_is_committed() -> None:
    position = Position()
    position.divide(2)
    position.begin(0, 1)
    for _ in range(3):
        position.count()
    position.divide(4)
    assert position.committed == (0, 2)


def test_a_loop_that_counts_does_not_skip_the_last_step_of_an_epoch_begun_again_there() -> None:
    position = Position()
    position.begin(0, 0)
    position.count()
    position.count()
    position.begin(*position.next(three_steps))
    position.give_out_last()  # and the loop was left before it was trained on
    assert position.committed == (0, 2)
    assert position.next(three_steps) == (0, 2)
