"""A loop without Lightning's Trainer, in one process: what it takes, commits and goes on from."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from factory.errors import ConfigError, FactoryError, FetchError, PlanError
from factory.runtime.distributed.current_rank import Ranks, find_ranks
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders

VARIABLES = (
    "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders whose epochs are 7 steps."""
    folder = tmp_path_factory.mktemp("plain")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def places(batches: Any) -> list[tuple[int, int]]:
    return [(batch.epoch, batch.step) for batch in batches]


def test_batches_go_on_over_epochs_until_they_are_enough(root: Path) -> None:
    for limit, count in (({"max_steps": 16}, 16), ({"max_epochs": 2}, 14), ({"max_steps": 7}, 7)):
        with data_module(root) as data:
            found = []
            for batch in data.batches(**limit):
                found.append((batch.epoch, batch.step))
                data.commit()
            assert found == [divmod(number, 7) for number in range(count)]
            assert list(data.batches(**limit)) == []


@pytest.mark.parametrize("each", [True, False])
def test_a_state_says_what_was_committed(root: Path, each: bool) -> None:
    """Committed after each micro-batch or after each step, a step counts with its last one."""
    with data_module(root, accumulate_grad_batches=2) as data:
        for number, _ in enumerate(data.batches()):
            if each or number % 2:
                data.commit()
            assert data.committed == divmod((number + 1) // 2, 7) or data.committed == (0, 7)
            if number == 6:
                break
        state = data.state_dict()
    assert (state["epoch"], state["step"]) == (0, 3)
    with data_module(root) as again:
        again.load_state_dict(state)
        assert places(again.batches(max_steps=5)) == [(0, 3), (0, 4)]


def test_a_state_without_commits_warns(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with data_module(root) as data, caplog.at_level(logging.WARNING):
        data.setup()
        data.state_dict()
        batches = iter(data.train_dataloader())
        assert not caplog.records
        next(batches)
        data.state_dict()
        assert "call data.commit()" in caplog.text.replace("Call", "call")
        caplog.clear()
        data.commit()
        next(batches)
        data.state_dict()  # a step is under way
        assert not caplog.records
        next(batches)
        data.state_dict()
        assert "1 steps of epoch 0 are completed, and 2 batches" in caplog.text


def test_batches_that_were_not_committed_come_again_and_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with data_module(root) as data:
        found = []
        for number, batch in enumerate(data.batches()):
            found.append((batch.epoch, batch.step))
            if number < 5 or number > 6:
                data.commit()
            if number == 9:
                break
    assert found[6:] == [(0, 6), (0, 5), (0, 6), (1, 0)]
    assert "2 batches that were not committed: they come again" in caplog.text


def test_a_state_without_commits_warns_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with data_module(root) as data:
        for batch in data.batches(max_steps=9):
            if batch.step % 2:
                data.state_dict()
        state = data.state_dict()
    assert caplog.text.count("data.commit()") == 1
    assert (state["epoch"], state["step"]) == (1, 0)


def test_a_loop_that_is_left_in_the_last_step_of_an_epoch_sees_it_again(root: Path) -> None:
    with data_module(root) as data:
        for _ in data.batches(max_steps=6):
            data.commit()
        for batch in data.batches():
            assert (batch.epoch, batch.step) == (0, 6)
            break

        assert places([next(data.batches())]) == [(0, 6)]


def test_an_iteration_ends_where_another_has_begun(root: Path) -> None:
    """Commits of two that are under way at once could not be told apart."""
    with data_module(root) as data:
        older, newer = iter(data.loader()), iter(data.loader())
        next(older)
        next(newer)
        with pytest.raises(FetchError, match="begun anew"):
            next(older)
        data.commit()
        assert data.committed == (0, 1)
        assert next(newer).step == 1
        data.load_state_dict(data.state_dict())
        with pytest.raises(FetchError, match="or a state was loaded"):
            next(newer)
        assert places(data.batches(max_steps=2)) == [(0, 1)]


def test_validation_may_be_asked_for_first(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with data_module(tmp_path) as data:
        assert sum(int(batch.valid.sum()) for batch in data.val_dataloader()) == 5
        assert len(list(data.batches(max_steps=2))) == 2


@pytest.mark.parametrize("limit", [{"max_steps": -1}, {"max_steps": 2.5}, {"max_epochs": -1}])
def test_a_limit_that_is_none_is_refused(root: Path, limit: dict[str, Any]) -> None:
    with data_module(root) as data, pytest.raises(ConfigError, match="whole number from 0"):
        data.batches(**limit)


def test_a_loader_is_one_of_torchs_and_of_fabrics(root: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    with data_module(root) as data:
        loader = data.loader()
        assert isinstance(loader, DataLoader)
        ours = fabric.setup_dataloaders(loader)
        assert len(ours) == 7
        assert places(ours) == [(0, step) for step in range(7)]
        assert places(ours) == [(1, step) for step in range(7)]
        held = fabric.setup_dataloaders(data.val_dataloader())
        assert sum(int(batch.valid.sum()) for batch in held) == 5


def test_shares_of_all_ranks_and_micro_batches_are_the_whole(root: Path) -> None:
    with data_module(root) as data:
        whole = [batch.keys for batch in data.batches(max_steps=7)]
    parts = []
    for rank in range(2):
        with data_module(root) as data:
            loader = data.loader(rank=rank, world_size=2, accumulate_grad_batches=2)
            parts.append([batch.keys for batch in loader])
    joined = [
        parts[0][2 * n] + parts[0][2 * n + 1] + parts[1][2 * n] + parts[1][2 * n + 1]
        for n in range(7)
    ]
    assert joined == whole


@pytest.mark.parametrize(
    ("env", "ranks"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
    ],
)
def test_the_launcher_says_the_rank(
    env: dict[str, str], ranks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert find_ranks()[:2] == ranks
    assert find_ranks(2, 5) == Ranks(2, 5, given=True)


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, ConfigError),
        ({"RANK": "x", "WORLD_SIZE": "2"}, ConfigError),
        ({"WORLD_SIZE": "2"}, PlanError),
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(
    env: dict[str, str], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match="WORLD_SIZE=2"):
        find_ranks()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "give both"),
        ({"world_size": 2}, "give both"),
        ({"rank": 2, "world_size": 2}, "from 0 to world_size - 1"),
        ({"rank": -1, "world_size": 2}, "from 0 to world_size - 1"),
        ({"accumulate_grad_batches": 0}, "at least 1"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(root: Path, given: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        data_module(root, **given)
    with data_module(root) as data, pytest.raises(ConfigError, match=said):
        data.loader(**given)


def test_ranks_that_cannot_share_a_batch_are_refused(root: Path) -> None:
    with data_module(root) as data, pytest.raises(PlanError, match="must be one of 1, 2, 4"):
        data.batches(rank=0, world_size=3)


def test_several_ranks_without_a_group_take_what_was_prepared(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with data_module(root) as data:
        assert all(len(batch) == 2 for batch in data.batches(max_steps=3))
    write_folders(tmp_path)
    with data_module(tmp_path) as data:
        with pytest.raises(FactoryError) as caught:
            data.batches()
        assert "call data.prepare_data() in one" in caught.value.__notes__[-1]


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
def test_a_trainer_says_its_ranks_itself(root: Path) -> None:
    data = data_module(root, rank=0, world_size=2)
    with pytest.raises(ConfigError, match="world_size=2 was given to the data, and the trainer"):
        trainer(root, max_steps=1).fit(Recorder(), datamodule=data)
    data.close()


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
def test_lightning_and_a_plain_loop_go_on_from_each_other(root: Path, tmp_path: Path) -> None:
    with data_module(root) as data:
        for _ in data.batches(max_steps=9):
            data.commit()
        state = data.state_dict()
    model, data = Recorder(), data_module(root)
    data.load_state_dict(state)
    trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(model, datamodule=data)
    assert [seen[:2] for seen in model.seen] == [(1, 2), (1, 3), (1, 4)]
    state = data.state_dict()
    data.close()
    with data_module(root) as again:
        again.load_state_dict(state)
        assert places(again.batches(max_steps=14)) == [(1, 5), (1, 6)]


def test_an_error_in_the_loop_closes_everything(root: Path) -> None:
    import threading

    def loop() -> None:
        with data_module(root) as data:
            for batch in data.batches():
                assert isinstance(batch.latents, torch.Tensor)
                raise RuntimeError("stopped")

    others = {*threading.enumerate()}  # of storages that other tests used
    with pytest.raises(RuntimeError, match="stopped"):
        loop()
    left = {*threading.enumerate()} - others
    assert not [each.name for each in left if each.name.startswith("factory-")]
