"""What a Lightning checkpoint must hold of the data, under which name, for a run to go on."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import FactoryDataModule
from factory.errors import ResumeError
from factory.lightning.data_state import KEY, sealed
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*", "ignore:Be aware that when using `ckpt_path`"
)


class Mine(FactoryDataModule):
    """A subclass, of which nothing differs but its name."""


class Other(FactoryDataModule):
    """Another one."""


def module(root: Path, kind: type[FactoryDataModule], **settings: Any) -> FactoryDataModule:
    """Return a data module of such a class."""
    data = data_module(root, **settings)
    data.__class__ = kind
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


def fit(
    root: Path, data: FactoryDataModule, steps: int, checkpoint: Path | None = None, **more: Any
) -> list[Any]:
    """Train until so many steps are done, and return what came."""
    model = Recorder()
    try:
        trainer(root, max_steps=steps, max_epochs=-1, limit_val_batches=0, **more).fit(
            model, datamodule=data, ckpt_path=checkpoint, weights_only=True
        )
    finally:
        data.close()
    return model.seen


@pytest.fixture(scope="module")
def saved(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type], Path]:
    """Return a function that trains 9 steps, of which 7 are an epoch, and saves the last."""

    def save(kind: type[FactoryDataModule]) -> Path:
        folder = tmp_path_factory.mktemp("saved")
        saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=9, filename="nine")
        fit(root, module(root, kind), 9, callbacks=[saving], enable_checkpointing=True)
        return folder / "nine.ckpt"

    return save


@pytest.fixture(scope="module")
def nine(saved: Callable[[type], Path]) -> Path:
    """Return a checkpoint of the base class."""
    return saved(FactoryDataModule)


def edited(path: Path, to: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Save a checkpoint once more, changed."""
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, to)
    return to


@pytest.mark.parametrize(("before", "after"), [(Mine, FactoryDataModule), (Mine, Other),
                                               (FactoryDataModule, Mine)])  # fmt: skip
def test_subclasses_share_a_key(
    root: Path, saved: Callable[[type], Path], before: type, after: type
) -> None:
    path = saved(before)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint[KEY]["step"] == 2
    assert "Mine" not in checkpoint
    straight = fit(root, data_module(root), 12)
    assert fit(root, module(root, after), 12, path) == straight[9:]


@pytest.mark.parametrize("name", ["Mine", "Gone", "MyModule.<locals>.Data"])
def test_a_state_under_the_name_of_a_class_is_read(
    root: Path, tmp_path: Path, nine: Path, name: str
) -> None:
    def rename(checkpoint: dict[str, Any]) -> None:
        checkpoint[name] = checkpoint.pop(KEY)
        del checkpoint[name]["checksum"]  # as it was

    path = edited(nine, tmp_path / "old.ckpt", rename)
    straight = fit(root, data_module(root), 11)
    assert fit(root, module(root, Mine), 11, path) == straight[9:]


@pytest.mark.parametrize("edit", [
    lambda checkpoint: checkpoint.pop(KEY),
    lambda checkpoint: checkpoint.update({KEY: {}}),
    lambda checkpoint: checkpoint.update(
        {KEY: sealed({**checkpoint[KEY], "epoch": 0, "step": 0})}
    ),
])  # fmt: skip
def test_a_trainer_does_not_go_on_without_the_data(
    root: Path, tmp_path: Path, nine: Path, edit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(nine, tmp_path / "without.ckpt", edit)
    with pytest.raises(ResumeError, match=r"the trainer at step \d .*\[data_state\]"):
        fit(root, data_module(root), 11, path)
    accepted = data_module(root, accept_changed_plan=["data_state"])
    epochs = {epoch for epoch, *_ in fit(root, accepted, 11, path)}
    assert epochs <= {0, 1}
    assert "as data.accept_changed_plan says" in caplog.text


def test_it_begins_the_trainers_epoch_anew_where_that_is_meant(
    root: Path, tmp_path: Path, nine: Path
) -> None:
    path = edited(nine, tmp_path / "without.ckpt", lambda checkpoint: checkpoint.pop(KEY))
    seen = fit(root, data_module(root, accept_changed_plan=["data_state"]), 11, path)
    assert seen[0][:2] == (1, 0)


@pytest.mark.parametrize("value", [None, [], 3, "x", {"epoch": 1}])
def test_what_is_no_state_is_refused(root: Path, tmp_path: Path, nine: Path, value: Any) -> None:
    path = edited(nine, tmp_path / "odd.ckpt", lambda checkpoint: checkpoint.update({KEY: value}))
    with pytest.raises(ResumeError, match="data state"):
        fit(root, data_module(root), 11, path)


def test_a_place_behind_the_end_of_its_epoch_is_refused(root: Path, nine: Path) -> None:
    state = torch.load(nine, weights_only=True)[KEY]
    data = data_module(root)
    data.setup()
    with pytest.raises(ResumeError, match="step is 8, and must be at most 7"):
        data.load_state_dict(sealed({**state, "step": 8}))
    assert data.committed == (0, 0)
    data.close()


def test_a_model_is_looked_at_without_the_data(root: Path, tmp_path: Path, nine: Path) -> None:
    path = edited(nine, tmp_path / "without.ckpt", lambda checkpoint: checkpoint.pop(KEY))
    data, model = data_module(root), Recorder()
    run = trainer(root, max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=data)
    run = trainer(root, callbacks=copy.copy(run.callbacks))
    run.validate(model, datamodule=data, ckpt_path=path, weights_only=True)
    data.close()
