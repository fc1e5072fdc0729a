"""The ledger holds what each completed step used, and never lags behind a checkpoint."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from factory.ledger.reader import read_ledger
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders whose epochs are 7 steps."""
    folder = tmp_path_factory.mktemp("ledger")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


def told(root: Path, ledger: Path) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """Return what a ledger holds as a `Recorder` writes it down, a line for each micro-batch."""
    data = data_module(root)
    data.setup()
    steps = read_ledger(ledger)
    assert list(steps) == list(range(len(steps)))
    lines = []
    for number, step in steps.items():
        assert data.plan.position(number) == (step.epoch, step.step)
        facts = data.sources[step.backend].catalog.facts
        for micro in step.micros:
            keys = tuple(facts.texts("key", micro.rows))
            lines.append((step.epoch, step.step, step.backend, keys))
    data.close()
    return lines


@pytest.mark.parametrize("micros", [1, 2])
@pytest.mark.parametrize("limit", [None, 3])
def test_it_holds_what_the_model_was_given(
    root: Path, tmp_path: Path, micros: int, limit: int | None
) -> None:
    data = data_module(root, ledger=tmp_path)
    model = Recorder()
    ended = {"max_epochs": 2} if limit is None else {"max_steps": limit}
    trainer(
        root, accumulate_grad_batches=micros, val_check_interval=2, **ended
    ).fit(model, datamodule=data)  # fmt: skip
    data.close()
    assert told(root, tmp_path) == model.seen
    steps = read_ledger(tmp_path)
    assert len(steps) == (14 if limit is None else limit)
    about = steps[0].about
    assert (about.rank, about.ranks, about.micros, about.seed) == (0, 1, micros, 7)
    assert about.fingerprint == data.plan.fingerprint
    assert about.identities == {each.name: each.identity for each in data.plan.backends}


class Look(Callback):
    """Reads the ledger in the moment after a checkpoint is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, trainer: Trainer, *hook: object) -> None:
        self.seen.append((trainer.global_step, len(read_ledger(self.folder))))


def test_it_never_lags_behind_a_checkpoint_and_goes_on_after_one(
    root: Path, tmp_path: Path
) -> None:
    look = Look(tmp_path / "ledger")
    saving = ModelCheckpoint(
        tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}", save_last=True
    )
    data = data_module(root, ledger=tmp_path / "ledger")
    whole = Recorder()
    trainer(
        root, enable_checkpointing=True, callbacks=[saving, look], max_steps=9
    ).fit(whole, datamodule=data)  # fmt: skip
    data.close()
    # The trainer calls checkpoint callbacks last, so what is saved at 3 is seen at 4.
    assert [count for step, count in look.seen if step in (4, 5, 7)] == [3, 3, 6]
    again = data_module(root, ledger=tmp_path / "ledger")
    rest = Recorder()
    trainer(root, max_steps=10, accumulate_grad_batches=2).fit(
        rest, datamodule=again, ckpt_path=str(tmp_path / "step=6.ckpt")
    )
    again.close()
    assert told(root, tmp_path / "ledger") == whole.seen[:6] + rest.seen
    names = sorted(file.name for file in (tmp_path / "ledger").iterdir())
    assert names == [f"step00000000{n}-rank00000-of-00001.arrows" for n in (1, 7)]
    assert {read_ledger(tmp_path / "ledger")[n].about.micros for n in (6, 9)} == {2}


def test_a_failed_run_keeps_what_was_completed(root: Path, tmp_path: Path) -> None:
    data = data_module(root, ledger=tmp_path)
    model = Recorder()
    model.fail_at = 5
    with pytest.raises(RuntimeError, match="stopped here"):
        trainer(root, max_steps=9).fit(model, datamodule=data)
    data.close()
    assert told(root, tmp_path) == model.seen
    assert len(model.seen) == 5


def test_a_loop_of_ones_own_is_recorded_as_it_counts(root: Path, tmp_path: Path) -> None:
    data = data_module(root, ledger=tmp_path)
    data.setup()
    for number, _ in enumerate(data.train_dataloader()):
        if number == 4:
            break
        data.count_micro_batch()
    data.close()
    assert len(read_ledger(tmp_path)) == 4


def test_without_a_folder_nothing_is_written(root: Path) -> None:
    data = data_module(root)
    trainer(root, max_steps=1).fit(Recorder(), datamodule=data)
    data.close()
    assert data.ledger.folder is None
    assert not list(root.rglob("*.arrows"))
