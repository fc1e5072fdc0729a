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
    """Tell whether this process belongs to a torch.distributed group of several."""
    # Not every build of torch has it.
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


def check_equal(values: Mapping[str, Any], what: str) -> None:
    """Refuse to go on unless every rank passes equal values; every rank must call it.

    Args:
        values: What must be equal, nested by key, of types that JSON has.
        what: What they are, for the message.

    Raises:
        PlanError: Ranks differ; names them and the difference, the same on every rank.
    """
    if not is_distributed():
        return
    ranks = torch.distributed.get_world_size()
    hashes: list[Any] = [None] * ranks
    # Only a hash from each rank, as long as there is no difference to explain.
    torch.distributed.all_gather_object(hashes, hash_description(values))
    if len(set(hashes)) == 1:
        return
    every: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(every, dict(values))
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


def broadcast_text(text: str) -> str:
    """Return rank 0's text on every rank; every rank must call it."""
    box = [text]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def run_first(work: Callable[[], None], *, first: bool) -> None:
    """Run `work` in some ranks while the others wait, however long; every rank must call it.

    Args:
        work: The work.
        first: Whether this rank does it.

    Raises:
        PeerError: It failed in another rank; the log of that rank has the details.
        BaseException: It failed in this rank.
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
        reason = None if failed is None else f"{type(failed).__name__}: {failed}"
        torch.distributed.all_gather_object(found, reason, group)
        torch.distributed.destroy_process_group(group)
    for rank, why in enumerate(found):
        if why is not None:
            raise PeerError(f"rank {rank} failed while it made the data ready: {why}")


def describe_difference(every: Sequence[Mapping[str, Any]], what: str) -> str:
    """Describe which ranks differ from rank 0, and in what.

    Args:
        every: The values of each rank, by rank; not all equal.
        what: What they are.
    """
    others: dict[str, list[int]] = {}
    for rank, values in enumerate(every):
        lines = "\n".join(f"  {line}" for line in difference(every[0], values))
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
