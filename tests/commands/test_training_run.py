"""One training run: how it ends, whatever went wrong before, and what it leaves and returns."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from factory.commands import cli, training_run
from factory.commands.interruption import Interruption
from factory.config.compose import compose
from factory.errors import ConfigError, StorageError
from tests.support.pictures import write_pictures

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


class Unclosable:
    """Data that cannot be closed, as with a ledger on a full disk."""

    def close(self) -> None:
        """Fail."""
        raise StorageError("no space left")


def test_a_run_is_reported_though_its_data_does_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    trainer = SimpleNamespace(fit=lambda *_, **__: done.append("fit"), callback_metrics={})
    for name, value in {
        "_quiet": lambda: None,
        "seed_everything": lambda *_, **__: None,
        "build": lambda *_: Unclosable(),
        "make": lambda *_, **__: trainer,
    }.items():
        monkeypatch.setattr(training_run, name, value)
    monkeypatch.setattr(training_run.RunReport, "finish", lambda *_: done.append("report"))
    cfg = OmegaConf.create(
        {
            "paths": {"run_dir": "", "output_dir": str(tmp_path)},
            "ckpt_path": None, "optimized_metric": None, "seed": 1,
            "callbacks": {}, "trainer": {}, "model": {},
        }
    )  # fmt: skip
    with pytest.raises(StorageError, match="no space left"):
        training_run.train(cfg, [], tmp_path)
    assert done == ["fit", "report"]


class Small(lightning.LightningModule):
    """A model of one number that draws no pictures."""

    def __init__(self) -> None:
        """Begin at one."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Note the step; return a loss of it."""
        self.seen.append(batch.global_step)
        loss = (self.weight * batch.latents.float().mean()) ** 2
        self.log("train/loss", loss.detach() * 0 + batch.global_step, batch_size=1)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain descent."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class At(Callback):
    """Does something at a step, in the midst of it or while batches are waited for."""

    def __init__(self, step: int, act: Any, hook: str = "on_before_optimizer_step") -> None:
        """Store what is done when."""
        self._step, self._act = step, act
        setattr(self, hook, self._hook)

    def _hook(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._step:
            self._act()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures to train on."""
    write_pictures(tmp_path / "data/photos", 9)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(
    place: Path, folder: str, *overrides: str, act: Callback | None = None
) -> tuple[float | None, list[int]]:
    """Train in this process; return what a sweeper is told, and the steps that were taken."""
    given = [
        "data.backends.photos.prefix=photos", "data.backends.photos.minimum_image_size=null",
        "~data.backends.holdout", "data.demo=false", "seed=3",
        "data.batch_size=2", "data.resolution=64", "data.alignment=16", "storage.root=data",
        "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=6",
        "~callbacks.progress", "callbacks.samples.captions=[a]",
        *overrides,
    ]  # fmt: skip
    cfg = compose(given)
    (place / folder).mkdir(exist_ok=True)
    model = Small()
    real = training_run.make

    def make(node: Any, key: str, **more: Any) -> Any:
        if key == "model":
            return model
        if key == "trainer" and act is not None:
            more["callbacks"].append(act)
        return real(node, key, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "make", make)
        told = training_run.train(cfg, given, place / folder)
    return told, model.seen


def test_a_model_of_ones_own_is_trained_and_its_loss_returned(
    place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO", logger="factory"):
        told, seen = fit(place, "a")
    assert (told, seen) == (5.0, [0, 1, 2, 3, 4, 5])  # nothing is validated
    assert "no pictures are drawn: Small has no method sample()" in caplog.text
    assert "Results are in" in capsys.readouterr().out
    assert fit(place, "b", "optimized_metric=train/loss")[0] == 5.0
    caplog.clear()
    assert fit(place, "c", "optimized_metric=val/los")[0] is None
    assert "optimized_metric=val/los was not logged, but train/loss" in caplog.text


def test_a_checkpoint_that_is_as_far_as_the_run_goes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(place, "a", "callbacks.checkpoint.every_n_train_steps=6")
    capsys.readouterr()
    _, seen = fit(place, "b", f"ckpt_path={place}/a/checkpoints/last.ckpt")
    assert seen == []
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing was trained: the checkpoint is already at step 6 of 6; raise" in told


@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_train_batch_start"])
def test_ctrl_c_ends_after_a_step_with_a_checkpoint_that_goes_on_exactly(
    place: Path, hook: str
) -> None:
    whole = fit(place, "whole", "trainer.accumulate_grad_batches=2")[1]
    interrupt = At(3, lambda: os.kill(os.getpid(), signal.SIGINT), hook)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after step \d; go on with ckpt_path=last"):
        fit(place, "a", "trainer.accumulate_grad_batches=2", act=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = place / "a/checkpoints/last.ckpt"
    step = torch.load(checkpoint, weights_only=False)["global_step"]
    assert step in (3, 4)
    rest = fit(place, "b", "trainer.accumulate_grad_batches=2", f"ckpt_path={checkpoint}")[1]
    assert rest == [number for number in whole if number >= step]


@pytest.mark.parametrize(
    ("environment", "rank", "error", "end", "status"),
    [
        (LightningEnvironment(), 0, SystemExit(1), KeyboardInterrupt, "in step 4"),
        (LightningEnvironment(), 1, SystemExit(1), SystemExit, "0"),
        (None, 1, SystemExit(1), KeyboardInterrupt, "in step 4"),
        (LightningEnvironment(), 0, RuntimeError("closed by peer"), KeyboardInterrupt, "in step"),
        (LightningEnvironment(), 1, RuntimeError("closed by peer"), SystemExit, "0"),
    ],
)
def test_ctrl_c_in_one_of_several_processes(
    tmp_path: Path, environment: Any, rank: int, error: BaseException, end: Any, status: str
) -> None:
    """One that Lightning started ends well, else Lightning kills the first; a peer may be gone."""
    strategy = SimpleNamespace(cluster_environment=environment)
    trainer: Any = SimpleNamespace(
        world_size=2, local_rank=rank, global_step=3, strategy=strategy, progress_bar_callback=None
    )
    interruption = Interruption(tmp_path)

    def run() -> None:
        with interruption.watch():
            interruption.on_train_batch_start(trainer)
            interruption.on_train_batch_end()
            interruption.on_train_batch_start(trainer)
            os.kill(os.getpid(), signal.SIGINT)
            ours = KeyboardInterrupt() if isinstance(error, SystemExit) else error
            interruption.on_exception(trainer, Small(), ours)
            raise error

    with pytest.raises(end, match=status):
        run()


def test_an_error_in_one_of_several_processes_stays_one(tmp_path: Path) -> None:
    interruption = Interruption(tmp_path)
    trainer: Any = SimpleNamespace(world_size=2)

    def run() -> None:
        with interruption.watch():
            interruption.on_train_batch_start(trainer)
            raise RuntimeError("no good")

    with pytest.raises(RuntimeError, match="no good"):
        run()


def test_a_second_ctrl_c_ends_at_once_and_saves_no_half_step(place: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="in step 4; ckpt_path=last goes on from"):
        fit(place, "a", act=At(3, twice))
    assert not (place / "a/checkpoints").exists()


def test_metrics_are_there_while_the_run_goes(place: Path) -> None:
    found: list[dict[str, Any]] = []

    def look() -> None:
        assert not list((place / "a").glob(".*.partial"))
        found.append(json.loads((place / "a/metrics.json").read_text())["stages"][-1])

    fit(place, "a", "callbacks.checkpoint.every_n_train_steps=2", act=At(3, look))
    assert (found[0]["name"], found[0]["counts"]["steps"]) == ("train", 2)
    assert found[0]["seconds"] > 0
    stages = json.loads((place / "a/metrics.json").read_text())["stages"]
    assert [each["counts"]["steps"] for each in stages if each["name"] == "train"] == [6]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"),
     RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")],
)  # fmt: skip
def test_a_checkpoint_that_the_disk_does_not_take_is_one_line(
    place: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught, cli.advice():
        fit(place, "a", "callbacks.checkpoint.every_n_train_steps=2", act=At(3, fail))
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert "Results are in" not in said.out
    told = [line for line in said.err.splitlines() if line.startswith(("Storage error", "  "))]
    assert told[0].startswith(f"Storage error: cannot write the run folder {place}/a: ")
    assert "hydra.run.dir=FOLDER" in told[0]
    assert told[1] == f"  what the run has left is in {place}/a"
    assert json.loads((place / "a/metrics.json").read_text())["stages"]


def test_other_errors_are_not_taken_for_a_full_disk(place: Path) -> None:
    def fail() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        fit(place, "a", act=At(3, fail))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.devices=3"], "trainer.devices=3: a global batch of 16 cannot be shared by 3"),
        (["trainer.devices=[0,1,2]"], "cannot be shared by 3 ranks"),
        (["trainer.devices='3'"], "cannot be shared by 3 ranks"),
        (["trainer.devices=2", "+trainer.num_nodes=3"], "cannot be shared by 6 ranks"),
        (["trainer.accumulate_grad_batches=5"], "1 ranks x 5 micro-batches = 5"),
        (["trainer.devices=4", "data.backends.photos.batch_size=6"],
         "data.backends.photos.batch_size=6, trainer.devices=4: a global batch of 6"),
        (["trainer.devices=3", "data.context_parallel=2"], "data.context_parallel=2 must divide"),
    ],
)  # fmt: skip
def test_a_batch_that_processes_cannot_share_is_refused_with_the_config(
    overrides: list[str], told: str
) -> None:
    from factory.config.build import verify

    with pytest.raises(ConfigError) as caught:
        verify(compose(["storage.root=data", *overrides]), overrides)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [["trainer.devices=4"], ["trainer.devices=auto"], ["trainer.devices=-1"],
     ["trainer.devices=4", "data.context_parallel=2"]],
)  # fmt: skip
def test_a_batch_that_they_can_share_is_not(overrides: list[str]) -> None:
    from factory.config.build import verify

    verify(compose(["storage.root=data", *overrides]), overrides)
