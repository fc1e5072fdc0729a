"""A data module on small pictures, and a model that records what it is given."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from factory import (
    Batch,
    EvalBackend,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.storage.local import LocalStorage
from tests.support.pictures import write_pictures


def write_folders(root: Path) -> None:
    """Write two folders to train on and one to validate on."""
    write_pictures(root / "a", 13)
    write_pictures(root / "b", 9, first=100)
    write_pictures(root / "held", 5, first=200)


def data_module(root: Path, **settings: Any) -> FactoryDataModule:
    """Return a data module on `write_folders`; `settings` go to it, or to backend "a".

    A `caption` goes to every backend.
    """
    storage = LocalStorage(str(root))
    place = Workspace(storage, scratch_dir=str(root / "scratch"))
    shared: dict[str, Any] = {
        "storage": storage,
        "caption": settings.pop("caption", TextFileCaptions()),
        "resolution": 64,
        "alignment": 16,
    }
    for_a = {
        key: settings.pop(key) for key in ("probability", "repeats", "window") if key in settings
    }
    encoded = settings.pop("encoded", True)
    backends: list[Any] = [
        ImageBackend(name="a", prefix="a", **shared, **for_a),
        ImageBackend(name="b", prefix="b", **shared),
        EvalBackend(name="held", prefix="held", **shared),
    ]
    if encoded:
        backends += [
            ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()),
            TextEmbedBackend(name="text", cache=place, encoder=HashedText()),
        ]
    settings.setdefault("batch_size", 4)
    settings.setdefault("seed", 7)
    return FactoryDataModule(backends, cache=place, **settings)


class Recorder(LightningModule):
    """A model of one number that writes down which samples came, and when a step was taken."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, str, tuple[str, ...]]] = []
        self.validated: list[str] = []
        self.fail_at: int | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Record the batch."""
        if self.fail_at is not None and len(self.seen) == self.fail_at:
            raise RuntimeError("stopped here")
        self.seen.append((batch.epoch, batch.step, batch.backend, tuple(batch.keys)))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Record the samples that count."""
        self.validated += [
            k for k, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid
        ]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer for the one number."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watching(LightningModule):
    """A model of one number that keeps the batches it is given."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Keep the batch."""
        self.batches.append(batch)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer for the one number."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(root: Path, **settings: Any) -> Trainer:
    """Return a quiet trainer on the CPU."""
    quiet = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False,
        "num_sanity_val_steps": 0, "default_root_dir": str(root),
    }  # fmt: skip
    return Trainer(**{**quiet, **settings})
