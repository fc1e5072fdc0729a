"""One process of a run without Lightning's Trainer, by plain torch or Fabric; writes keys down."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.fabric import Fabric

from factory import Batch, FactoryDataModule
from tests.scenarios.training.building import data_module


def written(folder: str, batch: Batch) -> None:
    """Write down a micro-batch, in this rank's file."""
    line = {"number": batch.global_step, "keys": batch.keys, "rows": batch.rows.tolist()}
    with (Path(folder) / f"{os.environ['RANK']}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def module(root: str, folder: str, settings: dict[str, Any]) -> FactoryDataModule:
    """Return a data module that goes on where the one before stopped."""
    data = data_module(Path(root), peer_timeout_s=2.0, **settings.get("data", {}))
    state = Path(folder) / "state.json"
    if state.is_file():
        data.load_state_dict(json.loads(state.read_text()))
    return data


def loop(root: str, folder: str, settings: dict[str, Any]) -> None:
    """Train as under torchrun, and save where it stopped."""
    if settings.get("group", True):
        torch.distributed.init_process_group("gloo")
    rank = os.environ["RANK"]
    with module(root, folder, settings) as data:
        if not settings.get("group", True):
            data.setup()
        for batch in data.batches(
            max_steps=settings["max_steps"], accumulate_grad_batches=settings.get("micros")
        ):
            written(folder, batch)
            if rank == settings.get("dies") and batch.global_step == 2:
                raise ValueError("no good")
            if settings.get("commits", True):
                data.commit()
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(torch.zeros(1))  # what every step of DDP waits for
        if rank == "0":
            (Path(folder) / "state.json").write_text(json.dumps(data.state_dict()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def late(root: str, folder: str, settings: dict[str, Any]) -> None:
    """Ask for batches before there is a process group, and without a launcher's variables."""
    ranks = {key: os.environ.pop(key) for key in ("RANK", "WORLD_SIZE")}
    data = data_module(Path(root), **settings)
    data.setup()
    loaders = data.train_dataloader(), data.val_dataloader()
    os.environ.update(ranks)
    torch.distributed.init_process_group("gloo")
    refused = 0
    for loader in loaders:
        try:
            next(iter(loader))
        except ValueError as error:
            assert "and its batches were asked for before, as rank 0 of 1" in str(error)
            refused += 1
    assert refused == len(loaders)
    data.close()


def fabric(root: str, folder: str, settings: dict[str, Any]) -> None:
    """Train three epochs with Fabric, and validate."""
    warnings.simplefilter("ignore")
    ours = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy="ddp")
    ours.launch()
    model = torch.nn.Linear(1, 1)
    module_, optimizer = ours.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with module(root, folder, settings) as data:
        loader = ours.setup_dataloaders(data.loader())
        for _ in range(3):
            for batch in loader:
                written(folder, batch)
                ours.backward(module_(torch.ones(1, 1)).sum())
                optimizer.step()
                optimizer.zero_grad()
                data.commit()
        held = ours.setup_dataloaders(data.val_dataloader())
        keys = [
            key
            for batch in held
            for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True)
            if valid
        ]
        (Path(folder) / f"held{os.environ['RANK']}.json").write_text(json.dumps(keys))
        assert data.committed == (2, data.plan.steps(2))
