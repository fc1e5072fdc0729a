"""Lightning callback that counts completed optimizer steps and saves the data state."""

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from factory.errors import PlanError
from factory.lightning.data_state import KEY, find_state
from factory.lightning.position import Position
from factory.lightning.restore_trainer import restore_trainer
from factory.lightning.resume import check_present
from factory.runtime.distributed.consistency import check_equal
from factory.sampling.plan import Plan


class StepCounter(Protocol):
    """The data module whose steps are counted."""

    @property
    def plan(self) -> Plan:
        """Its plan."""

    accept_changed_plan: bool | Sequence[str]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last completed step of a checkpoint."""

    def count_micro_batch(self) -> None:
        """Note that the trainer has completed one more micro-batch."""

    def end_epoch(self, epoch: int, step: int) -> None:
        """Note that an epoch ended after so many steps."""

    def pause(self) -> None:
        """Stop prefetching."""

    def on_interrupt(self) -> None:
        """Note that the fit ends by Ctrl-C."""


class StepCallback(Callback):
    """Counts what a trainer has completed; a step commits with its last micro-batch."""

    def __init__(self, data: StepCounter, position: Position) -> None:
        """Store the data module, and its place in the plan."""
        self.data, self.position = data, position

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the data's state under one name, whatever its class is called."""
        del pl_module
        name = type(self.data).__qualname__
        if self._watches(trainer) and name in checkpoint:
            checkpoint[KEY] = checkpoint.pop(name)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the data's state, and refuse a trainer that goes on without one."""
        del pl_module
        if not self._watches(trainer) or trainer.state.fn != TrainerFn.FITTING:
            return
        if type(self.data).__qualname__ not in checkpoint:  # else Lightning has given it already
            bases = [kind.__qualname__ for kind in type(self.data).__mro__]
            state = find_state(checkpoint, [KEY, *bases])
            if state is not None:
                self.data.load_state_dict(state)
        taken = checkpoint.get("global_step", 0)
        committed = self.position.committed if self.position.restored else None
        # A checkpoint may be saved before the first step is counted, once for each optimizer.
        uncounted = 0 if committed is None else len(checkpoint.get("optimizer_states", ())) or 1
        check_present(committed, max(0, taken - uncounted), self.data.accept_changed_plan)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a trainer that was restored agree with where the run stands."""
        del pl_module
        if not self._watches(trainer):
            return
        if (
            not self.position.restored
            and trainer.current_epoch
            and not any(self.position.committed)
        ):
            self.position.move(trainer.current_epoch, 0)  # restored without a state of this data
        epoch, step = self.position.committed
        check_equal({"epoch": epoch, "step": step}, "where they go on")
        if self.position.restored:
            _, step = self.position.next(self.data.plan.steps)
            restore_trainer(trainer, step * trainer.accumulate_grad_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an epoch that would end between the micro-batches of a step."""
        del pl_module
        micros, count = trainer.accumulate_grad_batches, trainer.num_training_batches
        if self._watches(trainer) and count % micros and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            fixed = trainer.overfit_batches  # type: ignore[attr-defined]
            name = "overfit_batches" if fixed else "limit_train_batches"
            raise PlanError(
                f"trainer.{name}={getattr(trainer, name)} ends an epoch after "
                f"{count} micro-batches, within an optimizer step of {micros}; set it to a "
                f"multiple of trainer.accumulate_grad_batches={micros}"
            )

    def on_train_batch_end(self, trainer: Trainer, *hook: Any) -> None:
        """Count one micro-batch."""
        if self._watches(trainer):
            self.data.count_micro_batch()
            self.on_train_epoch_end(trainer, *hook)

    def on_train_epoch_end(self, trainer: Trainer, *hook: Any) -> None:
        """Note the end of an epoch, unless the run merely stops in the middle of one."""
        del hook
        if self._watches(trainer) and trainer.is_last_batch:
            ended = self.position.finish()
            if ended is not None:
                self.data.end_epoch(*ended)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Note a Ctrl-C before other callbacks save and draw, which takes longer elsewhere."""
        del pl_module
        if self._watches(trainer) and isinstance(exception, KeyboardInterrupt):
            self.data.on_interrupt()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the loaders: Lightning's own end asks them for an epoch that may not exist."""
        del pl_module
        if self._watches(trainer):
            self.data.pause()

    def _watches(self, trainer: Trainer) -> bool:
        """Tell whether it is this data that the trainer trains on."""
        return trainer.datamodule is self.data  # type: ignore[attr-defined]
