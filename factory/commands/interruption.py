"""Ctrl-C during training: the run ends after the current step, with a checkpoint of it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

_ENDING = b"\nending after this step; Ctrl-C once more ends at once\n"


class Interruption(Callback):
    """Ends a fit between two steps, where a checkpoint continues it exactly.

    Attributes:
        saved: The checkpoint that was saved; None if there was nothing to save, or several
            processes, which are interrupted at different steps.
        step: Optimizer steps completed, once the fit was interrupted; before that None.
    """

    def __init__(self, folder: Path) -> None:
        """Begin before the fit.

        Args:
            folder: The run folder, for a trainer without a folder of checkpoints.
        """
        self.saved: Path | None = None
        self.step: int | None = None
        self._folder = folder
        self._in_step = self._asked = self._trained = self._several = False
        self._started_by_lightning = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Let Ctrl-C wait for the end of a step inside the `with` block.

        Lightning ends an interrupted process with status 1; here it is a KeyboardInterrupt again.
        Processes that Lightning started end with 0: at any other status it kills the one that
        started them, which may be busy saving what there is.
        """
        before = signal.getsignal(signal.SIGINT)
        # Whoever ignores or handles it already, or calls from another thread, is left alone.
        ours = before is signal.default_int_handler
        ours &= threading.current_thread() is threading.main_thread()
        if ours:
            signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        except (SystemExit, Exception) as error:
            # One process may be between two steps, and ends while another waits for it in one.
            theirs = not isinstance(error, SystemExit) and not (self._asked and self._several)
            if self.step is None or theirs:
                raise
            if self._started_by_lightning:
                raise SystemExit(0) from None
            raise KeyboardInterrupt(self._message()) from None
        finally:
            if ours:
                signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._in_step or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        with suppress(OSError):
            os.write(2, _ENDING)  # a print might be under way in what was interrupted

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note that a step is under way: its update may be half done."""
        self._in_step, self._several = True, trainer.world_size > 1

    def on_train_batch_end(self, *_: Any) -> None:
        """End here if that was asked for meanwhile."""
        self._in_step, self._trained = False, True
        if self._asked:
            raise KeyboardInterrupt

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint, unless the interrupt came into a step; end the progress bars."""
        del pl_module
        close_bars(trainer)
        if self._asked or isinstance(exception, KeyboardInterrupt):
            self.step = trainer.global_step
            environment = getattr(trainer.strategy, "cluster_environment", None)
            ours = isinstance(environment, LightningEnvironment)
            self._started_by_lightning = ours and trainer.local_rank > 0
        if not isinstance(exception, KeyboardInterrupt):
            return
        if self._trained and not self._in_step and trainer.world_size == 1:
            keeper = trainer.checkpoint_callback
            folder = getattr(keeper, "dirpath", None) or self._folder / "checkpoints"
            path = Path(folder) / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = path

    def _message(self) -> str:
        if self.saved is not None:
            return f"after step {self.step}; go on with ckpt_path=last, from {self.saved}"
        if not self._trained:
            return "before a step was trained; what was encoded is kept"
        return f"in step {(self.step or 0) + 1}; ckpt_path=last goes on from the checkpoint before"


def close_bars(trainer: Trainer) -> None:
    """Draw progress bars for the last time, so that they do not come again below an error."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar):
        for name in ("val_progress_bar", "train_progress_bar"):
            with suppress(TypeError):  # it is not there yet
                getattr(bar, name).close()
