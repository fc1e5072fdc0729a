"""One training run with Lightning, from a composed config to a folder of results."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from factory import report
from factory.builder import build, make
from factory.datamodule import FactoryDataModule
from factory.errors import ConfigError


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
    cfg.paths.run_dir = str(folder)
    checkpoint = find_checkpoint(cfg.ckpt_path, Path(cfg.paths.output_dir))
    data = build(cfg, overrides)
    try:
        seed_everything(cfg.seed, workers=True, verbose=False)
        callbacks = [make(node, f"callbacks.{name}") for name, node in cfg.callbacks.items()]
        callbacks.insert(0, RunReport(data, folder))
        trainer: Trainer = make(cfg.trainer, "trainer", callbacks=callbacks)
        model: LightningModule = make(cfg.model, "model")
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    finally:
        data.close()
    return data


def find_checkpoint(path: str | None, output_dir: Path) -> str | None:
    """Return the checkpoint to continue from: a file, or for "last" the newest run's last one.

    Raises:
        ConfigError: There is no such file.
    """
    if path is None:
        return None
    if path != "last":
        if not Path(path).is_file():
            raise ConfigError(
                f"ckpt_path={path} is no file; give a checkpoint, or ckpt_path=last for the "
                f"newest one below {output_dir}"
            )
        return path
    found = sorted(output_dir.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"ckpt_path=last: no run below {output_dir} left a checkpoint; start without "
            "ckpt_path, or give a file"
        )
    return str(found[-1])


class RunReport(Callback):
    """Shows what will be trained on before the first step, and what it took after the last."""

    def __init__(self, data: FactoryDataModule, folder: Path) -> None:
        """Store the parts."""
        self._data, self._folder = data, folder
        self._training: Any = None

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables of backends, plan and mixture."""
        del trainer, pl_module
        report.show(self._data)
        self._training = self._data.registry.telemetry.stage("train")
        self._stage = self._training.__enter__()

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics and print the stages."""
        self._finish(trainer)

    @rank_zero_only
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the metrics of a run that failed, too."""
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        if self._training is None:
            return
        self._stage.counts["steps"] = trainer.global_step
        self._training.__exit__(None, None, None)
        self._training = None
        self._data.write_metrics(self._folder)
        console = Console()
        console.print(report.stages_table(self._data.registry.telemetry))
        console.print(f"Results are in [bold]{self._folder}[/bold]", highlight=False)
        for file in sorted(self._folder.rglob("*")):
            if file.is_file() and ".hydra" not in file.parts:
                console.print(f"  {file.relative_to(self._folder)}", highlight=False)
