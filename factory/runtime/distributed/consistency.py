"""Checks that all ranks run the same plan, data and position."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed

from factory.errors import PeerError, PlanError
from factory.sampling.fingerprint import difference, hash_description
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan


def is_distributed() -> bool:
    """Tell whether this process is one of a group of torch.distributed."""
    # Not every build of torch has it.
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


def check_equal(told: Mapping[str, Any], what: str) -> None:
    """Refuse to go on unless every rank tells the same; every rank must call it.

    Args:
        told: What must be equal, nested by key, in values for JSON.
        what: What that is, for the message.

    Raises:
        PlanError: Ranks differ; names them and the difference, the same on every rank.
    """
    if not is_distributed():
        return
    ranks = torch.distributed.get_world_size()
    hashes: list[Any] = [None] * ranks
    # A few bytes from each rank, as long as there is nothing to explain.
    torch.distributed.all_gather_object(hashes, hash_description(told))
    if len(set(hashes)) == 1:
        return
    every: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(every, dict(told))
    raise PlanError(describe_difference(every, what))


def check_same_plan(plan: Plan, held: Sequence[PlanBackend]) -> None:
    """Refuse to go on unless every rank has the same plan and validates on the same.

    Args:
        plan: The plan of this rank.
        held: What it validates on.

    Raises:
        PlanError: Ranks differ; names them and the difference, the same on every rank.
    """
    if is_distributed():  # reads all row ids
        validation = {
            each.name: {"identity": each.identity, "buckets": each.sizes.tolist()} for each in held
        }
        check_equal({**plan.describe(), "validation": validation}, "their plans")


def broadcast_text(told: str) -> str:
    """Return on every rank what rank 0 gave; every rank must call it."""
    held = [told]
    torch.distributed.broadcast_object_list(held, 0)
    return held[0]


def run_first(work: Callable[[], None], *, first: bool) -> None:
    """Do something in some ranks while the others wait, however long; every rank must call it.

    Args:
        work: What is done.
        first: Whether this rank does it.

    Raises:
        PeerError: It failed in another rank, whose own log says more.
        BaseException: What went wrong in this one.
    """
    failed: BaseException | None = None
    # Encoding takes longer than the half hour after which collectives give up.
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=365))
    try:
        if first:
            work()
    except BaseException as error:
        failed = error
        raise
    finally:
        found: list[Any] = [None] * torch.distributed.get_world_size()
        told = None if failed is None else f"{type(failed).__name__}: {failed}"
        torch.distributed.all_gather_object(found, told, group)
        torch.distributed.destroy_process_group(group)
    for rank, why in enumerate(found):
        if why is not None:
            raise PeerError(f"rank {rank} failed while it made the data ready: {why}")


def describe_difference(every: Sequence[Mapping[str, Any]], what: str) -> str:
    """Say which ranks differ from rank 0, and in what.

    Args:
        every: What each rank tells, by rank; not all equal.
        what: What that is.
    """
    others: dict[str, list[int]] = {}
    for rank, told in enumerate(every):
        lines = "\n".join(f"  {line}" for line in difference(every[0], told))
        if lines:
            others.setdefault(lines, []).append(rank)
    blocks = [
        f"rank 0 -> rank {', '.join(map(str, ranks))}:\n{lines}" for lines, ranks in others.items()
    ]
    return (
        f"the ranks differ in {what}, and would train on different samples:\n"
        + "\n".join(blocks)
        + "\nStart all of them with the same config, code, data, cache and checkpoint"
    )
