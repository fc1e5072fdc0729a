"""Backends mixed in a data module: batch sizes of their own, sliders, lengths of epochs."""

from pathlib import Path
from typing import Any

import pytest

from factory import FactoryDataModule, ImageBackend
from factory.backends.image import Crop
from factory.errors import PlanError
from factory.lightning.loaders import TrainLoader
from factory.lightning.position import Position
from factory.sampling.active_window import ActiveWindow
from factory.sampling.mixture import Mixture
from factory.sampling.rank_shares import RankLayout
from factory.sampling.selection import Random
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import write_folders


def mixed(root: Path, for_a: dict[str, Any], sampling: Mixture | None = None) -> FactoryDataModule:
    """Two folders of 13 and 9 pictures, read as pixels."""
    write_folders(root)
    shared: dict[str, Any] = {
        "storage": LocalStorage(str(root)), "resolution": 64, "alignment": 16,
        "crop": Crop("square"),
    }  # fmt: skip
    backends = [
        ImageBackend(name="a", prefix="a", **shared, **for_a),
        ImageBackend(name="b", prefix="b", **shared),
    ]
    data = FactoryDataModule(backends, batch_size=4, seed=7, sampling=sampling)
    data.prepare_data()
    data.setup()
    return data


def test_a_backend_has_batches_of_its_own_size_and_a_strength(tmp_path: Path) -> None:
    data = mixed(tmp_path, {"batch_size": 2, "slider_strength": 1.5})
    batches = list(data.train_dataloader())
    data.close()
    assert {(b.backend, len(b), b.slider_strength) for b in batches} == {
        ("a", 2, 1.5), ("b", 4, None),
    }  # fmt: skip
    assert [batch.backend for batch in batches[:4]] == ["a", "b", "a", "b"]


def test_a_layout_must_divide_each_backends_own_batch(tmp_path: Path) -> None:
    data = mixed(tmp_path, {"batch_size": 6})

    def loader(ranks: int) -> TrainLoader:
        layout = RankLayout(0, ranks, 1)
        return TrainLoader(data.plan, data._collate(), data.prefetch, layout, Position())

    with pytest.raises(PlanError, match=r"backend 'a': a global batch of 6 .* 1, 2, 3, 6\."):
        loader(4)
    with pytest.raises(PlanError, match="a global batch of 4 cannot be shared by 3 ranks"):
        loader(3)
    loader(2)
    data.close()


def test_epochs_of_a_fixed_length_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    data = mixed(tmp_path, {}, Mixture(epoch_steps=2, short_batch="drop"))
    epochs = [list(data.train_dataloader()) for _ in range(3)]
    data.close()
    assert [len(epoch) for epoch in epochs] == [2, 2, 2]
    keys = [key for epoch in epochs for batch in epoch for key in batch.keys if key[0] == "a"]
    assert len(keys) == len(set(keys)) == 12  # of 13 pictures, none twice


def test_only_plans_of_equal_epochs_say_so(tmp_path: Path) -> None:
    window = ActiveWindow(fade_to_step=5)
    cases = {
        "plain": ({}, Mixture(), True),
        "fixed": ({}, Mixture(epoch_steps=2, selection=Random()), True),
        "cycle": ({}, Mixture(epoch="cycle"), True),
        "drawn": ({}, Mixture(epoch="cycle", selection=Random()), False),
        "faded": ({"window": window}, Mixture(), False),
    }
    for name, (for_a, sampling, alike) in cases.items():
        data = mixed(tmp_path / name, for_a, sampling)
        assert data.plan.alike is alike, name
        data.close()
