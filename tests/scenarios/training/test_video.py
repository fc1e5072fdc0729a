"""Clips and pictures in one mixture, through Lightning; what is encoded stays encoded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from factory import (
    Batch,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    VideoBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.storage.local import LocalStorage
from tests.scenarios.training.building import Watching, trainer
from tests.support.clips import read_numbers, shows, write_clips
from tests.support.pictures import colour, write_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "p", 8)
    write_clips(tmp_path / "v", 6, 12, first=100)
    return tmp_path


def mixed(root: Path, *, encoded: bool = True, **settings: Any) -> FactoryDataModule:
    """Return pictures and clips of 4 frames in one mixture; `settings` go to the clips."""
    storage = LocalStorage(str(root))
    place = Workspace(storage, scratch_dir=str(root / "scratch"))
    shared: dict[str, Any] = {
        "storage": storage,
        "caption": TextFileCaptions(),
        "resolution": 64,
        "alignment": 16,
    }
    backends: list[Any] = [
        ImageBackend(name="pictures", prefix="p", **shared),
        VideoBackend(name="clips", prefix="v", **{"frames": 4, **shared, **settings}),
    ]
    if encoded:
        backends += [
            ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()),
            TextEmbedBackend(name="text", cache=place, encoder=HashedText()),
        ]
    return FactoryDataModule(backends, batch_size=2, seed=7, cache=place)


def frames_of(batch: Batch, n: int) -> torch.Tensor:
    """Return the pictures of one sample of a batch, [F, H, W, 3]; a still one has F = 1."""
    if batch.pixels is not None:
        pixels = batch.pixels[n]
        return pixels if pixels.ndim == 4 else pixels[None]
    assert batch.latents is not None
    latents = batch.latents[n]
    return BlockDCT().decode(latents if latents.ndim == 4 else latents[None])


@pytest.mark.parametrize("encoded", [True, False])
def test_clips_and_pictures_train_in_one_mixture(root: Path, encoded: bool) -> None:
    data, model = mixed(root, encoded=encoded), Watching()
    trainer(root, max_epochs=1).fit(model, datamodule=data)
    assert {batch.backend for batch in model.batches} == {"pictures", "clips"}
    for batch in model.batches:
        is_clip = batch.backend == "clips"
        assert batch.bucket.endswith("@4") == is_clip
        given = batch.latents if encoded else batch.pixels
        assert given is not None
        assert given.ndim == (5 if is_clip else 4)
        for n, (key, caption) in enumerate(zip(batch.keys, batch.captions, strict=True)):
            number, frames = int(Path(key).stem), frames_of(batch, n)
            assert caption == f"{'clip' if is_clip else 'picture'} {number}"
            if is_clip:
                assert shows(frames.numpy(), number)
                assert read_numbers(frames.numpy()) == [4, 5, 6, 7]
            else:
                assert (frames[0, 0, 0].int() - torch.tensor(colour(number))).abs().max() <= 3
    seen = {key for batch in model.batches for key in batch.keys}
    assert len(seen) == 8 + 6
    data.close()


def counts(data: FactoryDataModule) -> dict[str, dict[str, Any]]:
    """Make a data module ready and return what each stage did."""
    data.prepare_data()
    data.setup()
    data.close()
    return {stage.name: stage.counts for stage in data.registry.telemetry.stages}


def test_the_second_start_encodes_nothing_and_other_frames_anew(root: Path) -> None:
    first = counts(mixed(root))
    assert first["encode clips"]["encoded"] == 6
    second = counts(mixed(root))
    assert second["scan clips"]["changes"] == "6 unchanged"
    assert second["encode clips"]["encoded"] == 0
    assert second["encode pictures"]["encoded"] == 0
    changed = counts(mixed(root, frame_interval=2))
    assert changed["scan clips"]["changes"] == "6 unchanged"
    assert changed["encode clips"]["encoded"] == 6
    assert changed["encode pictures"]["encoded"] == 0
    assert counts(mixed(root))["encode clips"]["encoded"] == 0
