"""The data module from plain Python objects: batches, pairing, commits and resume."""

import gc
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import ConfigError, ImageBackend
from factory.errors import PlanError, ResumeError
from factory.lightning.data_state import sealed
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import Recorder, data_module, trainer, write_folders
from tests.support.pictures import colour, write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path


def test_pixels_captions_and_keys_stay_together(root: Path) -> None:
    data = data_module(root, encoded=False)
    data.prepare_data()
    data.setup()
    count = 0
    for batch in data.train_dataloader():
        assert batch.latents is None
        assert batch.pixels is not None
        assert batch.pixels.dtype == torch.uint8
        width, height = (int(edge) for edge in batch.bucket.split("x"))
        assert batch.pixels.shape == (4, height, width, 3)
        assert batch.target_size.tolist() == [[width, height]] * 4
        for key, caption, picture in zip(batch.keys, batch.captions, batch.pixels, strict=True):
            number = int(Path(key).stem)
            assert caption == f"picture {number}"
            assert tuple(picture[0, 0].tolist()) == colour(number)
            count += 1
    assert count == data.plan.steps(0) * 4
    data.close()


def test_latents_and_embeddings_belong_to_their_samples(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    encoder = data.registry.image_embeds["latents"].encoder
    words = data.registry.text_embeds["text"].encoder
    for batch in data.train_dataloader():
        assert batch.latents is not None
        for n, key in enumerate(batch.keys):
            decoded = encoder.decode(batch.latents[n : n + 1])[0]
            expected = torch.tensor(colour(int(Path(key).stem)))
            assert (decoded[0, 0].int() - expected).abs().max() <= 3
        alone = words.encode([batch.captions[0]])
        assert torch.equal(batch.text["embeds"][0], alone["embeds"][0])
    data.close()


def test_an_epoch_has_every_sample_once_but_for_counted_repeats(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    keys = [key for batch in data.train_dataloader() for key in batch.keys]
    accounts = {account.backend: account for account in data.plan.accounting(0)}
    assert len(set(keys)) == 13 + 9
    assert len(keys) - len(set(keys)) == sum(a.duplicates for a in accounts.values())
    data.close()


def test_the_second_start_measures_and_encodes_nothing(root: Path) -> None:
    first = data_module(root)
    first.prepare_data()
    first.setup()
    second = data_module(root)
    second.prepare_data()
    second.setup()
    counts = {stage.name: stage.counts for stage in second.registry.telemetry.stages}
    assert counts["scan a"]["changes"] == "13 unchanged"
    assert counts["encode a"]["encoded"] == 0
    assert counts["encode text"]["encoded"] == 0
    assert second.plan.fingerprint == first.plan.fingerprint
    first.close()
    second.close()


def test_another_rank_loads_what_was_published(root: Path) -> None:
    one = data_module(root)
    one.prepare_data()
    one.setup()
    other = data_module(root)
    other.setup()
    assert other.plan.fingerprint == one.plan.fingerprint
    one.close()
    other.close()


def test_one_changed_caption_encodes_one_row(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.close()
    (root / "a" / "0003.txt").write_text("another caption")
    again = data_module(root)
    again.prepare_data()
    counts = {stage.name: stage.counts for stage in again.registry.telemetry.stages}
    assert counts["encode a"]["encoded"] == 0
    assert counts["encode text"]["encoded"] == 1
    again.close()


def test_fit_trains_whole_epochs_and_validates_every_sample_once(root: Path) -> None:
    data, model = data_module(root), Recorder()
    trainer(root, max_epochs=2).fit(model, datamodule=data)
    length = data.plan.steps(0)
    assert [entry[:2] for entry in model.seen] == [(e, s) for e in (0, 1) for s in range(length)]
    for epoch, step, backend, keys in model.seen:
        planned = data.plan.at(epoch, step)
        facts = data.sources[planned.backend].catalog.facts
        assert backend == planned.backend
        assert keys == tuple(facts.key(row) for row in planned.rows.tolist())
    assert sorted(model.validated) == sorted([f"held/{n:04d}.png" for n in range(200, 205)] * 2)
    data.close()


def test_accumulation_splits_a_step_without_changing_it(root: Path) -> None:
    whole, split = Recorder(), Recorder()
    for model, micros in ((whole, 1), (split, 2)):
        data = data_module(root)
        trainer(root, max_epochs=1, accumulate_grad_batches=micros).fit(model, datamodule=data)
        data.close()
    joined = [
        (*first[:3], first[3] + second[3])
        for first, second in zip(split.seen[::2], split.seen[1::2], strict=True)
    ]
    assert joined == whole.seen


def test_a_layout_that_does_not_divide_the_batch_is_refused(root: Path) -> None:
    data = data_module(root)
    with pytest.raises(PlanError, match="must be one of 1, 2, 4"):
        trainer(root, max_epochs=1, accumulate_grad_batches=3).fit(Recorder(), datamodule=data)
    data.close()


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_stopped_run_continues_with_the_very_next_step(root: Path, stop: int) -> None:
    straight = Recorder()
    data = data_module(root)
    trainer(root, max_epochs=3).fit(straight, datamodule=data)
    data.close()

    saving = ModelCheckpoint(
        dirpath=root / "ckpt", every_n_train_steps=1, save_last=True, save_top_k=0,
        enable_version_counter=False,
    )  # fmt: skip
    first, data = Recorder(), data_module(root)
    first.fail_at = stop
    with pytest.raises(RuntimeError, match="stopped here"):
        trainer(root, max_epochs=3, enable_checkpointing=True, callbacks=[saving]).fit(
            first, datamodule=data
        )
    data.close()
    second, data = Recorder(), data_module(root)
    trainer(root, max_epochs=3).fit(
        second, datamodule=data, ckpt_path=str(root / "ckpt" / "last.ckpt"), weights_only=True
    )
    data.close()
    assert first.seen + second.seen == straight.seen


def test_resume_at_the_end_of_an_epoch_starts_the_next(root: Path) -> None:
    straight = Recorder()
    data = data_module(root)
    trainer(root, max_epochs=2).fit(straight, datamodule=data)
    length = data.plan.steps(0)
    data.close()

    saving = ModelCheckpoint(dirpath=root / "ckpt", save_last=True, save_top_k=0)
    first, data = Recorder(), data_module(root)
    trainer(root, max_epochs=1, enable_checkpointing=True, callbacks=[saving]).fit(
        first, datamodule=data
    )
    data.close()
    second, data = Recorder(), data_module(root)
    trainer(root, max_epochs=2).fit(
        second, datamodule=data, ckpt_path=str(root / "ckpt" / "last.ckpt"), weights_only=True
    )
    data.close()
    assert len(first.seen) == length
    assert first.seen + second.seen == straight.seen


def test_a_changed_plan_on_resume_shows_the_difference(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    state = data.state_dict()
    data.close()
    changed = data_module(root, repeats=1, batch_size=2)
    changed.prepare_data()
    changed.setup()
    with pytest.raises(ResumeError) as caught:
        changed.load_state_dict(state)
    text = str(caught.value)
    assert "batch_size" in text
    assert "backends.a.repeats" in text
    assert "data.accept_changed_plan=true" in text
    changed.close()


def test_a_changed_plan_can_be_accepted(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    state = sealed({**data.state_dict(), "step": 2})
    data.close()
    changed = data_module(root, batch_size=2, accept_changed_plan=True)
    changed.prepare_data()
    changed.setup()
    changed.load_state_dict(state)
    first = next(iter(changed.train_dataloader()))
    assert (first.epoch, first.step) == (0, 2)
    changed.close()


def test_a_replaced_file_changes_the_plan(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    before = data.plan.fingerprint
    data.close()
    file = root / "a" / "0003.png"
    file.write_bytes((root / "a" / "0000.png").read_bytes())
    changed = data_module(root)
    changed.prepare_data()
    changed.setup()
    assert changed.plan.fingerprint != before
    changed.close()


def test_fit_leaves_no_thread_behind(root: Path) -> None:
    others = {*threading.enumerate()}  # of storages that other tests used
    data, model = data_module(root), Recorder()
    model.fail_at = 2
    with pytest.raises(RuntimeError, match="stopped here"):
        trainer(root, max_epochs=1).fit(model, datamodule=data)
    data.close()
    gc.collect()
    left = {*threading.enumerate()} - others
    assert not [t.name for t in left if t.name.startswith("factory-")]


def test_two_data_modules_live_side_by_side(root: Path) -> None:
    one, two = data_module(root, seed=1), data_module(root, seed=2)
    for data in (one, two):
        data.prepare_data()
        data.setup()
    firsts = [next(iter(data.train_dataloader())).keys for data in (one, two)]
    assert firsts[0] != firsts[1]
    one.close()
    two.close()


def test_without_a_trainer_the_loader_gives_epoch_after_epoch(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    epochs = [[batch.epoch for batch in loader] for _ in range(2)]
    length = data.plan.steps(0)
    assert epochs == [[0] * length, [1] * length]
    data.close()


def test_two_backends_of_one_name_are_refused(tmp_path: Path) -> None:
    backend = ImageBackend(name="a", storage=LocalStorage(str(tmp_path)))
    from factory import FactoryDataModule

    with pytest.raises(ConfigError, match="two backends are named 'a'"):
        FactoryDataModule([backend, backend])


def test_a_plan_asked_for_too_early_says_what_to_call(root: Path) -> None:
    with pytest.raises(PlanError, match=r"call prepare_data\(\) and setup\(\) first"):
        _ = data_module(root).plan


def test_a_catalog_in_chunks_trains_as_one_in_a_piece(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> list[tuple[Any, ...]]:
        """Prepare, load, and return what an epoch is made of."""
        data = data_module(root)
        data.prepare_data()
        loaded = data_module(root)
        loaded.setup()
        seen = [
            (batch.keys, batch.captions, float(batch.latents.sum()))
            for batch in loaded.train_dataloader()
        ]
        data.close()
        loaded.close()
        return seen

    whole = batches()
    shutil.rmtree(root / "cache")
    for module in ("facts", "facts_store"):
        monkeypatch.setattr(f"factory.catalog.{module}.CHUNK_ROWS", 3)
    monkeypatch.setattr("factory.cache.row_locations.PIECE", 2)
    monkeypatch.setattr("factory.catalog.facts.MANY_ROWS", 2)
    assert batches() == whole
    (root / "a/0001.txt").write_text("another caption")
    write_pictures(root / "a", 1, first=500)
    (root / "a/0003.png").unlink()
    changed = batches()
    assert changed != whole
    shutil.rmtree(root / "cache")
    assert batches() == changed


def test_what_a_checkpoint_holds_does_not_grow_with_the_samples(root: Path) -> None:
    sizes = []
    for count in (10, 200):
        write_pictures(root / "a", count)
        data = data_module(root, encoded=False)
        data.prepare_data()
        data.setup()
        next(iter(data.train_dataloader()))
        sizes.append(len(json.dumps(data.state_dict())))
        data.close()
    assert abs(sizes[1] - sizes[0]) < 20  # a few digits more in numbers
