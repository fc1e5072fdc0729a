"""Does training get the same batches whatever lies between the cache and this machine?"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import FactoryDataModule, Workspace
from factory.runtime.prefetch.batch_fetcher import Prefetch
from factory.runtime.prefetch.cache_prefetch import cache_prefetcher
from tests.cache.fetching_process import FarStorage
from tests.scenarios.training.building import data_module, write_folders


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures, and a cache that is filled."""
    root = tmp_path_factory.mktemp("tiers")
    write_folders(root)
    data = data_module(root)
    data.prepare_data()
    data.close()
    return root


def far_module(root: Path, scratch: Path, mode: str, **limits: Any) -> FactoryDataModule:
    """Return the module with its cache on a server, and other limits."""
    storage = FarStorage(str(root), log=str(scratch / "log"))
    place = Workspace(storage, scratch_dir=str(scratch / "shards"), **limits)
    data = data_module(root, prefetch=Prefetch(mode))
    for backend in data.registry.backends.values():
        if hasattr(backend, "cache"):
            backend.cache = place
    data.registry.cache = place
    return data


def batches(data: FactoryDataModule) -> list[Any]:
    data.prepare_data()
    data.setup()
    try:
        return list(data.train_dataloader())
    finally:
        data.close()


@pytest.mark.parametrize(
    ("mode", "limits"),
    [
        ("inline", {}),
        ("thread", {"disk_gb": 1e-4}),
        ("thread", {"disk_gb": 0, "ahead_mb": 0}),
        ("process", {"ram_gb": 0.01, "disk_gb": 0, "preload": True}),
    ],
)
def test_batches_are_the_same(root: Path, tmp_path: Path, mode: str, limits: Any) -> None:
    if "ram_gb" in limits:
        limits = {**limits, "ram_dir": str(tmp_path / "ram")}
    ours = batches(far_module(root, tmp_path, mode, **limits))
    theirs = batches(data_module(root, prefetch=Prefetch("inline")))
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys == their.keys
        assert torch.equal(our.latents, their.latents)
        assert torch.equal(our.text["embeds"], their.text["embeds"])
    assert not list(tmp_path.glob("ram/*/*/*"))
    assert "fetch-ahead" not in [thread.name for thread in threading.enumerate()]


def test_nothing_is_fetched_ahead_where_all_is_local(root: Path) -> None:
    data = data_module(root)
    data.prepare_data()
    data.setup()
    assert cache_prefetcher(data.sources, data.plan, 1024) is None
    data.close()


def test_what_comes_ahead_is_what_batches_are_made_of(root: Path, tmp_path: Path) -> None:
    far = far_module(root, tmp_path, "inline")
    far.prepare_data()
    far.setup()
    loader = far.train_dataloader()
    ahead = loader._ahead
    assert ahead is not None
    first = iter(loader)
    next(first)
    if ahead._thread is not None:
        ahead._thread.join()
    log = tmp_path / "log"
    before = log.read_text()
    assert "tensors/latents/shards" in before
    assert len(list(first)) > 1
    assert log.read_text() == before
    assert not ahead.problems
    far.close()
