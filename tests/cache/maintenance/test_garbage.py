"""Garbage is found however the index lies, and nothing is taken for it that is none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.index import snapshot as snapshot_module
from factory.cache.index.sorted_run import merged
from factory.cache.maintenance import live_rows as counting_module
from factory.cache.maintenance.garbage import collect, garbage
from factory.cache.maintenance.live_rows import counted, live_rows
from factory.cache.store import TensorStore
from factory.storage import LocalStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import drop

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


@pytest.fixture
def layered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep several tables, none merged with another, and look at few keys at once."""
    monkeypatch.setattr(snapshot_module, "SMALL", 0)
    monkeypatch.setattr(snapshot_module, "_RATIO", 0)
    monkeypatch.setattr(counting_module, "CHUNK", 7)
    return


@pytest.mark.usefixtures("layered")
def test_rows_are_counted_as_if_all_tables_were_merged(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    for start, count in ((0, 50), (20, 30), (40, 30), (0, 5)):
        write(store, keys_of(count, start=start), rows_of(count))
    drop(store, keys_of(3, start=60))
    store.refresh()
    index = store.snapshot().index
    assert len(index.tables) > 2
    one = merged(index.tables)
    expected = {origin.segment: origin.rows for origin in one.origins}
    assert {origin.segment: rows for origin, rows in counted(index)} == expected
    assert sum(live_rows(store).values()) == 70 - 3


@pytest.mark.parametrize("ratio", [0, 4])
def test_what_is_superseded_goes_however_the_index_lies(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch, ratio: int
) -> None:
    monkeypatch.setattr(snapshot_module, "SMALL", 0)
    monkeypatch.setattr(snapshot_module, "_RATIO", ratio)
    store = TensorStore(LocalStorage(root=str(tmp_path)), "cache", shard_mb=1 / 16)
    for start in (0, 0, 100):
        write(store, keys_of(20, start=start), rows_of(20, start=start))
    (one,) = collect(store, min_age_s=0)
    assert one.reason.startswith("holds no row that counts")
    assert store.contains(keys_of(20)).all()
    assert garbage(store) == []


def test_a_shard_that_is_lost_is_no_garbage(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    write(store, keys_of(20), rows_of(20))
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    data = path.read_bytes()
    path.unlink()
    assert collect(store, min_age_s=0) == []
    path.write_bytes(data)  # the disk is mounted again
    store.refresh()
    assert store.contains(keys_of(20)).all()
