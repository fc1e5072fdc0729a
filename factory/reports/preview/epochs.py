"""Epochs of a dry run: what each backend contributes, in each epoch and part of it."""

from factory.errors import PlanError
from factory.reports.preview.summary import (
    BackendShare,
    EpochSummary,
    PlanSummary,
    RunLimits,
    StretchSummary,
)
from factory.sampling.active_window import ActiveWindow
from factory.sampling.epoch_schedule import ScheduleStretch
from factory.sampling.plan import Plan

# Epochs shown: the first, and those after it in which a window opens or closes.
MOST_EPOCHS = 6
# Steps of an epoch that are shown one by one.
MOST_STEPS = 200


def lay_out(plan: Plan, run: RunLimits) -> PlanSummary:
    """Return the plan of a run in numbers.

    Raises:
        PlanError: No backend is active in the first epoch.
    """
    steps, epochs = length(plan, run)
    return PlanSummary(
        fingerprint=plan.fingerprint,
        batch_size=plan.batch_size,
        short_batch=str(plan.short_batch),
        seed=plan.seed,
        epoch_rule=str(plan.ending.rule),
        epoch_steps=plan.ending.steps,
        epochs=tuple(_epoch(plan, epoch) for epoch in changes(plan, epochs)),
        run_steps=steps,
        run_epochs=epochs,
    )


def length(plan: Plan, run: RunLimits) -> tuple[int | None, float | None]:
    """Return (steps, epochs) of a run; None for no limit, or where no backend is left."""
    steps = run.max_steps
    try:
        if run.max_epochs is not None:
            last = run.max_epochs - 1
            end = plan.at(last, 0).global_step + plan.steps(last)
            steps = end if steps is None else min(steps, end)
        if steps is None:
            return None, None
        epoch, step = plan.position(max(steps - 1, 0))
        return steps, epoch + (step + 1) / plan.steps(epoch)
    except PlanError:
        return steps, None


def changes(plan: Plan, run_epochs: float | None) -> list[int]:
    """Return the first epoch and those in which a window opens or closes, from 0."""
    found = {0}
    for backend in plan.backends:
        found |= _edges(plan, backend.window)
    inside = [epoch for epoch in sorted(found) if run_epochs is None or epoch < run_epochs]
    return [epoch for epoch in inside if _is_laid_out(plan, epoch)][:MOST_EPOCHS]


def _edges(plan: Plan, window: ActiveWindow) -> set[int]:
    """Return the epochs, from 0, in which a window opens or closes, and those after them."""
    found = {window.start_epoch - 1}
    if window.end_epoch is not None:
        found.add(window.end_epoch)
    for step in (window.first_step, window.end_step, *(window.fade or ())):
        try:
            if step:
                at, inside = plan.position(step)
                # An edge inside an epoch makes the next one differ again.
                found |= {at, at + 1} if inside else {at}
        except PlanError:
            continue  # the plan ends before it
    return found


def _is_laid_out(plan: Plan, epoch: int) -> bool:
    try:
        return plan.steps(epoch) > 0
    except PlanError:
        if not epoch:
            raise
        return False


def _epoch(plan: Plan, epoch: int) -> EpochSummary:
    steps = plan.steps(epoch)
    stretches = plan.stretches(epoch)
    accounts = plan.accounting(epoch)
    shares = tuple(
        BackendShare(
            backend=account.backend,
            weight=float(weight),
            batches=account.batches,
            samples=account.rows,
            filled=account.duplicates,
            left_out=account.dropped,
            asked=_asked(stretches, index),
            achieved=account.achieved,
        )
        for index, (account, weight) in enumerate(zip(accounts, plan.weights, strict=True))
    )
    parts = tuple(
        StretchSummary(
            first=first + 1,
            last=last,
            asked={account.backend: account.requested for account in part},
            achieved={account.backend: account.achieved for account in part},
            batches={account.backend: account.batches for account in part},
            samples={account.backend: account.rows for account in part},
        )
        for first, last, part in plan.shares(epoch)
    )
    first = plan.at(epoch, 0).global_step + 1
    begins = tuple(plan.at(epoch, step).backend for step in range(min(steps, MOST_STEPS)))
    schedule = plan.schedule_hash(epoch)
    return EpochSummary(epoch + 1, first, steps, begins, shares, parts, schedule)


def _asked(stretches: list[ScheduleStretch], backend: int) -> float:
    """Return the share a backend asks for when it first takes part; 0 if it never does."""
    return next((float(s.shares[backend]) for s in stretches if s.weights[backend]), 0.0)
