"""Are shards of a remote storage fetched once, whole, and mapped from their copy?"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.maintenance.verify import drop_shard
from factory.cache.store import TensorStore
from factory.cache.tiers.local_copy import beside
from factory.errors import CacheError, StorageUnavailableError
from factory.storage import MemoryStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Remote(MemoryStorage):
    """A storage that counts what is read from it."""

    reads: list[str] = field(default_factory=list, compare=False)
    down: list[bool] = field(default_factory=list, compare=False)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Note the key."""
        if self.down:
            raise StorageUnavailableError("the server is down")
        self.reads.append(key)
        return super().read(key, start, length)


def flip(path: Path) -> None:
    """Turn a bit of a file's last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 4]))


def head_is_there(path: Path) -> bool:
    """Tell whether a copy counts its first block as fetched."""
    return beside(path).read_bytes()[24] == 1


@pytest.fixture
def remote(request: pytest.FixtureRequest) -> Remote:
    """An empty remote storage."""
    return Remote(name=f"remote-{request.node.name}".replace("/", "-"))


def filled(remote: Remote, keys_of: MakeKeys, rows_of: Make, local_dir: Path | None) -> TensorStore:
    """Return a store of 3 shards with 256 rows each."""
    directory = None if local_dir is None else str(local_dir / "copies")
    store = TensorStore(remote, "cache", local_dir=directory, shard_mb=1 / 16)
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(768), {"field": rows_of(768)})
    return store


@pytest.mark.parametrize("local", [True, False])
def test_shards_are_fetched_once(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path, local: bool
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path if local else None)
    for _ in range(2):
        assert store.gather(keys_of(768))["field"][:, 0].tolist() == list(range(768))
    assert len(remote.reads) == len(set(remote.reads)) == 6
    store.close()
    assert store.gather(keys_of(768))["field"][:, 0].tolist() == list(range(768))
    assert len(remote.reads) == (6 if local else 12)


def test_only_the_shards_asked_for_are_fetched(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.gather(keys_of(10))
    assert sum("shards" in key for key in remote.reads) == 1


@pytest.mark.parametrize("local", [True, False])
def test_threads_that_want_one_shard_fetch_it_once(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path, local: bool
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path if local else None)
    start = threading.Barrier(8)
    got: list[list[int]] = []

    def gather() -> None:
        start.wait()
        got.append(store.gather(keys_of(768))["field"][:, 0].tolist())

    threads = [threading.Thread(target=gather) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [list(range(768))] * 8
    assert len(remote.reads) == 6


def test_a_copy_of_the_wrong_size_is_fetched_again(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.gather(keys_of(768))
    store.close()
    for path in (tmp_path / "copies").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert store.gather(keys_of(768))["field"][:, 0].tolist() == list(range(768))


@pytest.mark.parametrize("merged", [True, False])
def test_a_damaged_copy_of_the_index_is_fetched_again(
    remote: Remote,
    keys_of: MakeKeys,
    rows_of: Make,
    tmp_path: Path,
    merged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if merged:  # then looking at the cache again reads no piece of its index
        monkeypatch.setattr("factory.cache.index.snapshot.SMALL", 1)
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.open()
    store.close()
    for path in (tmp_path / "copies/index").glob("*.safetensors"):
        flip(path)
    store.refresh()
    assert store.problems == []
    assert verify(store) == []
    assert store.gather(keys_of(768))["field"][:, 0].tolist() == list(range(768))


def test_a_piece_of_the_index_that_is_damaged_where_it_lies_is_named(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    (name, *_) = store.index_files.listed()
    key = store.index_files.key(name)
    data = remote.read(key)
    remote.write(key, data[:-1] + bytes([data[-1] ^ 4]))
    store.refresh()
    (problem,) = store.problems
    assert f"delete {store.index_files.where(name)} " in problem


@pytest.mark.parametrize("held", [True, False])
def test_a_damaged_copy_is_fetched_again(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path, held: bool
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.gather(keys_of(768), verify=False)
    if not held:
        store.close()
    for path in (tmp_path / "copies/shards").glob("*.safetensors"):
        flip(path)
    assert store.gather(keys_of(768))["field"][:, 0].tolist() == list(range(768))
    assert len(remote.reads) == 9  # 3 segments, and 3 shards twice


def test_a_shard_that_is_damaged_where_it_was_published_is_fetched_again_once(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    key = next(iter(remote.objects("cache/shards"))).key
    remote.write(key, remote.read(key)[:-1] + b"\7")
    remote.reads.clear()
    with pytest.raises(CacheError, match=r"row 255 of memory:.*does not match its checksum"):
        store.gather(keys_of(768))
    assert remote.reads.count(key) == 2


def test_dropping_a_shard_drops_its_copy(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.gather(keys_of(768))
    for record in list(store.snapshot().index.shards):
        drop_shard(store, record.name)
    assert list((tmp_path / "copies").glob("*/*.safetensors*")) == []
    assert not store.contains(keys_of(768)).any()


def test_a_shard_that_arrives_short_is_not_kept(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.open()
    for info in list(remote.objects("cache/shards")):
        remote.write(info.key, remote.read(info.key)[:5000])
    with pytest.raises(CacheError, match="is 5000 bytes"):
        store.gather(keys_of(1))
    (path,) = (tmp_path / "copies/shards").glob("*.safetensors")
    assert not head_is_there(path)


def test_a_server_that_goes_down_says_so(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    store.open()
    remote.down.append(True)
    with pytest.raises(StorageUnavailableError, match="down"):
        store.gather(keys_of(1))
    remote.down.clear()
    assert store.gather(keys_of(1))["field"].shape == (1, 64)


def test_a_server_that_is_down_is_not_an_empty_cache(
    remote: Remote, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = filled(remote, keys_of, rows_of, tmp_path)
    remote.down.append(True)
    with pytest.raises(StorageUnavailableError, match="down"):
        store.contains(keys_of(1))


def test_verify_reads_the_whole_of_a_remote_cache(
    remote: Remote, keys_of: MakeKeys, rows_of: Make
) -> None:
    store = filled(remote, keys_of, rows_of, None)
    assert verify(store) == []
    key = next(iter(remote.objects("cache/shards"))).key
    remote.write(key, remote.read(key)[:-1] + b"\7")
    assert "1 row of memory://" in verify(store)[0]
