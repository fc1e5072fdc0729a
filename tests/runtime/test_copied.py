"""A batch whose rows are only copied is the one that is made when everybody is asked."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory import ImageBackend, ImageEmbedBackend, TextEmbedBackend, Workspace
from factory.backends.encode_mode import EncodeMode
from factory.backends.prepared import PreparedBackend
from factory.cache.maintenance.compaction import compact
from factory.cache.maintenance.garbage import collect
from factory.cache.store import UnusableRowsError
from factory.catalog.captions.sources import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.registry.precompute import fill_captions, fill_pictures
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.collate import Collate
from factory.runtime.batches.request import BatchMetadata, BatchRequest, group_requests
from factory.sampling.plan import PlanStep
from factory.storage.local import LocalStorage
from tests.catalog.fakes import ENGINE
from tests.support.pictures import write_pictures

COUNT = 8


def warm(
    root: Path,
    mode: EncodeMode = EncodeMode.precompute,
    *,
    spoken: bool = True,
    damaged: str = "stop",
) -> PreparedBackend:
    """Return pictures of one shape with everything encoded, and its place looked up."""
    for path in write_pictures(root / "p", COUNT, sizes=((96, 64),)):
        path.with_suffix(".txt").write_text(f"picture {path.stem}")
    backend = ImageBackend(
        name="pics", prefix="p", storage=LocalStorage(str(root)), resolution=64, alignment=16,
        caption=TextFileCaptions(dropout=0.3),
    )  # fmt: skip
    cache = Workspace(
        LocalStorage(str(root / "cache")), scratch_dir=str(root / "scratch"), damaged=damaged
    )
    latents = ImageEmbedBackend(name="latents", cache=cache, encoder=BlockDCT(), write_batch_size=3)
    text = TextEmbedBackend(name="text", cache=cache, encoder=HashedText(), write_batch_size=3)
    source = PreparedBackend(
        backend, backend.catalog(backend.scan(None, ENGINE), 0), latents, text if spoken else None,
        encode_mode=mode,
    )  # fmt: skip
    fill_pictures(source, latents, ENGINE, "pics")
    fill_captions(text, [*text.own_texts(), *source.catalog.all_texts()], ENGINE)
    source.locate()
    return source


def requests(source: PreparedBackend, epoch: int = 1) -> list[BatchRequest]:
    """Return a part of training and one of validation, which is padded."""
    name = source.catalog.decisions.buckets[0].name
    steps = [
        PlanStep(epoch, n, n, source.name, name, np.array(rows), 0, 0, seed=3, slider_strength=0.5)
        for n, rows in enumerate(([6, 1, 3, 1], [0, 7, 2, 5]))
    ]
    valid = np.array([True, True, False])
    return [
        BatchRequest(steps[0], np.array([0, 2, 3])),
        BatchRequest(steps[1], np.array([1, 3, 3]), valid),
    ]


def content(batch: Batch) -> list[Any]:
    """Return what a batch holds, in values that can be compared."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype, value.tolist()
        if isinstance(value, dict):
            return [(name, plain(one)) for name, one in value.items()]
        return value

    return [(each.name, plain(getattr(batch, each.name))) for each in fields(batch)]


@pytest.mark.parametrize("mode", [EncodeMode.precompute, EncodeMode.on_demand])
@pytest.mark.parametrize("spoken", [True, False])
def test_a_batch_is_the_same_whether_it_is_copied_or_made(
    tmp_path: Path, mode: EncodeMode, spoken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = warm(tmp_path, mode, spoken=spoken)
    collate = Collate({source.name: source}, ENGINE, seed=3)
    made = [
        content(collate(request)) for request in requests(source)
    ]  # each alone: nothing is ready

    def refuse(*_: object) -> None:
        raise AssertionError("a batch that could be copied was made")

    monkeypatch.setattr(Collate, "_read", refuse)
    assert [content(collate(request)) for request in group_requests(requests(source))] == made


def test_batches_are_the_same_after_all_rows_were_moved_by_another_process(tmp_path: Path) -> None:
    source = warm(tmp_path)
    collate = Collate({source.name: source}, ENGINE, seed=3)
    wanted = [content(collate(request)) for request in requests(source)]
    described = list(group_requests(requests(source)))
    first = content(collate(described[0]))
    for embeds in (source.latents, source.text):
        assert embeds is not None
        other = embeds.cache.store(embeds.name)
        before = [record.name for record in other.snapshot().index.shards]
        assert compact(other).rows
        collect(other, min_age_s=0)
        assert not any(other.storage.exists(other.shard_files.key(name)) for name in before)
        embeds.store._open.keep_only(set())  # as if none had been opened before
    assert [first, content(collate(described[1]))] == wanted
    for epoch in range(1, 3):
        again = [content(collate(request)) for request in group_requests(requests(source, epoch))]
        assert again == [content(collate(request)) for request in requests(source, epoch)]
    for request in group_requests(requests(source)):  # captions are found where they lie now
        text = request.metadata(lambda rows: BatchMetadata.of(source, rows, seed=3, epoch=1)).text
        assert text is not None
        assert text.ready is not None


@pytest.mark.parametrize("damaged", ["stop", "rebuild"])
def test_captions_that_are_damaged_where_they_lay_are_no_others(
    tmp_path: Path, damaged: str
) -> None:
    source = warm(tmp_path, damaged=damaged)
    assert source.text is not None
    store = source.text.store
    wanted = source.read_text(source.catalog.own_captions(np.arange(COUNT)))["embeds"]
    paths = [store.shard_files.key(record.name) for record in store.snapshot().index.shards]
    store.close()
    for path in map(store.storage.local_path, paths):
        assert path is not None
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    collate = Collate({source.name: source}, ENGINE, seed=3)
    if damaged == "stop":
        with pytest.raises(UnusableRowsError, match="does not match its checksum"):
            [
                collate(request)
                for epoch in range(4)
                for request in group_requests(requests(source, epoch))
            ]
        return
    made = [
        collate(request)
        for epoch in range(4)
        for request in group_requests(requests(source, epoch))
    ]
    assert sum(batch.rebuilt for batch in made)
    for batch in made:
        for row, caption, embeds in zip(
            batch.rows, batch.captions, batch.text["embeds"], strict=True
        ):
            assert not caption or torch.equal(embeds, wanted[row])
