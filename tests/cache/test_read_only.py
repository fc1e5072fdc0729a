"""Can a cache that may not be written to be read, and does writing say what to do?"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.index import snapshot as snapshot_module
from factory.cache.maintenance.compaction import compact
from factory.cache.store import TensorStore
from factory.errors import AccessDeniedError
from factory.storage import LocalStorage, MemoryStorage
from tests.cache.conftest import RECIPE
from tests.scenarios.bad_input.making import forbidding
from tests.support.stores import drop, verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]

ROWS = 30


@dataclass(frozen=True)
class Closing(MemoryStorage):
    """A remote storage that takes so many writes, and then no more."""

    left: list[int] = field(default_factory=list, compare=False)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write while that is allowed."""
        if self.left and self.left[0] <= 0:
            raise AccessDeniedError(f"cannot write {key}: the account may only read now")
        if self.left:
            self.left[0] -= 1
        super().write(key, data)


@pytest.fixture
def read_only(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TensorStore]:
    """A store with rows, more than are merged at each refresh, in a folder of others."""
    monkeypatch.setattr(snapshot_module, "SMALL", 10)
    storage = LocalStorage(root=str(tmp_path))
    with TensorStore(storage, "cache").writer(recipe=RECIPE) as writer:
        writer.add(keys_of(ROWS), {"field": rows_of(ROWS)})
    folders = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    for folder in (tmp_path / "cache", *folders):
        folder.chmod(0o555)
    with forbidding():
        yield TensorStore(storage, "cache")
    for folder in (tmp_path / "cache", *folders):
        folder.chmod(0o755)


def test_rows_are_read(
    read_only: TensorStore, keys_of: MakeKeys, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        got = read_only.gather(keys_of(ROWS))["field"]
    assert got[:, 0].tolist() == list(range(ROWS))
    assert verify(read_only) == []
    assert "kept in this process's memory" in caplog.text
    assert "permission denied" in caplog.text


def test_what_would_write_says_who_may_not(
    read_only: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    for work in (lambda: drop(read_only, keys_of(1)), lambda: compact(read_only)):
        with pytest.raises(AccessDeniedError, match="permission denied; see who may with: ls -ld"):
            work()
    writer = read_only.writer(recipe=RECIPE)
    writer.add(keys_of(1, start=99), {"field": rows_of(1)})
    with pytest.raises(AccessDeniedError, match="permission denied") as raised:
        writer.close()
    assert "give cache.storage a place that can be written to" in raised.value.__notes__[0]
    assert read_only.contains(keys_of(ROWS)).all()


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_a_remote_that_turns_read_only_keeps_what_was_published(
    keys_of: MakeKeys, rows_of: Make, allowed: int
) -> None:
    storage = Closing(name=f"closing-{allowed}")
    store = TensorStore(storage, "cache", shard_mb=1 / 16)  # a shard holds 256 rows
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(256), {"field": rows_of(256)})
        # A shard and its piece of the index are two writes.
        storage.left.append(allowed)
        with pytest.raises(AccessDeniedError, match="may only read now") as raised:
            writer.add(keys_of(512, start=256), {"field": rows_of(512, start=256)})
    assert "rows published before stay" in raised.value.__notes__[0]
    storage.left.clear()
    published = 256 * (1 + allowed // 2)
    assert store.contains(keys_of(768)).sum() == published
    assert store.gather(keys_of(published))["field"][:, 0].tolist() == list(range(published))
    assert verify(store) == []
