"""Runs that encode while they train: the same samples, crops that change, nothing lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factory import (
    Batch,
    ConditioningBackend,
    Crop,
    EvalBackend,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.backends.embeddings import EmbedBackend
from factory.catalog.captions.sources import FilenameCaptions, TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import ConfigError, StorageError
from factory.reports.explain.samples import samples_of
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import Watching, trainer
from tests.support.pictures import colour, write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning",
    "ignore:The '.*_dataloader' does not have many workers",
)

MODES = ["precompute", "on_demand", "transient"]
# All channels: decoding gives the very pixels.
EXACT = BlockDCT(channels=192, dtype="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders to train on and one to validate on; nothing writes there."""
    root = tmp_path_factory.mktemp("folders")
    write_pictures(root / "a", 13)
    write_pictures(root / "b", 9, first=100)
    write_pictures(root / "held", 5, first=200)
    return root


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in which each column, and each row, says where it stands; pairs of them."""
    root = tmp_path_factory.mktemp("ramps")
    across = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 64, axis=0)
    ramp = np.concatenate([across, across, across], axis=2)
    for folder in ("src", "cond"):
        (root / folder).mkdir()
        for n in range(6):
            Image.fromarray(ramp + np.uint8(n)).save(root / folder / f"{n:04d}.png")
    return root


def place(root: Path, **made: Any) -> Workspace:
    return Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"), **made)


def data_of(
    folders: Path, root: Path, mode: str = "precompute", text_mode: str = "precompute", **made: Any
) -> FactoryDataModule:
    """Return a data module on `folders` whose cache is in another folder."""
    storage = LocalStorage(str(folders))
    shared: dict[str, Any] = {
        "storage": storage, "resolution": 64, "alignment": 16,
        "caption": made.pop("caption", TextFileCaptions()),
    }  # fmt: skip
    backends: list[Any] = [
        ImageBackend(name="a", prefix="a", **shared, **made.pop("a", {})),
        ImageBackend(name="b", prefix="b", **shared),
        EvalBackend(name="held", prefix="held", **shared),
        ImageEmbedBackend(name="latents", cache=place(root), encoder=BlockDCT(), encode_mode=mode),
        TextEmbedBackend(
            name="text", cache=place(root), encoder=HashedText(), encode_mode=text_mode,
            **made.pop("text", {}),
        ),
    ]  # fmt: skip
    return FactoryDataModule(backends, cache=place(root), batch_size=4, seed=7, **made)


def ready(data: FactoryDataModule) -> FactoryDataModule:
    data.prepare_data()
    data.setup()
    return data


def check(batch: Batch) -> None:
    """See that latents and captions are those of the samples named."""
    assert batch.latents is not None
    decoded = BlockDCT().decode(batch.latents)
    for key, picture in zip(batch.keys, decoded, strict=True):
        wanted = torch.tensor(colour(int(Path(key).stem)))
        assert (picture[8, 8].int() - wanted).abs().max() <= 2
    for name, field in HashedText().encode(batch.captions).items():
        assert torch.equal(batch.text[name], field)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text_mode", MODES)
def test_every_mode_gives_the_same_batches(
    folders: Path, tmp_path: Path, mode: str, text_mode: str
) -> None:
    caption = TextFileCaptions(dropout=0.3)
    data = ready(data_of(folders, tmp_path, mode, text_mode, caption=caption))
    wanted = ready(data_of(folders, tmp_path / "other", caption=caption))
    dropped = 0
    for batch, other in zip(data.train_dataloader(), wanted.train_dataloader(), strict=True):
        check(batch)
        assert batch.keys == other.keys
        assert batch.captions == other.captions
        assert torch.equal(batch.crop_top_left, other.crop_top_left)
        dropped += batch.captions.count("")
    assert dropped
    for batch in data.val_dataloader():
        check(batch)
    data.close()
    wanted.close()


def test_a_dataset_may_have_a_mode_of_its_own(folders: Path, tmp_path: Path) -> None:
    of_a = {"encode_mode": "transient", "encode_text_mode": "on_demand"}
    data = ready(data_of(folders, tmp_path, a=of_a))
    counts = {stage.name: stage.counts for stage in data.registry.telemetry.stages}
    assert "encode a" not in counts
    assert counts["encode b"]["encoded"] == 9
    assert counts["encode text"]["encoded"] == 9 + 5 + 1
    encoded = {"a": 0, "b": 0}
    for batch in data.train_dataloader():
        check(batch)
        encoded[batch.backend] += batch.encoded
    # 13 pictures and the repeats that fill their batches; and each caption once.
    assert encoded["a"] >= 26
    assert encoded["b"] == 0
    assert list(data.encoded.lines()) == [f"a: {encoded['a']} rows encoded while training"]
    data.close()


def stores(data: FactoryDataModule) -> dict[str, int]:
    """Return how many rows are published in each store."""
    found = {}
    for name, backend in data.registry.backends.items():
        if isinstance(backend, EmbedBackend):
            backend.store.refresh()
            records = backend.store.snapshot().records.values()
            found[name] = sum(record.rows for record in records)
    return found


def test_what_was_encoded_is_published_at_a_checkpoint_and_at_the_end(
    folders: Path, tmp_path: Path
) -> None:
    data = ready(data_of(folders, tmp_path, "on_demand", "on_demand"))
    assert stores(data) == {"latents": 0, "text": 1}
    batches = iter(data.train_dataloader())
    next(batches)
    assert stores(data) == {"latents": 0, "text": 1}
    data.state_dict()
    assert stores(data)["latents"] >= 3
    for _ in batches:
        pass
    data.close()
    after = ready(data_of(folders, tmp_path, "on_demand", "on_demand"))
    assert stores(after) == {"latents": 22, "text": 23}
    assert sum(batch.encoded for batch in after.train_dataloader()) == 0
    after.close()


def test_another_process_that_makes_batches_encodes_and_publishes(
    folders: Path, tmp_path: Path
) -> None:
    process = Prefetch(mode="process", workers=1)
    data = ready(data_of(folders, tmp_path, "on_demand", "on_demand", prefetch=process))
    batches = iter(data.train_dataloader())
    for batch in batches:
        check(batch)
        data.state_dict()
    assert data.encoded.total.encoded == 22 + 22
    data.pause()  # ends the process, which publishes the rest
    assert stores(data) == {"latents": 22, "text": 23}
    data.close()


def test_what_another_process_could_not_publish_is_said_at_the_next_checkpoint() -> None:
    from factory.runtime.batches.request import FlushRequest
    from factory.runtime.prefetch.executors import BatchFuture
    from factory.runtime.prefetch.loader_context import LoaderContext

    context = LoaderContext()
    context._flushing = BatchFuture(FlushRequest())
    context._flushing.fail(StorageError("the disk is full"))
    with pytest.raises(StorageError, match="the disk is full"):
        context.flush()
    context.flush()


def anew(ramps: Path, root: Path, *, validated: bool = True) -> FactoryDataModule:
    """Return a data module that cuts ramps at random, with a partner for each."""
    shared: dict[str, Any] = {
        "storage": LocalStorage(str(ramps)), "resolution": 64, "alignment": 16,
        "crop": Crop(aspect="square", style="random"), "caption": FilenameCaptions(),
    }  # fmt: skip
    backends = [
        ImageBackend(name="src", prefix="src", **shared),
        ConditioningBackend(name="cond", prefix="cond", source="src", storage=shared["storage"]),
        ImageEmbedBackend(
            name="latents", cache=place(root), encoder=EXACT, encode_mode="each_epoch"
        ),
    ]
    if validated:
        backends.append(EvalBackend(name="held", prefix="src", **shared))
    return FactoryDataModule(backends, cache=place(root), batch_size=3, seed=7)


def cuts_of(batches: Iterator[Batch]) -> dict[str, tuple[int, int]]:
    """Return where each sample was cut, once it is seen that its latent was cut there."""
    found = {}
    for batch in batches:
        assert batch.latents is not None
        assert torch.equal(batch.latents, batch.conditioning["cond"])
        for key, corner, picture in zip(
            batch.keys, batch.crop_top_left.tolist(), EXACT.decode(batch.latents), strict=True
        ):
            number = int(Path(key).stem)
            # The resized ramp has the picture's own height, 64 px: a pixel is a column.
            assert abs(int(picture[0, 0, 0]) - corner[1] - number) <= 1
            found[key] = (corner[0], corner[1])
    return found


def test_cuts_are_drawn_anew_in_each_epoch_and_told(ramps: Path, tmp_path: Path) -> None:
    data = ready(anew(ramps, tmp_path))
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(3):
        epochs.append(cuts_of(iter(loader)))
        data.end_epoch(epoch, data.plan.steps(epoch))
    assert len(epochs[0]) == 6
    for key in epochs[0]:
        assert len({crops[key] for crops in epochs}) > 1
    for epoch, crops in enumerate(epochs):  # and whoever asks later is told the same
        told = samples_of(np.arange(6), data.sources["src"], seed=7, epoch=epoch)
        assert {sample.key: sample.crop for sample in told} == crops
    assert [batch.crop_top_left.tolist() for batch in data.val_dataloader()] == [
        batch.crop_top_left.tolist() for batch in data.val_dataloader()
    ]
    # The same seed in another run: the same cuts, whichever epoch is begun with.
    data.close()
    other = ready(anew(ramps, tmp_path / "other"))
    other._position.move(2, 0)
    assert cuts_of(iter(other.train_dataloader())) == epochs[2]
    other.close()


def test_latents_of_past_epochs_are_forgotten_and_no_others(ramps: Path, tmp_path: Path) -> None:
    data = ready(anew(ramps, tmp_path))
    assert stores(data) == {"latents": 6}  # those of validation, encoded once
    loader = data.train_dataloader()
    epoch = iter(loader)
    taken = [next(epoch), next(epoch)]
    data.state_dict()
    assert stores(data) == {"latents": 18}
    taken += epoch
    assert len(taken) == data.plan.steps(0)
    assert stores(data) == {"latents": 6}
    epoch = iter(loader)
    taken = [next(epoch), next(epoch)]
    data.close()
    # The second epoch's are kept for a run that goes on in it.
    again = ready(anew(ramps, tmp_path))
    assert stores(again) == {"latents": 18}
    again._position.move(1, 0)
    assert sum(batch.encoded for batch in again.train_dataloader()) == 0
    again.close()


def test_a_run_resumed_in_mid_epoch_has_the_cuts_it_would_have_had(
    ramps: Path, tmp_path: Path
) -> None:
    whole = Watching()
    data = anew(ramps, tmp_path / "whole", validated=False)
    trainer(tmp_path, max_steps=5).fit(whole, datamodule=data)
    data.close()
    first = anew(ramps, tmp_path / "stopped", validated=False)
    saving = trainer(tmp_path, max_steps=3)
    saving.fit(Watching(), datamodule=first)
    saving.save_checkpoint(tmp_path / "at.ckpt")
    first.close()
    rest = Watching()
    second = anew(ramps, tmp_path / "stopped", validated=False)
    trainer(tmp_path, max_steps=5).fit(rest, datamodule=second, ckpt_path=str(tmp_path / "at.ckpt"))
    second.close()
    assert [batch.keys for batch in rest.batches] == [batch.keys for batch in whole.batches[3:]]
    for batch, wanted in zip(rest.batches, whole.batches[3:], strict=True):
        assert torch.equal(batch.crop_top_left, wanted.crop_top_left)
        assert batch.latents is not None
        assert wanted.latents is not None
        assert torch.equal(batch.latents, wanted.latents)


def test_pixels_may_be_cut_anew_in_each_epoch_too(ramps: Path, tmp_path: Path) -> None:
    backend = ImageBackend(
        name="src", prefix="src", storage=LocalStorage(str(ramps)), resolution=64, alignment=16,
        crop=Crop(aspect="square", style="random"), caption=FilenameCaptions(),
        encode_mode="each_epoch",
    )  # fmt: skip
    data = ready(FactoryDataModule([backend], cache=place(tmp_path), batch_size=3, seed=7))
    loader = data.train_dataloader()
    seen: list[dict[str, int]] = []
    for _ in range(2):
        seen.append({})
        for batch in loader:
            assert batch.pixels is not None
            for key, corner, picture in zip(
                batch.keys, batch.crop_top_left.tolist(), batch.pixels, strict=True
            ):
                assert int(picture[0, 0, 0]) == corner[1] + int(Path(key).stem)
                seen[-1][key] = corner[1]
    assert seen[0] != seen[1]
    data.close()


@pytest.mark.parametrize("mode", ["on_demand", "transient"])
def test_an_unreadable_partner_is_replaced_with_its_sample(tmp_path: Path, mode: str) -> None:
    for folder in ("src", "cond"):
        write_pictures(tmp_path / folder, 6, sizes=((96, 64),))
    shared: dict[str, Any] = {
        "storage": LocalStorage(str(tmp_path)), "resolution": 64, "alignment": 16,
        "encode_mode": mode,
    }  # fmt: skip
    backends = [
        ImageBackend(name="src", prefix="src", **shared),
        ConditioningBackend(
            name="cond", prefix="cond", source="src", storage=shared["storage"], encode_mode=mode
        ),
        ImageEmbedBackend(name="latents", cache=place(tmp_path), encoder=BlockDCT()),
    ]
    data = ready(FactoryDataModule(backends, cache=place(tmp_path), batch_size=3, seed=7))
    (tmp_path / "cond/0002.png").write_bytes(b"junk")
    seen = []
    for batch in data.train_dataloader():
        assert batch.latents is not None
        assert torch.equal(batch.latents, batch.conditioning["cond"])
        assert "src/0002.png" not in batch.keys
        seen += [(each.key, each.reason.partition(":")[0]) for each in batch.replaced]
    assert seen == [("src/0002.png", "its partner cond/0002.png in cond")]
    data.close()


def test_a_random_aspect_keeps_its_bucket(ramps: Path, tmp_path: Path) -> None:
    crop = Crop(aspect="random", style="random", aspect_buckets=(0.75, 1.0, 1.5))
    backend = ImageBackend(
        name="src", prefix="src", storage=LocalStorage(str(ramps)), resolution=64, alignment=16,
        crop=crop, caption=FilenameCaptions(), encode_mode="each_epoch",
    )  # fmt: skip
    data = ready(FactoryDataModule([backend], cache=place(tmp_path), batch_size=1, seed=7))
    catalog, rows = data.sources["src"].catalog, np.arange(6)
    first, later = catalog.crops(rows), catalog.crops(rows, 5)
    assert np.array_equal(first.target, later.target)
    assert len(np.unique(first.target[:, 0])) > 1
    assert not np.array_equal(first.offset, later.offset)
    data.close()


def test_prompts_are_encoded_with_the_captions_and_can_be_asked(
    folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n")
    own = {"prompts": ["a fox", "a cat"], "prompts_file": str(tmp_path / "prompts.txt")}
    data = ready(data_of(folders, tmp_path, text=own))
    assert stores(data)["text"] == 13 + 9 + 5 + 1 + 3
    prompts = ["a dog", "", "a fox", "a cat"]
    for name, field in HashedText().encode(prompts).items():
        assert torch.equal(data.text_embeds(prompts)[name], field)
    assert not len(data.registry.text_embeds["text"].write_buffer)
    assert data.text_embeds(["new"])["embeds"].shape[0] == 1
    data.close()
    again = data_of(folders, tmp_path)
    assert again.registry.text_embeds["text"].gather(["new"])
    again.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no file of prompts '.*'; correct prompts_file"), (b"\xff\xfe\xff", "as UTF-8 text")],
)
def test_a_file_of_prompts_that_cannot_be_read_is_said(
    folders: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    data = data_of(folders, tmp_path, text={"prompts_file": str(file)})
    with pytest.raises(Exception, match=said):
        data.prepare_data()
    data.close()


def test_texts_cannot_be_asked_without_an_encoder(ramps: Path, tmp_path: Path) -> None:
    data = anew(ramps, tmp_path)
    with pytest.raises(ConfigError, match="there is no text_embeds backend to encode texts with"):
        data.text_embeds(["a cat"])
    data.close()
