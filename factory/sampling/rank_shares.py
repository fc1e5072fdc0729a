"""How a global batch is shared by ranks and micro-batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError


@dataclass(frozen=True)
class RankLayout:
    """How a global batch is divided.

    Attributes:
        rank: This process, from 0.
        ranks: Number of processes.
        micros: Micro-batches per optimizer step (gradient accumulation).
        context_parallel: Consecutive ranks that work on the same samples, each on a part of
            their length.

    Raises:
        PlanError: `context_parallel` does not divide the ranks; names the numbers that do.
    """

    rank: int = 0
    ranks: int = 1
    micros: int = 1
    context_parallel: int = 1

    def __post_init__(self) -> None:
        """Refuse blocks of ranks that would not come out even."""
        size = self.context_parallel
        if size < 1 or self.ranks % size:
            divisors = [str(n) for n in range(1, self.ranks + 1) if not self.ranks % n]
            raise PlanError(
                f"data.context_parallel={size} must divide the number of ranks, {self.ranks}: "
                f"set it to one of {', '.join(divisors)}, or change trainer.devices"
            )

    @property
    def replica(self) -> int:
        """The block of ranks this one belongs to, from 0; its ranks get the same samples."""
        return self.rank // self.context_parallel

    @property
    def replicas(self) -> int:
        """How many shares a batch is cut into."""
        return self.ranks // self.context_parallel

    @property
    def whom(self) -> str:
        """What shares a batch, in words."""
        size = self.context_parallel
        return "ranks" if size == 1 else f"groups of {size} ranks"


def share(
    rows: NDArray[np.int64], rank: int, ranks: int, micro: int = 0, micros: int = 1
) -> NDArray[np.int64]:
    """Return the contiguous part of a global batch that a rank trains in one micro-batch.

    Rank r of R takes the r-th of R equal parts; its part is split again into `micros` equal
    parts, one for each step of gradient accumulation.

    Args:
        rows: The global batch, int64 [B].
        rank: This rank, 0 <= rank < ranks.
        ranks: Number of ranks.
        micro: The micro-batch, 0 <= micro < micros.
        micros: Micro-batches of one optimizer step.

    Returns:
        int64 [B / (ranks * micros)], a view of `rows`.

    Raises:
        PlanError: The batch cannot be cut into equal parts, or rank or micro is out of range.
    """
    if not (0 <= rank < ranks and 0 <= micro < micros):
        raise PlanError(
            f"rank {rank} of {ranks}, micro-batch {micro} of {micros}: both count from 0"
        )
    check_division(len(rows), ranks, micros)
    size = len(rows) // (ranks * micros)
    first = (rank * micros + micro) * size
    return rows[first : first + size]


def check_division(
    batch_size: int, ranks: int, micros: int = 1, *, owner: str = "", whom: str = "ranks"
) -> None:
    """Refuse a batch that ranks and micro-batches cannot share equally.

    Args:
        batch_size: Samples of the global batch.
        ranks: Number of ranks.
        micros: Micro-batches of one optimizer step.
        owner: Whose batch it is, to begin the message with, such as "backend 'a': ".
        whom: What the ranks are called, such as "groups of 2 ranks".

    Raises:
        PlanError: `ranks * micros` does not divide the batch; names the numbers that do.
    """
    parts = ranks * micros
    if parts < 1 or batch_size % parts:
        divisors = [str(number) for number in range(1, batch_size + 1) if not batch_size % number]
        raise PlanError(
            f"{owner}a global batch of {batch_size} cannot be shared by {ranks} {whom} x {micros} "
            f"micro-batches = {parts}; their product must be one of {', '.join(divisors)}. "
            "Change batch_size, the number of devices or the accumulation"
            + ("; short batches come from short_batch=short" if parts > batch_size else "")
        )


def pad(rows: NDArray[np.int64], multiple: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Repeat the last row until the length is a multiple, for batches that ranks must share.

    Args:
        rows: int64 [B].
        multiple: 1 or more, such as ranks x micro-batches.

    Returns:
        Rows, int64 [B'], and a mask, bool [B'], False where a row only pads.

    Raises:
        PlanError: `multiple` is below 1.
    """
    if multiple < 1:
        raise PlanError(f"the multiple to pad to must be 1 or more, got {multiple}")
    missing = -len(rows) % multiple
    valid = np.ones(len(rows) + missing, dtype=np.bool_)
    valid[len(rows) :] = False
    return np.concatenate([rows, np.repeat(rows[-1:], missing)]), valid
