"""Shards written by WebDataset, scanned with their caption files and trained on."""

import io
import logging
from pathlib import Path

import pytest
from PIL import Image

from factory import FactoryDataModule, ImageBackend, Workspace
from factory.catalog.captions.sources import TextFileCaptions
from factory.config.build import build
from factory.config.compose import compose
from factory.storage import LocalStorage, TarStorage
from tests.scenarios.training.building import Recorder, trainer
from tests.support.pictures import SIZES, colour

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have a `val_dataloader`",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The number of training batches",
)


def write_shards(folder: Path, count: int) -> None:
    """Write numbered pictures with captions, 7 samples a shard."""
    from webdataset import ShardWriter

    folder.mkdir(parents=True)
    with ShardWriter(f"{folder}/shard-%06d.tar", maxcount=7, verbose=0) as shards:
        for number in range(count):
            file = io.BytesIO()
            Image.new("RGB", SIZES[number % 3], colour(number)).save(file, "PNG")
            shards.write(
                {
                    "__key__": f"{number:04d}",
                    "png": file.getvalue(),
                    "txt": f"picture {number}",
                    "json": {"number": number},
                }
            )


def check_samples(data: FactoryDataModule) -> set[str]:
    """Compare every picture with its caption and its key; return the keys."""
    seen = set()
    for batch in data.train_dataloader():
        for key, caption, picture in zip(batch.keys, batch.captions, batch.pixels, strict=True):
            number = int(Path(key).stem)
            assert Path(key).parent.name == f"shard-{number // 7:06d}.tar"
            assert caption == f"picture {number}"
            assert tuple(picture[0, 0].tolist()) == colour(number)
            seen.add(key)
    return seen


def test_shards_are_scanned_and_trained_on(tmp_path: Path) -> None:
    write_shards(tmp_path / "p", 24)
    folder = LocalStorage(str(tmp_path))
    pictures = ImageBackend(
        name="pictures",
        storage=TarStorage(folder, index=folder, index_prefix="cache/tar-index"),
        prefix="p",
        caption=TextFileCaptions(),
        resolution=64,
        alignment=16,
    )
    place = Workspace(folder, scratch_dir=str(tmp_path / "scratch"))
    data = FactoryDataModule([pictures], batch_size=4, seed=7, cache=place)
    model = Recorder()
    trainer(tmp_path, max_steps=2).fit(model, datamodule=data)
    assert len(model.seen) == 2
    trained = {key for *_, keys in model.seen for key in keys}
    assert len(trained | check_samples(data)) == 24  # the loader goes on where training stopped
    assert len(list((tmp_path / "cache" / "tar-index").iterdir())) == 4
    data.close()


def test_shards_are_named_in_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "root" / "p", 24)
    damaged = tmp_path / "root" / "p" / "shard-000002.tar"
    damaged.write_bytes(damaged.read_bytes()[:1500])
    option = "defaults: [base, backend@backends.pics: image, _self_, "
    option += "override /storage@backends.pics: webdataset]\n"
    option += "batch_size: 2\nresolution: 64\nalignment: 16\n"
    option += "backends: {pics: {prefix: p, storage: {shards: ['p/shard-{000000..000003}.tar']}}}\n"
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "mine.yaml").write_text(option)
    overrides = ["data=mine", "storage.root=root", "encoder/image=none", "encoder/text=none"]
    data = build(compose(overrides, config_dir=tmp_path / "mine"), overrides)
    with caplog.at_level(logging.WARNING):
        data.prepare_data()
    assert "left out of 4 shards: 1 truncated" in caplog.text
    data.setup()
    assert 10 <= len(check_samples(data)) <= 17
    assert (tmp_path / "root" / "cache" / "tar-index").is_dir()
    data.close()
