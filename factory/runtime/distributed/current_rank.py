"""Rank and world size of this process, where no Trainer provides them."""

import os
from typing import NamedTuple

import torch.distributed

from factory.errors import ConfigError, PlanError
from factory.runtime.distributed.consistency import is_distributed

# By which launchers say it: torchrun (and whoever sets what torch's env:// reads), mpirun, srun.
# A shell inside SLURM's allocation has SLURM_PROCID, too, and only steps have SLURM_STEP_ID.
_VARIABLES = (
    ("RANK", "WORLD_SIZE", None),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("PMI_RANK", "PMI_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),
)
HOW = (
    "call torch.distributed.init_process_group() before you ask for batches, or pass rank= and "
    "world_size="
)


class Ranks(NamedTuple):
    """Which process this is.

    Attributes:
        rank: This process, from 0.
        world_size: Number of processes.
        given: Whether somebody said so, rather than torch.distributed or a launcher.
    """

    rank: int = 0
    world_size: int = 1
    given: bool = False


def check_given(rank: int | None, world_size: int | None) -> None:
    """Refuse a rank without a number of ranks, or outside of it.

    Raises:
        ConfigError: Names both.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(
            f"rank={rank} and world_size={world_size} belong together: give both, or neither for "
            "those of torch.distributed or of the launcher"
        )
    if rank is not None and world_size is not None and not 0 <= rank < world_size:
        raise ConfigError(
            f"rank={rank} must be from 0 to world_size - 1, and world_size={world_size} at least 1"
        )


def find_ranks(rank: int | None = None, world_size: int | None = None) -> Ranks:
    """Return which process this is: as given, else of torch.distributed, else of the launcher.

    Args:
        rank: This process, if it is given.
        world_size: Number of processes, if it is given.

    Raises:
        ConfigError: What is given, or the launcher's variables, make no sense.
        PlanError: There are several processes, and nothing says which one this is.
    """
    check_given(rank, world_size)
    if rank is not None and world_size is not None:
        return Ranks(rank, world_size, given=True)
    if is_distributed():
        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    for mine, count, only_if in _VARIABLES:
        if count in os.environ and (only_if is None or only_if in os.environ):
            if mine not in os.environ and os.environ[count] != "1":
                raise PlanError(
                    f"{count}={os.environ[count]} says that there are so many processes, and no "
                    f"{mine} which one this is: {HOW}"
                )
            return _of_launcher(mine, count)
    return Ranks()


def _of_launcher(mine: str, count: str) -> Ranks:
    said = os.environ.get(mine, "0"), os.environ[count]
    try:
        rank, world_size = map(int, said)
        check_given(rank, world_size)
    except ValueError as error:  # a ConfigError is one
        raise ConfigError(
            f"{mine}={said[0]} of {count}={said[1]} in the environment is no rank of a number of "
            f"ranks; unset them, or {HOW}"
        ) from error
    return Ranks(rank, world_size)


def check_ranks(ranks: Ranks) -> str | None:
    """Refuse a rank that contradicts torch.distributed by now.

    Returns:
        A warning, where the ranks were given and are fewer than the processes.

    Raises:
        PlanError: A process group came up after the rank was found, so that several processes
            would be given the same samples.
    """
    if not is_distributed():
        return None
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not ranks.given and ranks[:2] != (rank, world_size):
        raise PlanError(
            f"this process is rank {rank} of {world_size} in torch.distributed, and its batches "
            f"were asked for before, as rank {ranks.rank} of {ranks.world_size}: {HOW}"
        )
    if ranks.given and ranks.world_size < world_size:
        return (
            f"the data is given rank {ranks.rank} of {ranks.world_size}, and torch.distributed has "
            f"{world_size} processes: some are given the same samples, which is right only where "
            "they share a model's layers, heads or context"
        )
    return None
