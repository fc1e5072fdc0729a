"""How is a global batch divided among processes and micro-batches?"""

from dataclasses import dataclass

from factory.errors import PlanError


@dataclass(frozen=True)
class Layout:
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
