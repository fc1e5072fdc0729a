"""What the data module holds while it runs, and what is left when something fails."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory import Batch, FactoryDataModule
from factory.errors import PlanError, ResumeError, StorageError
from factory.ledger.ledger import Ledger
from factory.ledger.reader import read_ledger
from factory.lightning.data_state import sealed
from factory.lightning.loaders import RankLayout, TrainLoader
from factory.lightning.position import Position
from factory.registry.registry import Registry
from factory.runtime.batches.batch import each_tensor
from factory.runtime.batches.request import BatchRequest
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.runtime.prefetch.loader_context import LoaderContext
from factory.sampling.exclusion import Exclude
from tests.runtime.traces import left, traces
from tests.scenarios.training.building import data_module
from tests.support.pictures import write_pictures

INLINE = Prefetch(mode="inline")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("closing")
    write_pictures(folder / "a", 13)
    write_pictures(folder / "b", 9, first=100)
    write_pictures(folder / "held", 9, first=200)
    return folder


@pytest.fixture
def data(root: Path) -> Iterator[FactoryDataModule]:
    module = ready(root)
    yield module
    module.close()


def ready(root: Path, **settings: Any) -> FactoryDataModule:
    data = data_module(root, encoded=False, **settings)
    data.prepare_data()
    data.setup()
    return data


def test_no_batch_is_held_while_the_next_one_is_made(data: FactoryDataModule) -> None:
    collate, made, held = data._collate(), [], []

    def make(part: BatchRequest) -> Batch:
        held.append(bool(made) and made[-1]() is not None)
        batch = collate(part)
        made.append(weakref.ref(batch))
        return batch

    loader = TrainLoader(data.plan, make, INLINE, RankLayout(), Position())  # type: ignore[arg-type]
    for batch in loader:
        assert not held[-1]
        del batch
    assert len(held) == data.plan.steps(0)


class Elsewhere:
    """Stages batches on a device from which nothing can be read."""

    def begin(self, batch: Batch) -> Batch:
        """Return the batch on that device."""
        moved: Batch = each_tensor(batch, lambda tensor: tensor.to("meta"))
        return moved

    def finish(self, staged: Batch) -> Batch:
        """Return the batch."""
        return staged


def test_the_ledger_asks_no_device_for_the_rows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "factory.runtime.prefetch.loader_context.copier_for", lambda *_, **__: Elsewhere()
    )
    data = ready(root, ledger=tmp_path)
    for batch in data.train_dataloader():
        assert batch.pixels.is_meta
        data.count_micro_batch()
    data.close()
    told = read_ledger(tmp_path)
    assert len(told) == data.plan.steps(0)
    assert all(np.array_equal(told[n].rows, data.plan.at(0, n).rows) for n in told)


def test_what_is_done_again_by_the_same_loader_is_recorded_once(root: Path, tmp_path: Path) -> None:
    data = ready(root, ledger=tmp_path)
    loader = data.train_dataloader()

    def work(steps: int) -> None:
        batches = iter(loader)
        for _ in range(steps):
            next(batches)
            data.count_micro_batch()

    state = data.state_dict()
    work(4)
    data.load_state_dict(state)
    work(5)
    data.close()
    told = read_ledger(tmp_path)
    assert [len(told[n].micros) for n in told] == [1] * 5


class Peer:
    """Notes that the others are told goodbye."""

    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


def test_a_ledger_that_cannot_be_written_keeps_nothing_else_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(ledger: Ledger) -> None:
        raise StorageError("no space left")

    closed: list[str] = []
    monkeypatch.setattr(LoaderContext, "close", lambda _: closed.append("context"))
    monkeypatch.setattr(Registry, "close", lambda _: closed.append("registry"))
    data = ready(root)
    peer: Any = Peer()
    data._monitor = peer
    before = traces()
    next(iter(data.train_dataloader()))
    monkeypatch.setattr(Ledger, "close", full)
    with pytest.raises(StorageError, match="no space left"):
        data.close()
    assert closed == ["context", "registry"]
    assert peer.closed
    assert "threads" not in left(before)


def test_what_was_refused_is_refused_again_and_moves_nothing(root: Path) -> None:
    old = ready(root, seed=1)
    state = sealed({**old.state_dict(), "step": 3})
    data = data_module(root, encoded=False, seed=2)
    data.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(ResumeError, match="seed: 1 -> 2"):
            data.setup()
    later = ready(root, seed=2)
    with pytest.raises(ResumeError, match="seed: 1 -> 2"):
        later.load_state_dict(state)
    assert later.committed == (0, 0)
    later.setup()
    later.load_state_dict(later.state_dict())
    for each in (old, data, later):
        each.close()


def test_what_is_excluded_stands_in_for_nothing_in_validation(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 4)
    write_pictures(tmp_path / "b", 4)
    write_pictures(tmp_path / "held", 3, sizes=((64, 64),))
    data = ready(tmp_path, exclude=[Exclude(["held/0001.png"])])
    (tmp_path / "held/0000.png").write_bytes(b"nothing")
    (batch,) = data.val_dataloader()
    assert batch.keys == ["held/0002.png"] * 2
    assert batch.valid.tolist() == [False, True]
    data.close()


def test_what_is_unusable_is_counted_against_the_plan_that_there_is(root: Path) -> None:
    data = data_module(root, encoded=False)
    with pytest.raises(PlanError, match="setup"):
        _ = data.quarantine
    data.prepare_data()
    data.setup()
    assert data.quarantine._kept == {"a": 13, "b": 9, "held": 9}
    data.close()


class Refusing:
    """A record that takes the first batch, and not the second."""

    told = 0

    def restart(self) -> None:
        """Do nothing."""

    def note(self, batch: Batch) -> None:
        """Count."""
        self.told += 1
        if self.told == 2:
            raise ValueError("no more of these")


def test_a_record_that_refuses_a_batch_closes_the_fetcher(data: FactoryDataModule) -> None:
    before = traces()
    loader = TrainLoader(
        data.plan, data._collate(), Prefetch(), RankLayout(), Position(), records=[Refusing()]
    )
    with pytest.raises(ValueError, match="no more of these") as caught:
        list(loader)
    # While the error is held, and with it every frame that it came through.
    assert caught.value.__traceback__ is not None
    assert "threads" not in left(before)


def test_rows_of_a_batch_staged_ahead_hold_no_memory_of_another_process() -> None:
    from factory.runtime.prefetch.loader_context import RowsOnHost
    from tests.runtime.work import batch

    whole = batch(3)
    staging = RowsOnHost(Elsewhere())
    staged = staging.finish(staging.begin(whole))
    assert torch.equal(staged.rows, whole.rows)
    assert staged.rows.data_ptr() != whole.rows.data_ptr()
