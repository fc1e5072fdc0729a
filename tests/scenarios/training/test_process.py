"""prefetch=process through Lightning: the same batches, from storages opened once more."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from factory import (
    Batch,
    ConfigError,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
    Workspace,
)
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.errors import CacheError, EmptyBackendError, FetchError, QuarantineError
from factory.registry.prepare import load
from factory.registry.reopen import ReopenSpec
from factory.runtime.batches.quarantine import QuarantineLimit
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.runtime.prefetch.worker.shared_buffers import SharedBufferPool
from factory.storage import S3Storage
from factory.storage.base import Storage
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.runtime.traces import left, traces
from tests.scenarios.training.building import (
    Recorder,
    Watching,
    data_module,
    trainer,
    write_folders,
)
from tests.storage.conftest import ACCESS_KEY, BUCKET, SECRET_KEY, make_bucket
from tests.support.pictures import write_pictures
from tests.support.streams import stream, write_shards

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:Be aware that when using `ckpt_path`",
)
PROCESS = Prefetch(mode="process")
INLINE = Prefetch(mode="inline")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folders(tmp_path)
    return tmp_path


def opener_of(data: FactoryDataModule) -> ReopenSpec:
    return data._reopen_spec()


def fit(data: FactoryDataModule, root: Path, model: Any, **settings: Any) -> Any:
    trainer(root, **settings).fit(model, datamodule=data)
    return model


def test_a_fit_with_validation_is_the_same(root: Path) -> None:
    models = {}
    for prefetch in (INLINE, PROCESS):
        data = data_module(root, prefetch=prefetch)
        before = traces()
        models[prefetch.mode] = fit(data, root, Recorder(), max_epochs=2)
        assert not left(before).keys() & {"threads", "children"}
        assert data.fetch_report.delivered == 2 * data.plan.steps(0)
        data.close()
    assert models["process"].seen == models["inline"].seen
    assert models["process"].validated == models["inline"].validated


class Killing(Recorder):
    """Ends the worker process, once."""

    def __init__(self, data: FactoryDataModule, at: int) -> None:
        """Store whose process it is, and the step."""
        super().__init__()
        self.data, self.at = data, at

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Record the batch."""
        if len(self.seen) == self.at:
            os.kill(self.data._context.worker.pid, signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def test_a_run_whose_process_was_killed_goes_on_exactly(root: Path, tmp_path: Path) -> None:
    whole = data_module(root, prefetch=INLINE)
    wanted = fit(whole, root, Recorder(), max_steps=9).seen
    whole.close()
    data = data_module(root, prefetch=Prefetch(mode="process", batches=1, workers=1))
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1)
    first, before = Killing(data, at=3), traces()
    with pytest.raises(FetchError, match="was killed by SIGKILL"):
        fit(data, root, first, max_steps=9, callbacks=[saving], enable_checkpointing=True)
    assert not left(before).keys() & {"threads", "children"}
    (checkpoint,) = tmp_path.glob("kept/*.ckpt")
    rest = Recorder()
    trainer(root, max_steps=9).fit(rest, datamodule=data, ckpt_path=str(checkpoint))
    data.close()
    assert first.seen + rest.seen == wanted


def test_streams_stay_here_and_change_nothing(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 8)
    write_shards(tmp_path / "shards", 4, 12)
    storage = LocalStorage(str(tmp_path))
    seen: dict[str, list[Any]] = {}
    for prefetch in (INLINE, PROCESS):
        stored = ImageBackend(
            name="stored", storage=storage, prefix="p", caption=TextFileCaptions(),
            resolution=64, alignment=16,
        )  # fmt: skip
        data = FactoryDataModule(
            [stream(str(tmp_path / "shards")), stored],
            batch_size=4, cache=Workspace(storage), prefetch=prefetch,
        )  # fmt: skip
        model = fit(data, tmp_path, Watching(), max_steps=12)
        seen[prefetch.mode] = [
            (b.backend, b.keys, b.captions, b.pixels.float().mean().item()) for b in model.batches
        ]
        assert data.streams["big"].rows_read > 0  # by this process: its position is known
        data.close()
    assert seen["process"] == seen["inline"]
    assert {entry[0] for entry in seen["process"]} == {"big", "stored"}


def test_too_many_unusable_samples_keep_their_error_and_end_the_process(root: Path) -> None:
    none = QuarantineLimit(share=0, at_least=0)
    data = data_module(root, encoded=False, prefetch=PROCESS, quarantine=none)
    data.prepare_data()
    (root / "a/0004.png").write_bytes(b"nothing")
    before = traces()
    with pytest.raises(QuarantineError, match=r"a/0004\.png: decode failed: not a pic") as caught:
        fit(data, root, Recorder(), max_epochs=1)
    assert any(
        note.startswith("while making the batch of epoch 0") for note in caught.value.__notes__
    )
    assert not left(before).keys() & {"threads", "children"}
    data.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Storage]:
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    make_bucket(f"http://{host}:{port}")
    yield S3Storage(BUCKET, endpoint_url=f"http://{host}:{port}", region="us-east-1")
    server.stop()


def test_an_object_store_that_was_used_here_is_used_there(
    bucket: S3Storage, tmp_path: Path
) -> None:
    for file in write_pictures(tmp_path / "p", 9):
        for each in (file, file.with_suffix(".txt")):
            bucket.write(f"p/{each.name}", each.read_bytes())
    place = Workspace(bucket, scratch_dir=str(tmp_path / "scratch" / "shards"))
    photos = ImageBackend(
        name="photos", storage=bucket, prefix="p", caption=TextFileCaptions(),
        resolution=64, alignment=16,
    )  # fmt: skip
    latents = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT())
    texts = TextEmbedBackend(name="text", cache=place, encoder=HashedText())
    made = {}
    for prefetch in (INLINE, PROCESS):
        data = FactoryDataModule(
            [photos, latents, texts], batch_size=3, cache=place, prefetch=prefetch
        )
        data.prepare_data()
        data.setup()
        made[prefetch.mode] = list(data.train_dataloader())
        data.close()
    for ours, theirs in zip(made["process"], made["inline"], strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.text["embeds"], theirs.text["embeds"])


def test_opening_once_more_lists_and_scans_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_module(root, encoded=False)
    data.prepare_data()
    data.setup()
    sent = pickle.dumps(opener_of(data))
    assert len(sent) < 20_000  # where it is, not what it is
    for name in ("listing", "objects"):
        monkeypatch.setattr(LocalStorage, name, lambda *_: pytest.fail("listed"))
    monkeypatch.setattr(ImageBackend, "scan", lambda *_: pytest.fail("scanned"))
    part = next(data.train_dataloader()._requests(0, 0))
    again = pickle.loads(sent)()
    ours, theirs = data._collate()(part), again(pickle.loads(pickle.dumps(part)))
    assert ours.keys == theirs.keys
    assert torch.equal(ours.pixels, theirs.pixels)
    again.close()
    data.close()


def test_rows_are_gathered_where_the_trainer_sees_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.runtime.batches.buffer_pool.SMALL", 1)  # as these are
    data = data_module(root)
    data.prepare_data()
    data.setup()
    memory, again = SharedBufferPool(), opener_of(data)()
    again.gather_in(memory)
    batch = again(next(data.train_dataloader()._requests(0, 0)))
    assert batch.latents is not None
    for tensor in (batch.latents, *batch.text.values()):
        assert memory.lend(tensor) is not None
    again.close()
    data.close()


def add_pictures(root: Path) -> None:
    write_pictures(root / "a", 2, first=50)


def change_a_caption(root: Path) -> None:
    (root / "a/0003.txt").write_text("another caption")


@pytest.mark.parametrize("change", [add_pictures, change_a_caption])
def test_a_catalog_that_was_published_since_is_refused(
    root: Path, change: Callable[[Path], None]
) -> None:
    data = data_module(root, encoded=False)
    data.prepare_data()
    data.setup()
    opener = opener_of(data)
    opener().close()
    change(root)
    other = data_module(root, encoded=False)
    other.prepare_data()
    with pytest.raises(CacheError, match=r"backend 'a': the catalog .*cache\.prefix.*=thread"):
        opener()
    for each in (data, other):
        each.close()


def test_cuts_that_were_published_since_are_refused(root: Path) -> None:
    """Of the same pictures and buckets, as where sizes come from a table that was mended."""
    data = data_module(root, encoded=False)
    data.prepare_data()
    data.setup()
    opener = opener_of(data)
    shelf = data.registry.cache.facts_store("a")
    facts = shelf.load()
    assert facts is not None
    doubled = {name: facts.table[name].to_numpy() * 2 for name in ("width", "height")}
    table = facts.table
    for name, values in doubled.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values))
    shelf.save(replace(facts, table=table))
    sources = load(data.registry, seed=data.seed)
    before, after = (each["a"].catalog.decisions for each in (data.sources, sources))
    assert before.shapes == after.shapes
    assert np.array_equal(before.order, after.order)
    with pytest.raises(CacheError, match=r"backend 'a': the catalog .*cache\.prefix.*=thread"):
        opener()
    data.close()


def test_a_catalog_that_is_gone_says_what_to_do(root: Path) -> None:
    data = data_module(root, encoded=False)
    data.prepare_data()
    data.setup()
    opener = opener_of(data)
    (root / "cache" / "catalog" / "a.parquet").unlink()
    with pytest.raises(EmptyBackendError) as caught:
        opener()
    assert "prefetch=thread" in caught.value.__notes__[0]
    data.close()


def test_memory_of_this_process_is_refused_at_once(tmp_path: Path) -> None:
    memory: Storage = MemoryStorage("photos")
    photos = ImageBackend(name="photos", storage=memory, prefix="p")
    for cache, problems in ((memory, 2), (LocalStorage(str(tmp_path)), 1)):
        with pytest.raises(ConfigError, match="no other process sees") as caught:
            FactoryDataModule([photos], cache=Workspace(cache), prefetch=PROCESS)
        assert len(caught.value.problems) == problems
        FactoryDataModule([photos], cache=Workspace(cache), prefetch=INLINE).close()
