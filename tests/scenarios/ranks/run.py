"""One process of a real run with Lightning, which writes down every step and may be killed."""

import json
import logging
import os
import signal
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import Batch
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.request import BatchRequest
from factory.runtime.prefetch.batch_fetcher import Prefetch
from tests.scenarios.training.building import data_module, trainer

BATCH = 4


class Model(LightningModule):
    """Writes down the samples of each optimizer step, in a file of this rank; then `kill`s."""

    def __init__(self, log: Path, kill: tuple[str, int, str] | None) -> None:
        """Write to a folder; end at the n-th call of a hook, if so, by a signal's name."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.log_to, self.kill = log, kill
        self.calls: Counter[str] = Counter()
        self.micros: list[Batch] = []
        self.validated: list[tuple[str, float]] = []

    def write(self, kind: str, **line: Any) -> None:
        """Add a line to this rank's file, at once."""
        with (self.log_to / f"{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"kind": kind, **line}) + "\n")

    def dies(self, hook: str) -> None:
        """Die here, if this is the call."""
        self.calls[hook] += 1
        if self.kill is None or (hook, self.calls[hook]) != tuple(self.kill[:2]):
            return
        if self.kill[2] == "raise":
            raise ValueError("no good")
        os.kill(os.getpid(), getattr(signal, self.kill[2]))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Keep the micro-batch until its step is taken."""
        self.dies("training_step")
        self.micros.append(batch)
        return self.weight * 1.0

    def optimizer_step(self, *step: Any) -> None:
        """Take a step and write it down."""
        taken = self.trainer.global_step
        super().optimizer_step(*step)
        (number,) = {batch.global_step for batch in self.micros}
        assert number == taken
        keys = [key for batch in self.micros for key in batch.keys]
        shapes = [list(batch.latents.shape) for batch in self.micros]
        rate = self.optimizers().param_groups[0]["lr"]
        self.write("step", number=number, keys=keys, shapes=shapes, rate=rate)
        self.micros = []
        self.dies("optimizer_step")

    def on_train_batch_end(self, *hook: Any) -> None:
        """Perhaps die, between micro-batches."""
        self.dies("on_train_batch_end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Perhaps die, while saving."""
        self.dies("on_save_checkpoint")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the samples that count: by their latents alone."""
        self.dies("validation_step")
        scores = batch.latents.float().mean(dim=(1, 2, 3))[batch.valid]
        keys = [key for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]
        self.validated += zip(keys, scores.tolist(), strict=True)

    def on_validation_epoch_end(self) -> None:
        """Write down what was validated on, and the mean over all ranks."""
        scores = [score for _, score in self.validated]
        told = torch.tensor([sum(scores), len(scores)], dtype=torch.float64)
        total, count = self.trainer.strategy.reduce(told, reduce_op="sum").tolist()
        self.write("validated", keys=[key for key, _ in self.validated], score=total / count)
        self.validated = []

    def configure_optimizers(self) -> Any:
        """Return an optimizer whose rate tells the step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rates, "interval": "step"},
        }


def stall(step: int) -> None:
    """Let reading hang in this process, for the batch of a step."""
    make = Collate.__call__

    def hang(self: Collate, part: BatchRequest) -> Batch:
        if part.step.global_step == step:
            threading.Event().wait()
        return make(self, part)

    Collate.__call__ = hang  # type: ignore[method-assign]


def fit(root: str, folder: str, settings: dict[str, Any]) -> None:
    """Train, going on from the folder's checkpoint if there is one.

    Args:
        root: Folders of pictures.
        folder: Where checkpoints and logs go.
        settings: "prefetch"; "kill" and "stall" by rank; "data" for the data module; the rest
            goes to the trainer.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rank = os.environ.get("RANK", "0")
    prefetch = Prefetch(**settings.pop("prefetch", {}))
    kill = settings.pop("kill", {}).get(rank)
    if rank in (stalls := settings.pop("stall", {})):
        stall(stalls[rank])
    data = data_module(
        Path(root), batch_size=BATCH, probability=2.0, prefetch=prefetch,
        **{"peer_timeout_s": 2.0, **settings.pop("data", {})},
    )  # fmt: skip
    log = Path(folder) / "log"
    log.mkdir(exist_ok=True)
    saving = ModelCheckpoint(
        dirpath=folder, every_n_train_steps=1, save_last=True, save_top_k=0,
        enable_version_counter=False,
    )  # fmt: skip
    last = Path(folder) / "last.ckpt"
    run: Trainer = trainer(
        Path(folder), callbacks=[saving], enable_checkpointing=True,
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        **{"max_epochs": -1, **settings},
    )  # fmt: skip
    model = Model(log, kill)
    run.fit(model, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    data.close()


def lines(folder: Path, kind: str) -> dict[int, list[dict[str, Any]]]:
    """Return what each rank wrote down of a kind."""
    read = {}
    for file in sorted((folder / "log").glob("*.jsonl")):
        entries = map(json.loads, file.read_text().splitlines())
        read[int(file.stem)] = [entry for entry in entries if entry["kind"] == kind]
    return read


def forget(folder: Path) -> None:
    """Remove what was written down."""
    for file in (folder / "log").glob("*.jsonl"):
        file.unlink()
