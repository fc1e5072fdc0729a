"""More of Lightning's traps: limits, other ways to save, other ways to stop, other ways to run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.tuner import Tuner

from factory import Batch
from factory.catalog.captions.sources import TextFileCaptions
from factory.errors import ObjectNotFoundError, PlanError, ResumeError
from factory.sampling.mixture import Mixture
from tests.lightning.test_lightning_traps import Model, Step, fit
from tests.scenarios.training.building import Watching, data_module, trainer, write_folders

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:You requested to overfit",
    "ignore:.*was called without a model",
    "ignore:.*there is no last checkpoint",
    "ignore:The '.*_dataloader' does not have many workers",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders whose epochs are 7 steps."""
    folder = tmp_path_factory.mktemp("more")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


SAVED = [("on_train_batch_end", 2), ("on_train_batch_end", 6), ("on_validation_end", 1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 0.5},
        {"limit_train_batches": 4, "accumulate_grad_batches": 2},
        {"val_check_interval": 10, "check_val_every_n_epoch": None},
        {"val_check_interval": 3, "accumulate_grad_batches": 2, "check_val_every_n_epoch": None},
        {"num_sanity_val_steps": -1, "val_check_interval": 3},
        {"check_val_every_n_epoch": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("save", SAVED, ids=lambda save: f"{save[0]}-{save[1]}")
def test_a_resumed_run_equals_a_straight_one(
    root: Path, tmp_path: Path, save: tuple[str, int], settings: dict[str, Any]
) -> None:
    path = tmp_path / "a.ckpt"
    settings = {"max_epochs": -1, "max_steps": 15, **settings}
    straight = fit(root, **settings)
    before = fit(root, save=(*save, path), **settings)
    assert before + fit(root, ckpt=path, **settings) == straight
    assert len(straight) == 15


@pytest.mark.parametrize("limit", [3, 0.25])
def test_an_epoch_that_ends_within_a_step_is_refused(root: Path, limit: float) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "limit_train_batches": limit}
    with pytest.raises(PlanError, match="after 3 micro-batches, within an optimizer step of 2"):
        fit(root, max_epochs=1, **settings)


def test_an_overfit_of_a_part_of_a_step_is_refused_by_its_own_name(root: Path) -> None:
    with pytest.raises(PlanError, match=r"trainer\.overfit_batches=1 ends an epoch after 1"):
        fit(root, max_epochs=1, overfit_batches=1, accumulate_grad_batches=2)


def test_a_limit_counts_steps_across_a_resume(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.ckpt"
    settings: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": 4}
    straight = fit(root, **settings)
    before = fit(root, save=("on_train_batch_end", 6, path), **settings)
    halves = {**settings, "accumulate_grad_batches": 2}
    rest = fit(root, ckpt=path, **{**halves, "limit_train_batches": 8})
    assert before + rest == straight
    with pytest.raises(ResumeError, match="limit_train_batches: 4 steps -> 2 steps"):
        fit(root, ckpt=path, **halves)
    data = data_module(root, accept_changed_plan=["limit_train_batches"])
    with caplog.at_level(logging.WARNING):
        trainer(root, **halves).fit(Model([]), datamodule=data, ckpt_path=path)
    data.close()
    assert "4 steps -> 2 steps" in caplog.text


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"every_n_train_steps": 4}, 4),
        ({"save_on_train_epoch_end": True}, 7),
        ({"save_on_train_epoch_end": False}, 7),
        ({"every_n_train_steps": 7}, 7),
        ({"every_n_epochs": 1, "save_last": True, "save_top_k": 0}, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("stop", [7, 9])
def test_whenever_lightning_saves_a_resume_goes_on(
    root: Path, tmp_path: Path, settings: dict[str, Any], last: int, stop: int
) -> None:
    straight = fit(root, max_epochs=2)
    given = {"save_top_k": -1, **settings}
    saving = ModelCheckpoint(dirpath=tmp_path, **given)  # type: ignore[arg-type]
    fit(root, max_epochs=-1, max_steps=stop, callbacks=[saving], enable_checkpointing=True)
    newest = max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    # weights_only as it is by default: the state holds plain values alone.
    data, model = data_module(root), Model([])
    trainer(root, max_epochs=2).fit(model, datamodule=data, ckpt_path=newest)
    data.close()
    done = len(straight) - len(model.steps)
    assert model.steps == straight[done:]
    assert done in (last, 2 * last)


@pytest.mark.parametrize("number", [3, 8, 10])
def test_a_checkpoint_of_an_exception(root: Path, tmp_path: Path, number: int) -> None:
    class Failing(Callback):
        """Fails in the middle of an accumulation, or after it."""

        def on_train_batch_end(self, trainer: Any, *hook: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == number:
                raise ValueError("stopped")

    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2}
    straight = fit(root, **settings)
    steps: list[Step] = []
    data = data_module(root)
    callbacks = [Failing(), OnExceptionCheckpoint(tmp_path, "failed")]
    with pytest.raises(ValueError, match="stopped"):
        trainer(root, callbacks=callbacks, enable_checkpointing=True, **settings).fit(
            Model(steps), datamodule=data
        )
    data.close()
    rest = fit(root, ckpt=tmp_path / "failed.ckpt", **settings)
    assert steps[: len(straight) - len(rest)] + rest == straight
    assert len(rest) == 14 - number // 2


def test_an_error_before_there_is_a_plan_is_not_hidden(tmp_path: Path) -> None:
    data = data_module(tmp_path)  # nothing there
    saving = OnExceptionCheckpoint(tmp_path, "failed")
    run = trainer(tmp_path, callbacks=[saving], enable_checkpointing=True, max_epochs=1)
    with pytest.raises(ObjectNotFoundError):
        run.fit(Model([]), datamodule=data)
    data.close()
    assert data.state_dict() == {}
    data.load_state_dict({})
    assert data.committed == (0, 0)


def test_a_run_that_stops_itself_keeps_its_place(root: Path) -> None:
    class Stopping(Callback):
        """Stops once, after the third step."""

        def on_train_batch_end(self, trainer: Any, *hook: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    data, model = data_module(root), Model([])
    trainer(root, max_epochs=2, callbacks=[Stopping()]).fit(model, datamodule=data)
    assert data.committed == (0, 3)
    data.close()
    assert model.steps == fit(root, max_epochs=-1, max_steps=3)


def test_another_data_module_goes_on_where_the_trainer_stands(root: Path) -> None:
    one, two = data_module(root), data_module(root)
    model = Model([])
    run = trainer(root, max_epochs=1)
    run.fit(model, datamodule=one)
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=two)
    one.close()
    two.close()
    assert model.steps == fit(root, max_epochs=2)


@pytest.mark.parametrize("micros", [1, 2])
def test_a_quick_look_at_everything(root: Path, micros: int) -> None:
    data, model = data_module(root), Model([])
    trainer(root, fast_dev_run=2, accumulate_grad_batches=micros).fit(model, datamodule=data)
    data.close()
    assert len(model.steps) == 2 // micros
    assert model.validations == 1


def test_overfitting_sees_some_steps_again_in_each_epoch(root: Path) -> None:
    steps = fit(root, max_epochs=3, overfit_batches=2)
    assert [step[:2] for step in steps] == [(e, s) for e in range(3) for s in range(2)]
    keys = [step[2] for step in steps]
    assert keys[:2] == keys[2:4] == keys[4:]
    assert keys[0] != keys[1]


class Quiet(Watching):
    """Keeps batches, and validates on nothing."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Be there, so that Lightning misses nothing."""


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"overfit_batches": 4, "accumulate_grad_batches": 2}, {}),
        ({"overfit_batches": 0.5}, {"sampling": Mixture(epoch_steps=4)}),
        ({"overfit_batches": 3}, {"caption": TextFileCaptions(dropout=0.5)}),
    ],
)
def test_batches_that_are_overfit_repeat_whole(
    root: Path, tmp_path: Path, settings: dict[str, Any], data: dict[str, Any]
) -> None:
    def run(epochs: int, ckpt: Path | None = None) -> list[Batch]:
        model, made = Quiet(), data_module(root, ledger=tmp_path / "ledger", **data)
        fitting = trainer(tmp_path, max_epochs=epochs, limit_val_batches=0, **settings)
        fitting.fit(model, datamodule=made, ckpt_path=ckpt, weights_only=True)
        made.close()
        fitting.save_checkpoint(tmp_path / "end.ckpt")
        return model.batches

    before = run(2)
    after = run(4, tmp_path / "end.ckpt")
    epochs: dict[int, list[Batch]] = {}
    for batch in before + after:
        epochs.setdefault(batch.epoch, []).append(batch)
    assert sorted(epochs) == [0, 1, 2, 3]
    for number in range(1, 4):
        for one, other in zip(epochs[0], epochs[number], strict=True):
            assert (one.keys, one.captions, one.step) == (other.keys, other.captions, other.step)
            assert torch.equal(one.latents, other.latents)
    numbers = [batch.global_step for batch in before + after]
    assert numbers == sorted(numbers)
    assert not (tmp_path / "ledger").exists()


def test_looking_for_a_learning_rate_moves_nothing(root: Path, tmp_path: Path) -> None:
    data, model = data_module(root), Model([])
    model.lr = 0.1
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    Tuner(run).lr_find(model, datamodule=data, num_training=5, update_attr=False)
    model.steps.clear()
    run.fit(model, datamodule=data)
    data.close()
    assert model.steps == fit(root, max_epochs=1)


def test_epochs_of_validation_alone_in_between(root: Path) -> None:
    data, model = data_module(root), Model([])
    run = trainer(root, max_epochs=1)
    run.fit(model, datamodule=data)
    run.validate(model, datamodule=data, verbose=False)
    run.fit_loop.max_epochs = 2
    run.fit(model, datamodule=data)
    data.close()
    assert model.steps == fit(root, max_epochs=2)
