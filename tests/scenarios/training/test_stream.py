"""A stream in a mixture with stored pictures, through Lightning, stopped and continued."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import (
    Batch,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import ResumeError, TableError
from factory.lightning.loaders import TrainLoader
from factory.lightning.position import Position
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.sampling.rank_shares import RankLayout
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import Watching, trainer
from tests.support.pictures import colour, write_pictures
from tests.support.streams import stream, write_shards

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    write_pictures(folder / "p", 8)
    write_shards(folder / "shards", 4, 12)
    return folder


@pytest.fixture
def mixed(root: Path) -> Iterator[Any]:
    """Build stored pictures and a stream in one mixture; `settings` go to the stream."""
    made: list[FactoryDataModule] = []

    def build(*, encoded: bool = False, stored: bool = True, **settings: Any) -> FactoryDataModule:
        storage = LocalStorage(str(root))
        place = Workspace(storage, scratch_dir=str(root / "scratch"))
        shared: dict[str, Any] = {"resolution": 64, "alignment": 16}
        module = {k: settings.pop(k) for k in ("prefetch", "seed") if k in settings}
        backends: list[Any] = [stream(str(root / "shards"), **settings)]
        if stored:
            backends.append(ImageBackend(
                name="stored", storage=storage, prefix="p", caption=TextFileCaptions(), **shared,
            ))  # fmt: skip
        if encoded:
            backends += [
                ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()),
                TextEmbedBackend(name="text", cache=place, encoder=HashedText()),
            ]
        made.append(FactoryDataModule(
            backends, batch_size=4, cache=place, **{"seed": 7, **module}
        ))  # fmt: skip
        return made[-1]

    yield build
    for data in made:
        data.close()


def fit(data: FactoryDataModule, root: Path, steps: int, **more: Any) -> list[Batch]:
    model = Watching()
    checkpoint = more.pop("ckpt_path", None)
    trainer(root, max_steps=steps, **more).fit(model, datamodule=data, ckpt_path=checkpoint)
    return model.batches


def seen(batches: list[Batch]) -> list[tuple[Any, ...]]:
    return [
        (b.epoch, b.step, b.backend, b.bucket, tuple(b.keys), tuple(b.captions)) for b in batches
    ]


def number(batch: Batch, place: int) -> int:
    """Return the number of the picture that a sample's caption tells."""
    return int(batch.captions[place].removeprefix("picture "))


def test_a_stream_and_stored_pictures_in_one_mixture(mixed: Any, root: Path) -> None:
    batches = fit(mixed(), root, 12)
    assert {batch.backend for batch in batches} == {"big", "stored"}
    for batch in batches:
        width, height = map(int, batch.bucket.split("x"))
        assert batch.pixels is not None
        assert batch.pixels.shape == (4, height, width, 3)
        assert batch.target_size.tolist() == [[width, height]] * 4
        for place in range(4):
            assert tuple(batch.pixels[place, 8, 8].tolist()) == colour(number(batch, place))
    streamed = [batch for batch in batches if batch.backend == "big"]
    assert len({batch.bucket for batch in streamed}) > 1
    assert streamed[0].original_size.dtype == torch.int32


def test_encoders_are_asked_while_it_is_read(mixed: Any, root: Path) -> None:
    batches = fit(mixed(encoded=True), root, 6)
    shapes = {batch.backend: batch.latents.shape[1] for batch in batches}
    assert len(set(shapes.values())) == 1
    assert len(shapes) == 2
    streamed = next(batch for batch in batches if batch.backend == "big")
    assert streamed.pixels is None
    assert streamed.text["embeds"].shape[0] == 4


@pytest.mark.parametrize("stop", [3, 10])
def test_a_stopped_run_goes_on_exactly(mixed: Any, root: Path, tmp_path: Path, stop: int) -> None:
    whole = fit(mixed(), tmp_path, 16)
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=stop, save_top_k=-1)
    first = fit(mixed(), tmp_path, stop, callbacks=[saving], enable_checkpointing=True)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    data = mixed()
    rest = fit(data, tmp_path, 16, ckpt_path=str(checkpoint))
    assert seen(first) + seen(rest) == seen(whole)
    for ours, theirs in zip(rest, whole[stop:], strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)


def test_epochs_cut_short_by_the_trainer(mixed: Any, root: Path, tmp_path: Path) -> None:
    whole = fit(mixed(stored=False), root, 8)
    cut = fit(mixed(stored=False), root, 8, limit_train_batches=3)
    assert [batch.keys for batch in cut] == [batch.keys for batch in whole]
    assert [batch.epoch for batch in cut] == [0, 0, 0, 1, 1, 1, 2, 2]
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=5, save_top_k=-1)
    fit(
        mixed(stored=False), root, 5,
        limit_train_batches=3, callbacks=[saving], enable_checkpointing=True,
    )  # fmt: skip
    (checkpoint,) = tmp_path.glob("*.ckpt")
    rest = fit(mixed(stored=False), root, 8, limit_train_batches=3, ckpt_path=str(checkpoint))
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[5:]]


def test_threads_and_their_number_change_nothing(mixed: Any, root: Path) -> None:
    inline = fit(mixed(prefetch=Prefetch(mode="inline")), root, 14)
    threads = fit(mixed(prefetch=Prefetch(batches=6, workers=4)), root, 14)
    assert seen(inline) == seen(threads)


def test_accumulation_and_ranks_share_one_order(mixed: Any, root: Path) -> None:
    whole = fit(mixed(stored=False), root, 6)
    halves = fit(mixed(stored=False), root, 6, accumulate_grad_batches=2)
    joined = [a.keys + b.keys for a, b in zip(halves[::2], halves[1::2], strict=True)]
    assert joined == [batch.keys for batch in whole]


def test_ranks_take_their_shares_of_the_same_batches(mixed: Any, root: Path) -> None:
    whole = fit(mixed(), root, 6)
    shares = []
    for rank in range(2):
        data = mixed()
        data.prepare_data()
        data.setup()
        layout = RankLayout(rank, 2, 1)
        loader = TrainLoader(data.plan, data._collate(), Prefetch(), layout, Position())
        batches = iter(loader)
        shares.append([next(batches) for _ in range(6)])
        loader.close()
    for batch, first, second in zip(whole, *shares, strict=True):
        assert first.keys + second.keys == batch.keys
        assert first.bucket == second.bucket == batch.bucket
        assert torch.equal(torch.cat([first.pixels, second.pixels]), batch.pixels)


def test_a_stream_alone_says_its_length(mixed: Any) -> None:
    data = mixed(stored=False, samples=30, repeats=1)
    data.prepare_data()
    data.setup()
    assert data.plan.steps(0) == 14  # 30 samples are 7 batches of 4, twice
    assert data.plan.at(1, 13).number == 13
    assert data.plan.at(0, 2).rows.tolist() == [8, 9, 10, 11]
    (account,) = data.plan.accounting(0)
    assert (account.batches, account.rows, account.duplicates) == (14, 56, 0)


def test_what_is_unusable_of_a_stream_is_a_share_of_a_pass(mixed: Any) -> None:
    data = mixed(samples=40)
    data.prepare_data()
    data.setup()
    assert data.quarantine._kept == {"stored": 8, "big": 40}


def test_other_settings_are_another_plan(mixed: Any) -> None:
    data = mixed(stored=False)
    data.prepare_data()
    data.setup()
    state = data.state_dict()
    other = mixed(stored=False, buffer=100)
    other.setup()
    with pytest.raises(ResumeError, match="identity"):
        other.load_state_dict(state)


def test_an_accepted_plan_goes_on_with_the_same_stream(mixed: Any, root: Path) -> None:
    data = mixed(stored=False)
    batches = fit(data, root, 4)
    state = data.state_dict()
    both = mixed()
    both.accept_changed_plan = True
    both.prepare_data()
    both.setup()
    both.load_state_dict(state)
    keys = [batch.keys for batch in both.train_dataloader() if batch.backend == "big"]
    longer = fit(mixed(stored=False), root, 4 + len(keys))
    assert [batch.keys for batch in longer] == [batch.keys for batch in batches] + keys


def test_a_missing_column_is_told_before_the_first_step(mixed: Any) -> None:
    from factory.catalog.captions.sources import ColumnCaptions

    data = mixed(stored=False, caption=ColumnCaptions(("captoin",)))
    with pytest.raises(TableError, match=r"did you mean 'caption'\?"):
        data.setup()
