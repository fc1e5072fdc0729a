"""Lightning's known traps: whatever stops a run, and wherever, the next one continues exactly."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from factory import Batch, FactoryDataModule, ImageBackend
from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.mixture import Mixture
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:You requested to overfit",
)

Step = tuple[int, int, tuple[str, ...]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders whose epochs of both backends are 7 steps, 4 of "a" and 3 of "b"."""
    folder = tmp_path_factory.mktemp("traps")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.setup()
    assert data.plan.steps(0) == 7
    data.close()
    return folder


class Model(Recorder):
    """Writes down the samples of every optimizer step, and how often it validates."""

    def __init__(self, steps: list[Step], *, estimates: bool = False) -> None:
        """Write to `steps`; ask for the number of steps while optimizers are made, or not."""
        super().__init__()
        self.steps, self.estimates, self.validations = steps, estimates, 0
        self.micros: list[Step] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Keep the micro-batch until the step it belongs to is taken."""
        self.micros.append((batch.epoch, batch.step, tuple(batch.keys)))
        return self.weight * 1.0

    def optimizer_step(self, *step: Any) -> None:
        """Take the step; all its micro-batches must be of one step of the plan."""
        super().optimizer_step(*step)
        (place,) = {micro[:2] for micro in self.micros}
        self.steps.append((*place, tuple(key for micro in self.micros for key in micro[2])))
        self.micros = []

    def on_validation_end(self) -> None:
        """Count one validation."""
        self.validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer, perhaps after the loader was asked for its length."""
        if self.estimates:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SavedError(RuntimeError):
    """Stops a run hard, right after its checkpoint."""


def saving(hook: str, number: int, path: Path, steps: list[Step]) -> Callback:
    """Return a callback that saves at the n-th call of a hook and stops the run."""
    calls = []

    def fire(self: Callback, trainer: Any, *arguments: Any) -> None:
        calls.append(hook)
        if len(calls) == number:
            trainer.save_checkpoint(path)
            raise SavedError(steps)

    return type("Saving", (Callback,), {hook: fire})()


def fit(
    root: Path,
    *,
    ckpt: Path | None = None,
    estimates: bool = False,
    window: ActiveWindow | None = None,
    **settings: Any,
) -> list[Step]:
    """Fit and return the steps taken, or those before a checkpoint that stopped it."""
    steps: list[Step] = []
    save = settings.pop("save", None)
    if save is not None:
        settings["callbacks"] = [saving(*save, steps)]
    data = data_module(root, **({} if window is None else {"window": window}))
    model = Model(steps, estimates=estimates)
    try:
        trainer(root, **settings).fit(model, datamodule=data, ckpt_path=ckpt, weights_only=True)
    except SavedError:
        pass
    finally:
        data.close()
    return steps


LIMITS = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 17}}
SAVED: list[tuple[str, int]] = [
    ("on_train_batch_end", 2),
    ("on_train_batch_end", 7),
    ("on_train_batch_end", 8),
    ("on_train_epoch_end", 1),
    ("on_validation_end", 1),
]


@pytest.mark.parametrize("save", SAVED, ids=lambda save: f"{save[0]}-{save[1]}")
@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize(
    "window",
    [
        None,
        ActiveWindow(start_epoch=2),
        ActiveWindow(end_epoch=1),
        ActiveWindow(start_step=5, end_step=14),
    ],
    ids=["always", "late", "early", "steps"],
)
def test_a_resumed_run_equals_a_straight_one(
    root: Path, tmp_path: Path, save: tuple[str, int], limit: str, window: ActiveWindow | None
) -> None:
    path = tmp_path / "a.ckpt"
    settings: dict[str, Any] = {**LIMITS[limit], "window": window}
    straight = fit(root, **settings)
    before = fit(root, save=(*save, path), **settings)
    assert before + fit(root, ckpt=path, **settings) == straight


@pytest.mark.parametrize(
    ("settings", "resumed"),
    [
        ({"limit_train_batches": 3}, {}),
        ({"val_check_interval": 0.5}, {}),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, {}),
        ({"estimates": True}, {}),
        ({"reload_dataloaders_every_n_epochs": 1}, {}),
        ({}, {"accumulate_grad_batches": 2}),
        ({"accumulate_grad_batches": 4}, {"accumulate_grad_batches": 1}),
        ({}, {"limit_val_batches": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("save", SAVED[1:], ids=lambda save: f"{save[0]}-{save[1]}")
def test_so_it_does_with_other_settings(
    root: Path,
    tmp_path: Path,
    save: tuple[str, int],
    settings: dict[str, Any],
    resumed: dict[str, Any],
) -> None:
    path = tmp_path / "a.ckpt"
    settings = {"max_epochs": -1, "max_steps": 17, **settings}
    straight = fit(root, **settings)
    before = fit(root, save=(*save, path), **settings)
    assert before + fit(root, ckpt=path, **{**settings, **resumed}) == straight


@pytest.mark.parametrize("number", [1, 3, 13, 15])
def test_a_checkpoint_within_an_accumulation_repeats_the_whole_step(
    root: Path, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "a.ckpt"
    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2}
    straight = fit(root, **settings)
    before = fit(root, save=("on_train_batch_end", number, path), **settings)
    assert before + fit(root, ckpt=path, **settings) == straight


@pytest.mark.parametrize("limit", [{"max_steps": 9, "max_epochs": -1}, {"max_epochs": 2}])
def test_a_run_stopped_by_steps_continues_within_its_epoch(
    root: Path, tmp_path: Path, limit: dict[str, int]
) -> None:
    data, first = data_module(root), Recorder()
    run = trainer(root, max_steps=3, max_epochs=-1)
    run.fit(first, datamodule=data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    data.close()
    assert data.committed == (0, 3)
    rest = fit(root, ckpt=tmp_path / "end.ckpt", **limit)
    straight = fit(root, max_epochs=-1, max_steps=9)
    assert rest == straight[3 : 3 + len(rest)]
    assert len(rest) >= 4


def test_epochs_of_differing_length_are_whole_and_each_validated_once(root: Path) -> None:
    data = data_module(root, window=ActiveWindow(start_step=5, end_step=14))
    model = Model([])
    trainer(root, max_epochs=4).fit(model, datamodule=data)
    lengths = [data.plan.steps(epoch) for epoch in range(4)]
    data.close()
    assert lengths == [3, 7, 5, 3]
    assert [step[:2] for step in model.steps] == [
        (epoch, step) for epoch, length in enumerate(lengths) for step in range(length)
    ]
    assert model.validations == 4


def until_second_epoch(root: Path) -> FactoryDataModule:
    data = data_module(root)
    window = ActiveWindow(end_epoch=2)
    backends: list[Any] = [
        ImageBackend(**{**vars(backend), "window": window})
        if isinstance(backend, ImageBackend)
        else backend
        for backend in data.registry.backends.values()
    ]
    return FactoryDataModule(backends, cache=data.registry.cache, batch_size=4, seed=7)


def test_a_run_may_end_with_the_last_epoch_that_has_a_backend(root: Path) -> None:
    data, model = until_second_epoch(root), Recorder()
    trainer(root, max_epochs=2).fit(model, datamodule=data)
    data.close()
    assert len(model.seen) == 14


def test_a_run_that_goes_on_without_a_backend_is_an_error(root: Path) -> None:
    data = until_second_epoch(root)
    with pytest.raises(PlanError, match="no backend is active in epoch 3"):
        trainer(root, max_epochs=3).fit(Recorder(), datamodule=data)
    data.close()


def test_a_second_fit_of_one_trainer_goes_on(root: Path) -> None:
    data, model = data_module(root), Model([])
    run = trainer(root, max_epochs=1)
    run.fit(model, datamodule=data)
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=data)
    data.close()
    assert model.steps == fit(root, max_epochs=2)


def test_a_new_trainer_begins_anew(root: Path) -> None:
    data, model = data_module(root), Model([])
    for _ in range(2):
        trainer(root, max_steps=3, max_epochs=-1).fit(model, datamodule=data)
    data.close()
    assert model.steps[:3] == model.steps[3:]


def test_data_that_a_trainer_left_keeps_its_place(root: Path) -> None:
    left, taken = data_module(root), data_module(root)
    run = trainer(root, max_epochs=1)
    run.fit(Recorder(), datamodule=left)
    run.fit_loop.max_epochs = 2
    run.fit(Recorder(), datamodule=taken)
    left.close()
    taken.close()
    assert left.committed == (1, 0)


@pytest.mark.parametrize("look", ["validate", "test"])
def test_looking_at_a_checkpoint_moves_nothing(root: Path, tmp_path: Path, look: str) -> None:
    path = tmp_path / "a.ckpt"
    fit(root, save=("on_train_batch_end", 3, path), max_epochs=1)
    data, model = data_module(root), Model([])
    data.test_dataloader = data.val_dataloader  # type: ignore[method-assign]
    model.test_step = model.validation_step  # type: ignore[method-assign]
    run = trainer(root, max_epochs=1)
    seen: Callable[..., Any] = getattr(run, look)
    seen(model, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    run.fit(model, datamodule=data)
    data.close()
    assert model.steps == fit(root, max_epochs=1)


def test_accumulation_that_changes_within_a_run_is_refused(root: Path) -> None:
    data = data_module(root)
    changing = GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(PlanError, match="remove GradientAccumulationScheduler"):
        trainer(root, max_epochs=2, callbacks=[changing]).fit(Recorder(), datamodule=data)
    data.close()


def test_short_batches_that_cannot_be_shared_are_refused_at_the_start(root: Path) -> None:
    data, model = data_module(root, sampling=Mixture(short_batch="short")), Recorder()
    with pytest.raises(PlanError, match=r"short batch of bucket .* sampling\.short_batch=fill"):
        trainer(root, max_epochs=1, accumulate_grad_batches=4).fit(model, datamodule=data)
    data.close()
    assert model.seen == []


def test_a_fit_that_fails_stops_prefetching_by_itself(root: Path) -> None:
    data, model = data_module(root), Recorder()
    model.fail_at = 2
    with pytest.raises(RuntimeError, match="stopped here"):
        trainer(root, max_epochs=1).fit(model, datamodule=data)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("factory-fetch")]
    data.close()


def test_loaders_that_are_dropped_are_not_kept(root: Path) -> None:
    data = data_module(root)
    data.setup()
    for _ in range(3):
        data.train_dataloader()
    assert len(data._loaders) == 0
    data.close()
