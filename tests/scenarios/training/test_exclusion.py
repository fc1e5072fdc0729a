"""Samples are left out of training from a step on, and of validation wholly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory import ConditioningBackend, ConfigError, FactoryDataModule, ImageBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.errors import PlanError, ResumeError
from factory.reports.explain.samples import samples_of
from factory.reports.preview.dry_run import preview_run
from factory.sampling.exclusion import Exclude
from factory.sampling.mixture import Mixture
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders
from tests.support.pictures import write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers", "ignore:.*treespec, LeafSpec.*"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exclude")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


def fit(root: Path, *exclude: Exclude, **settings) -> Recorder:
    data = data_module(root, exclude=exclude)
    model = Recorder()
    given = {"max_epochs": 2, "limit_val_batches": 0, **settings}
    trainer(root, **given).fit(model, datamodule=data)
    data.close()
    return model


def test_excluded_samples_are_replaced_from_their_step_on_and_nothing_moves(root: Path) -> None:
    before = fit(root).seen
    place = next(n for n, seen in enumerate(before) if "a/0003.png" in seen[3])
    first = next(n for n, seen in enumerate(before[place + 1 :], place + 1)
                 if "a/0003.png" in seen[3])  # fmt: skip
    after = fit(root, Exclude(["a:a/0003.png"], from_step=first + 1)).seen
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old[:3] == new[:3]
        for a, b in zip(old[3], new[3], strict=True):
            gone = number >= first and a == "a/0003.png"
            assert (a != b) == gone
            assert b.startswith(f"{old[2]}/")
    assert any("a/0003.png" in seen[3] for seen in after)


def test_validation_does_without_them(root: Path) -> None:
    exclude = Exclude(["held/0201.png"], from_step=1000)
    model = fit(root, exclude, max_steps=1, limit_val_batches=1.0, val_check_interval=1)
    assert sorted(set(model.validated)) == [f"held/020{n}.png" for n in (0, 2, 3, 4)]


def test_unknown_samples_are_refused_all_at_once_with_names_that_are_near(root: Path) -> None:
    given = Exclude(["a:0003.png", "nowhere at all"]), Exclude(["b/0101.pgn"])
    data = data_module(root, exclude=given)
    with pytest.raises(ConfigError) as caught:
        data.setup()
    assert len(caught.value.problems) == 3
    assert "data.exclude.0: no sample of a is named '0003.png'; did you mean a:a/0003.png" in str(
        caught.value
    )
    assert "no sample of a, b, held is named 'nowhere at all'; give its storage key" in str(
        caught.value
    )
    assert "data.exclude.1:" in str(caught.value)
    assert "b:b/0101.png" in str(caught.value)
    data.close()


def test_a_whole_bucket_is_refused_with_what_to_do_and_in_a_dry_run(root: Path) -> None:
    data = data_module(root)
    data.setup()
    catalog = data.sources["b"].catalog
    keys = [catalog.facts.key(int(row)) for row in catalog.decisions.buckets[0].rows]
    data.close()
    data = data_module(root, exclude=[Exclude(keys)])
    with pytest.raises(PlanError, match=r"all 3 samples of bucket .* are excluded"):
        data.setup()
    assert any("are excluded" in problem.text for problem in preview_run(data).summary.problems)
    data.close()


def test_conditioning_samples_stand_for_those_they_belong_to(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 6)
    write_pictures(tmp_path / "depth", 6, captions=False)
    shared: dict[str, Any] = {
        "storage": LocalStorage(str(tmp_path)), "resolution": 64, "alignment": 16,
        "caption": FilenameCaptions(),
    }  # fmt: skip
    data = FactoryDataModule(
        [
            ImageBackend(name="a", prefix="a", **shared),
            ConditioningBackend(
                name="depth", prefix="depth", source="a", storage=shared["storage"]
            ),
        ],
        batch_size=2,
        exclude=[Exclude(["depth:depth/0004.png"])],
    )
    data.prepare_data()
    data.setup()
    assert data.plan.exclude["a"].keys == {4: "a/0004.png"}
    keys = [key for batch in data.train_dataloader() for key in batch.keys]
    assert "a/0004.png" not in keys
    [sample] = samples_of(np.array([2]), data.sources["a"], seed=0, epoch=0)
    assert (sample.key, sample.partners) == ("a/0002.png", {"depth": "depth/0002.png"})
    data.close()


def test_the_description_in_a_checkpoint_names_them(root: Path) -> None:
    data = data_module(root, exclude=[Exclude(["a/0001.png"], 5), Exclude(["a:a/0001.png"], 3)])
    data.setup()
    state = json.loads(json.dumps(data.state_dict()))
    assert state["plan"]["exclude"] == [{"from_step": 3, "backend": "a", "ids": ["a/0001.png"]}]
    data.close()


@pytest.mark.parametrize("rule", [{}, {"epoch_steps": 2}])
def test_a_later_exclusion_is_taken_at_a_resume_and_an_earlier_one_refused(
    root: Path, rule: dict
) -> None:
    """Three steps are done: from the fourth on samples may be left out, also over epochs."""
    sampling = Mixture(**rule)
    data = data_module(root, sampling=sampling)
    trainer(root, max_steps=3, limit_val_batches=0).fit(Recorder(), datamodule=data)
    state = json.loads(json.dumps(data.state_dict()))
    upcoming = data.plan.at(*data.plan.position(3))
    key = data.sources[upcoming.backend].catalog.facts.key(int(upcoming.rows[0]))
    data.close()

    def resumed(from_step: int) -> FactoryDataModule:
        data = data_module(root, sampling=sampling, exclude=[Exclude([key], from_step)])
        data.load_state_dict(state)
        data.setup()
        return data

    data = resumed(4)
    batch = next(iter(data.train_dataloader()))
    now = data.plan.at(*data.plan.position(3))
    gone = upcoming.rows == upcoming.rows[0]  # more than once where it fills the batch
    assert [swap.place for swap in now.excluded] == np.flatnonzero(gone).tolist()
    assert (now.rows[~gone] == upcoming.rows[~gone]).all()
    assert key not in batch.keys
    assert (batch.epoch, batch.step) == (upcoming.epoch, upcoming.step)
    data.close()
    with pytest.raises(ResumeError, match=r"add an entry with from_step=4 or later"):
        resumed(3)
