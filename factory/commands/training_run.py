"""One training run with Lightning, from a composed config to a folder of results."""

import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from rich.markup import escape

from factory.commands.interruption import Interruption
from factory.config.build import build, make
from factory.config.run_folder import HYDRA, is_unwritable, newest_checkpoint, unwritable
from factory.errors import ConfigError, FactoryError
from factory.lightning.checkpoint_file import SUFFIX, check_trusted, check_whole, is_sharded
from factory.lightning.datamodule import FactoryDataModule
from factory.metrics.stages import METRICS, Stage
from factory.reports.run_report import show, stages_table, stream_lines, wide_console

logger = logging.getLogger("factory")

# What a killed process has not written of its metrics, s; each time takes a millisecond.
WRITTEN_EVERY_S = 10.0
# What a loss is usually logged as; of the run's own model the first.
_LOSSES = ("val/loss", "val_loss", "train/loss", "train_loss", "loss")
# How torch says that a file system took less than it was given.
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "[enforce fail at inline_container")


def train(cfg: DictConfig, overrides: list[str], folder: Path) -> float | None:
    """Build, fit and report.

    Args:
        cfg: A composed config.
        overrides: The overrides it was composed from.
        folder: The run folder; checkpoints, pictures and metrics are written there.

    Returns:
        What a sweeper compares runs by: the metric `optimized_metric`, as it was logged last.

    Raises:
        FactoryError: What cannot be built, read, planned or written.
        KeyboardInterrupt: The fit was interrupted; says at which step, and what was saved.
    """
    _quiet()
    cfg.paths.run_dir = str(folder)
    checkpoint = find_checkpoint(cfg.ckpt_path, Path(cfg.paths.output_dir), folder)
    data = build(cfg, overrides)
    seed_everything(cfg.seed, workers=True, verbose=False)
    report, interruption = RunReport(data, folder, checkpoint), Interruption(folder)
    with ExitStack() as stack:  # the last one first
        stack.push(lambda _kind, error, _trace: report.finish(error))
        stack.enter_context(_naming_folder(folder))
        stack.callback(data.close)
        given = [make(node, f"callbacks.{name}") for name, node in cfg.callbacks.items()]
        trainer = _trainer(cfg.trainer, [report, *given, interruption])
        model: LightningModule = make(cfg.model, "model")
        if checkpoint is not None:  # only now: the model's module may allow classes of its own
            check_trusted(Path(checkpoint))
        with interruption.watch():
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return objective(trainer, cfg.optimized_metric)


def objective(trainer: Trainer, name: str | None) -> float | None:
    """Return a metric that was logged; of those usual for a loss the first there is, if None."""
    logged = trainer.callback_metrics
    for each in _LOSSES if name is None else (name,):
        if each in logged:
            return float(logged[each])
    if name is not None:
        known = ", ".join(sorted(logged)) or "nothing"
        logger.warning("optimized_metric=%s was not logged, but %s", name, known)
    return None


@contextmanager
def _naming_folder(folder: Path) -> Iterator[None]:
    """Say which folder cannot be written, and how to have it elsewhere."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, FactoryError):
            raise
        if isinstance(error, OSError) and is_unwritable(error, folder):
            raise unwritable(folder, error) from error
        if str(error).startswith(_TORCH_CANNOT_WRITE):
            raise unwritable(folder, OSError(*error.args)) from error
        raise


def _trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Make the trainer; what Lightning refuses comes with the settings that say what is there.

    Raises:
        ConfigError: There is no such accelerator here, or fewer devices, or another setting
            does not fit.
    """
    try:
        trainer: Trainer = make(cfg, "trainer", callbacks=callbacks)
    except ConfigError as error:
        cause = getattr(error.__cause__, "__cause__", None)
        if not isinstance(cause, MisconfigurationException | ModuleNotFoundError):
            raise
        given = ", ".join(f"{name}={cfg.get(name)}" for name in ("accelerator", "devices"))
        told = str(cause).rstrip(".")
        if re.search(r"accelerator|device|gpu|cuda|mps", told, re.IGNORECASE):
            told += (
                "; to take what this machine has, set trainer.accelerator=auto trainer.devices=auto"
            )
        raise ConfigError(f"trainer ({given}): {told}") from error
    return trainer


def _quiet() -> None:
    """Keep Lightning's notices about itself off the terminal; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Raised inside Lightning, about torch; nobody who trains can act on it.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def find_checkpoint(path: str | None, output_dir: Path, folder: Path | None = None) -> str | None:
    """Return the checkpoint to continue from: that given, or for "last" the newest run's last one.

    Of a run that is begun again in its own `folder` it is that folder's.

    Raises:
        ConfigError: There is no such file, or a folder that is no checkpoint.
        ResumeError: It is not whole.
    """
    if path is None:
        return None
    if path != "last":
        given = Path(path)
        if not given.is_file() and not is_sharded(given):
            inside = newest_checkpoint(given) if given.is_dir() else None
            raise ConfigError(
                f"ckpt_path={path} is "
                + ("a folder, and no checkpoint of a sharded strategy" if given.is_dir() else
                   "no file")
                + (f"; give the newest one in it, ckpt_path={inside[1]}" if inside else
                   "; give a checkpoint")
                + f", or ckpt_path=last for the newest one below {output_dir}"
            )  # fmt: skip
        check_whole(given)
        return path
    own = None if folder is None else newest_checkpoint(folder)
    found = own or newest_checkpoint(output_dir, folder)
    if found is None:
        raise ConfigError(
            f"ckpt_path=last: no run below {output_dir} left a checkpoint; start without "
            "ckpt_path, or give a file"
        )
    _, checkpoint = found
    check_whole(checkpoint, output_dir.rglob(f"*{SUFFIX}"))
    return str(checkpoint)


class RunReport(Callback):
    """Shows what will be trained on before the first step, and what it took after the last.

    The metrics are written as the run goes, so that a process that is killed leaves some.
    """

    def __init__(self, data: FactoryDataModule, folder: Path, checkpoint: str | None) -> None:
        """Store the parts."""
        self._data, self._folder, self._checkpoint = data, folder, checkpoint
        self._training = ExitStack()
        self._trainer: Trainer | None = None
        self._stage = Stage("train")
        self._rank_zero, self._trained = True, False
        self._written = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables of backends, plan and mixture."""
        del pl_module
        self._rank_zero, self._trainer = trainer.is_global_zero, trainer
        if self._rank_zero:
            show(self._data)
            self._stage = self._training.enter_context(
                self._data.registry.telemetry.stage(self._stage.name)
            )
            self._write()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where a run goes on."""
        del pl_module
        if self._checkpoint is not None and self._rank_zero:
            logger.info("going on after step %d, from %s", trainer.global_step, self._checkpoint)

    def on_train_batch_end(self, *_: Any) -> None:
        """Write the metrics, if that is a while ago."""
        self._trained = True
        if time.monotonic() - self._written > WRITTEN_EVERY_S:
            self._write()

    def on_validation_end(self, *_: Any) -> None:
        """Write the metrics."""
        self._write()

    def on_save_checkpoint(self, *_: Any) -> None:
        """Write the metrics."""
        self._write()

    def _write(self) -> None:
        """Write the metrics so far; a full disk is said once more where it matters."""
        if self._rank_zero and self._trainer is not None:
            self._written = time.monotonic()
            self._count(self._trainer)
            with suppress(OSError):
                self._data.write_metrics(self._folder)

    def _count(self, trainer: Trainer) -> None:
        """Count what is done; what did not happen is left out."""
        encoded = self._data.encoded.total
        counts = {"encoded": encoded.encoded, "rebuilt": encoded.rebuilt}
        self._stage.counts.update(
            {"steps": trainer.global_step} | {name: n for name, n in counts.items() if n}
        )

    def finish(self, error: BaseException | None) -> None:
        """Write the metrics, print the stages and list the results; after an error name them."""
        if self._trainer is not None:
            self._count(self._trainer)
        self._training.close()
        if not self._rank_zero:
            return
        results = self._results()
        if error is not None and not isinstance(error, KeyboardInterrupt):
            with suppress(OSError):
                self._data.write_metrics(self._folder)
            if results:
                error.add_note(f"what the run has left is in {self._folder}")
            return
        self._data.write_metrics(self._folder)
        if self._trainer is not None:
            self._show(self._trainer, results)

    def _show(self, trainer: Trainer, results: list[Path]) -> None:
        fetched = self._data.fetch_report
        if fetched.delivered:
            logger.info("prefetch: %s", fetched.verdict)
        console = wide_console()
        console.print(stages_table(self._data.registry.telemetry))
        for line in stream_lines(self._data.streams.values()):
            console.print(f"Stream {line}", highlight=False, markup=False)
        for line in self._data.encoded.lines():
            console.print(line, highlight=False, markup=False)
        if self._checkpoint is not None and not self._trained:
            console.print(_nothing_left(trainer), highlight=False, markup=False)
        if results:
            console.print(
                f"Results are in [bold]{escape(str(self._folder))}[/bold]", highlight=False
            )
        for file in results:
            console.print(f"  {file}", highlight=False, markup=False)

    def _results(self) -> list[Path]:
        """Return the files that a run has left, below its folder; none without any but its log."""
        found = sorted(self._folder.rglob("*"))
        files = [file.relative_to(self._folder) for file in found if file.is_file()]
        files = [file for file in files if HYDRA not in file.parts]
        told = any(file.name != METRICS and file.suffix != ".log" for file in files)
        return files if told else []


def _nothing_left(trainer: Trainer) -> str:
    """Return that a checkpoint is as far as the trainer was to go, and what goes on."""
    step, epoch = trainer.global_step, trainer.current_epoch
    if 0 <= trainer.max_steps <= step:
        at, setting = f"step {step} of {trainer.max_steps}", "trainer.max_steps"
    else:
        at, setting = f"epoch {epoch} of {trainer.max_epochs}", "trainer.max_epochs"
    return f"Nothing was trained: the checkpoint is already at {at}; raise {setting} to go on"
