"""One training run with Lightning, from a composed config to a folder of results."""

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from factory.builder import build, make
from factory.datamodule import FactoryDataModule
from factory.errors import ConfigError
from factory.report import show, stages_table, stream_lines, wide_console
from factory.run_folder import newest_checkpoint
from factory.runtime.checkpoint_file import SUFFIX, check_trusted, check_whole

logger = logging.getLogger("factory")


def train(cfg: DictConfig, overrides: list[str], folder: Path) -> FactoryDataModule:
    """Build, fit and report.

    Args:
        cfg: A composed config.
        overrides: The overrides it was composed from.
        folder: The run folder; checkpoints, pictures and metrics are written there.

    Returns:
        The data module, closed.

    Raises:
        FactoryError: What cannot be built, read or planned.
    """
    _quiet()
    cfg.paths.run_dir = str(folder)
    checkpoint = find_checkpoint(cfg.ckpt_path, Path(cfg.paths.output_dir), folder)
    data = build(cfg, overrides)
    seed_everything(cfg.seed, workers=True, verbose=False)
    report = RunReport(data, folder)
    with ExitStack() as stack:  # the last one first
        stack.callback(report.finish)
        stack.callback(data.close)
        callbacks = [make(node, f"callbacks.{name}") for name, node in cfg.callbacks.items()]
        trainer = _trainer(cfg.trainer, [report, *callbacks])
        model: LightningModule = make(cfg.model, "model")
        if checkpoint is not None:  # only now: the model's module may allow classes of its own
            check_trusted(Path(checkpoint))
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return data


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
        raise ConfigError(
            f"trainer ({given}): {cause}; to take what this machine has, set "
            "trainer.accelerator=auto trainer.devices=auto"
        ) from error
    return trainer


def _quiet() -> None:
    """Keep Lightning's notices about itself off the terminal; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Raised inside Lightning, about torch; nobody who trains can act on it.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def find_checkpoint(path: str | None, output_dir: Path, folder: Path | None = None) -> str | None:
    """Return the checkpoint to continue from: a file, or for "last" the newest run's last one.

    Of a run that is begun again in its own `folder` it is that folder's.

    Raises:
        ConfigError: There is no such file.
        ResumeError: It is not whole.
    """
    if path is None:
        return None
    if path != "last":
        if not Path(path).is_file():
            raise ConfigError(
                f"ckpt_path={path} is no file; give a checkpoint, or ckpt_path=last for the "
                f"newest one below {output_dir}"
            )
        check_whole(Path(path))
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
    """Shows what will be trained on before the first step, and what it took after the last."""

    def __init__(self, data: FactoryDataModule, folder: Path) -> None:
        """Store the parts."""
        self._data, self._folder = data, folder
        self._training = ExitStack()
        self._rank_zero = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables of backends, plan and mixture."""
        del pl_module
        self._rank_zero = trainer.is_global_zero
        if self._rank_zero:
            show(self._data)
            stage = self._data.registry.telemetry.stage("train")
            counts = self._training.enter_context(stage).counts
            self._training.callback(lambda: counts.update(self._counts(trainer)))

    def _counts(self, trainer: Trainer) -> dict[str, int]:
        """Return what is counted while training; what did not happen is left out."""
        encoded = self._data.encoded.total
        counts = {"encoded": encoded.encoded, "rebuilt": encoded.rebuilt}
        return {"steps": trainer.global_step} | {name: n for name, n in counts.items() if n}

    def finish(self) -> None:
        """Write the metrics, print the stages and list the results."""
        self._training.close()
        if not self._rank_zero:
            return
        self._data.write_metrics(self._folder)
        fetched = self._data.fetch_report
        if fetched.delivered:
            logger.info("prefetch: %s", fetched.verdict)
        console = wide_console()
        console.print(stages_table(self._data.registry.telemetry))
        for line in stream_lines(self._data.streams.values()):
            console.print(f"Stream {line}", highlight=False, markup=False)
        for line in self._data.encoded.lines():
            console.print(line, highlight=False, markup=False)
        console.print(f"Results are in [bold]{self._folder}[/bold]", highlight=False)
        for file in sorted(self._folder.rglob("*")):
            if file.is_file() and ".hydra" not in file.parts:
                console.print(f"  {file.relative_to(self._folder)}", highlight=False)
