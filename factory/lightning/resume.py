"""Checks whether a run may continue from a checkpoint: format, plan, epoch limits."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from factory.errors import ResumeError
from factory.sampling.fingerprint import difference

logger = logging.getLogger("factory")

# Raised whenever a state can no longer be read by code written before.
STATE_FORMAT = 1
# Whatever is not in a plan's description; said to people who look for what they may change.
FREE = (
    "the number of ranks, micro-batches, workers and threads, prefetch, context_parallel, "
    "caption settings that drop no sample, encoders, cache, and where the data lies as long as "
    "names and versions of the samples are the same"
)

# Said where samples are left out, or used again, in steps that are done.
_LATER = (
    "\nWhat data.exclude left out up to step {}, where this checkpoint is, must stay as it was: to "
    "leave samples out from here on, add an entry with from_step={} or later; to leave them out "
    "earlier, go on from an earlier checkpoint."
)


def check_format(state: Mapping[str, Any]) -> None:
    """Refuse a state that cannot be read.

    Raises:
        ResumeError: It was written by newer code, or is none.
    """
    # States had no number before there was a second thing to tell apart.
    number = state.get("format", 1)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= STATE_FORMAT:
        raise ResumeError(
            f"the checkpoint's data state has format {number}, and this version reads up to "
            f"{STATE_FORMAT}: it was written by a newer version; update, or start without ckpt_path"
        )
    missing = sorted({"fingerprint", "plan", "epoch", "step"} - state.keys())
    if missing:
        raise ResumeError(
            f"the checkpoint's data state lacks {', '.join(missing)}: it is not one of this data "
            "module's, or is damaged; take another checkpoint"
        )


def plan_changes(old: Mapping[str, Any], new: Mapping[str, Any], committed: int) -> list[str]:
    """Return a line for each change that would have made another run so far, or makes one now.

    Args:
        old: The plan's description in the checkpoint.
        new: The plan's description now.
        committed: Completed optimizer steps. Samples excluded from a later step on were still
            in use, so such entries may come and go.
    """
    return difference(_so_far(old, committed), _so_far(new, committed))


def _so_far(plan: Mapping[str, Any], committed: int) -> dict[str, Any]:
    """Return a description without the exclusions that are yet to come."""
    rest = {key: value for key, value in plan.items() if key != "exclude"}
    # Told in steps from 1: what holds from step 5 on changes nothing while 4 are completed.
    past = [
        entry for entry in plan.get("exclude") or () if (entry.get("from_step") or 0) <= committed
    ]
    return {**rest, "exclude": past} if past else rest


def check_plan(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    committed: int,
    accepted: bool | Sequence[str],
) -> None:
    """Refuse another plan, unless its changes are accepted, which is logged.

    Args:
        old: The plan's description in the checkpoint.
        new: The plan's description now.
        committed: Completed optimizer steps.
        accepted: True for any change; or the keys that may have changed, such as "batch_size"
            or "backends.web", which stands for everything below it.

    Raises:
        ResumeError: Something changed that was not accepted; shows it key by key.
    """
    changes = plan_changes(old, new, committed)
    refused = [change for change in changes if not _is_accepted(change, accepted)]
    if refused:
        keys = ",".join(dict.fromkeys(change.partition(": ")[0] for change in refused))
        raise ResumeError(
            "the checkpoint belongs to another plan:\n"
            + _listed(refused)
            + (_LATER.format(committed, committed + 1) if "exclude" in keys.split(",") else "")
            + "\nRestore these settings or the data, or accept the new plan from the same step on "
            f"with data.accept_changed_plan=true, or these changes alone with "
            f"'data.accept_changed_plan=[{keys}]'. Taken without asking: {FREE}"
        )
    if changes:
        logger.warning(
            "the run goes on with another plan than the checkpoint's, as "
            "data.accept_changed_plan says:\n%s", _listed(changes),
        )  # fmt: skip


def check_cut(old: float | None, new: float | None, accepted: bool | Sequence[str]) -> None:
    """Refuse epochs that a trainer ends elsewhere than before, unless that is accepted.

    Args:
        old: Optimizer steps, or share, after which epochs ended; None for whole ones.
        new: The same of now.
        accepted: See `check_plan`; the key is "limit_train_batches".

    Raises:
        ResumeError: They differ.
    """
    if old == new:
        return
    change = f"limit_train_batches: {_steps(old)} -> {_steps(new)}"
    if not _is_accepted(change, accepted):
        raise ResumeError(
            f"the checkpoint's run ended its epochs elsewhere: {change}. It counts micro-batches: "
            "set trainer.limit_train_batches so that it makes as many optimizer steps as before, "
            "or accept it with 'data.accept_changed_plan=[limit_train_batches]'"
        )
    logger.warning("epochs end elsewhere than in the checkpoint's run: %s", change)


def check_present(
    committed: tuple[int, int] | None, trained: int, accepted: bool | Sequence[str]
) -> None:
    """Refuse a trainer that goes on where the data does not, unless that is accepted.

    Args:
        committed: The epoch and the steps in it that the data's state says; None without one.
        trained: Optimizer steps the trainer has taken in the checkpoint, if it can be that the
            data has counted them.
        accepted: See `check_plan`; the key is "data_state".

    Raises:
        ResumeError: The trainer has taken steps of which the data knows nothing.
    """
    if not trained or (committed is not None and any(committed)):
        return
    found = "holds no state of the data" if committed is None else "has the data at step 0"
    if not _is_accepted("data_state: ", accepted):
        raise ResumeError(
            f"the checkpoint has the trainer at step {trained} and {found}, so that samples would "
            "come again. It was saved by a run on other data, or its data module's state was "
            "removed; take another checkpoint, or begin the data's epoch anew with "
            "'data.accept_changed_plan=[data_state]'"
        )
    logger.warning(
        "the checkpoint has the trainer at step %s and %s, which begins the trainer's epoch anew, "
        "as data.accept_changed_plan says", trained, found,
    )  # fmt: skip


def _steps(cut: float | None) -> str:
    return "none" if cut is None else f"{cut} steps" if isinstance(cut, int) else f"{cut}"


def _is_accepted(change: str, accepted: bool | Sequence[str]) -> bool:
    if isinstance(accepted, bool):
        return accepted
    key = change.partition(": ")[0]
    names = [name.removeprefix("data.").rstrip(".") for name in accepted]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _listed(changes: Sequence[str]) -> str:
    return "\n".join(f"  {change}" for change in changes)
