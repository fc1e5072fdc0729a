"""Position of a run in its plan: the last completed step, and the next one."""

from collections.abc import Callable


class Position:
    """The place of a run in its plan, in epochs and optimizer steps from 0.

    The plan's own count decides, not the trainer's: a trainer that stops by steps, or that is
    restored, may be an epoch ahead or behind. Only where a trainer ends an epoch on purpose
    (`limit_train_batches`) is the rest of it left out, see `finish`.
    """

    def __init__(self) -> None:
        """Stand before the first step."""
        self._epoch, self._step = 0, 0
        self._micros, self._done = 1, 0
        self._given_out = -1
        self._under_way = False
        self._restored = False
        self._given, self._counts = 0, False
        self._turn = 0

    @property
    def committed(self) -> tuple[int, int]:
        """The epoch, and the number of its optimizer steps that are completed."""
        return self._epoch, self._step + self._done // self._micros

    @property
    def restored(self) -> bool:
        """Whether it was set by `move` and nothing was begun since."""
        return self._restored

    @property
    def counts(self) -> bool:
        """Whether anything was ever noted as completed."""
        return self._counts

    @property
    def given(self) -> int:
        """Micro-batches given out since the epoch, or what is left of it, was begun."""
        return self._given

    @property
    def pending(self) -> int:
        """How many of them are not completed."""
        return self._given - self._done

    def next(self, steps: Callable[[int], int]) -> tuple[int, int]:
        """Return the (epoch, step) that comes next.

        Args:
            steps: Returns the length of an epoch in optimizer steps.
        """
        epoch, step = self.committed
        # A loop that never counts is taken by what it was given.
        uncounted = self._given_out == epoch and not self._counts
        return (epoch + 1, 0) if uncounted or step >= steps(epoch) else (epoch, step)

    @property
    def turn(self) -> int:
        """How often batches were begun to be given out, or the place was set: who began last."""
        return self._turn

    def begin(self, epoch: int, step: int) -> None:
        """Note that batches are given out from this step on."""
        self._turn += 1
        self._epoch, self._step, self._done = epoch, step, 0
        self._given_out, self._under_way, self._restored = -1, True, False
        self._given = 0

    def count(self) -> None:
        """Note that one more micro-batch is completed."""
        self._done += 1
        self._counts = True

    def give_out(self) -> None:
        """Note that one more micro-batch is about to be given out."""
        self._given += 1

    def commit(self) -> None:
        """Note that all that was given out is completed."""
        self._done = max(self._done, self._given)
        self._counts = True

    def give_out_last(self) -> None:
        """Note that the last micro-batch of the epoch is about to be given out."""
        self._given_out = self._epoch

    def finish(self) -> tuple[int, int] | None:
        """Note that the trainer has ended the epoch, be it whole or not.

        Returns:
            The epoch, and the number of its steps that were completed; None if it had ended.
        """
        if not self._under_way:
            return None
        ended = self.committed
        self._epoch, self._step, self._done = self._epoch + 1, 0, 0
        self._under_way = False
        return ended

    def move(self, epoch: int, step: int) -> None:
        """Stand after a completed step; a step of an accumulation under way is done again."""
        self.begin(epoch, step)
        self._under_way, self._restored = False, True

    def divide(self, micros: int) -> None:
        """Set the micro-batches of one optimizer step."""
        if micros != self._micros or not self._under_way:
            self._epoch, self._step = self.committed
            self._micros, self._done, self._given = micros, 0, 0
