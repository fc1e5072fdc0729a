"""Restoring of a Lightning trainer's progress to the position of the data."""

from typing import Any

from lightning.pytorch import Trainer


def restore_trainer(trainer: Trainer, done: int) -> None:
    """Set a restored trainer's count of micro-batches completed in the epoch.

    Its own count is of another accumulation where that was changed, and goes on from the
    middle of a step where a checkpoint was saved there.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epochs, batches = fit.epoch_progress, loop.batch_progress
    if batches.is_last_batch and not loop.val_loop.restarted_mid_evaluation:
        # Saved while an epoch was being closed. Lightning would fetch a batch of the next one to
        # find that out, or hold the old epoch's count against the next one's length.
        at: Any = epochs.current
        if at.processed < at.started:
            epochs.increment_processed()
        if at.completed < at.processed:
            epochs.increment_completed()
        for each in (fit, loop, loop.val_loop):
            each.on_iteration_done()
    elif not batches.is_last_batch:
        # The loop adds the batch that was being closed when the checkpoint was saved.
        batches.current.completed = done - int(loop.restarted_on_train_batch_end)


def epoch_limit(trainer: Trainer | None) -> float | None:
    """Return where a trainer ends an epoch early: steps, or a share below 1; None for nowhere."""
    limit = 1.0 if trainer is None else trainer.limit_train_batches
    if trainer is not None and isinstance(limit, int):
        return limit // trainer.accumulate_grad_batches
    return limit if limit is not None and limit < 1 else None
