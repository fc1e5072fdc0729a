"""Are packed shards read as plain ones are, by us and by others, and bombs refused?"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from factory.cache.format.compression import packed, unpacked
from factory.cache.format.recipe import Keys
from factory.cache.format.safetensors_file import DamagedError
from factory.cache.format.segment import ShardStamp, pack_segment, read_segment
from factory.cache.maintenance.compaction import compact
from factory.cache.maintenance.garbage import collect
from factory.cache.maintenance.verify import drop_shard
from factory.cache.store import TensorStore
from factory.errors import CacheError
from factory.storage import LocalStorage, MemoryStorage
from factory.storage.base import Storage
from factory.workspace import Workspace
from tests.cache.conftest import RECIPE
from tests.support.stores import verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


@pytest.fixture(params=["local", "remote", "in memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TensorStore:
    """A store whose shards are packed, with and without a folder to unpack them to."""
    local = None if request.param == "in memory" else str(tmp_path / "copies")
    storage: Storage = MemoryStorage(name=f"packed-{request.param}-{tmp_path.name}")
    if request.param == "local":
        storage = LocalStorage(root=str(tmp_path))
    return TensorStore(storage, "cache", local, shard_mb=1 / 16, compression="zstd")


def test_packed_rows_come_back(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    write(store, keys_of(600), rows_of(600))
    for _ in range(2):
        assert store.gather(keys_of(600))["field"][:, 0].tolist() == list(range(600))
        store.close()
    records = store.snapshot().index.shards
    assert all(record.name.endswith(".safetensors.zst") for record in records)
    assert all(record.size * 4 < record.plain_size for record in records)
    assert verify(store) == []


def test_packed_and_plain_shards_live_side_by_side(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(store, keys_of(30), rows_of(30))
    plain = replace(store, compression="none")
    write(plain, keys_of(30, start=30), rows_of(30, start=30))
    assert plain.gather(keys_of(60))["field"][:, 0].tolist() == list(range(60))
    compact(plain)
    collect(plain, min_age_s=0)
    (record,) = plain.snapshot().index.shards
    assert not record.name.endswith(".zst")
    assert plain.gather(keys_of(60))["field"][:, 0].tolist() == list(range(60))


def test_a_copy_is_mapped_made_once_and_dropped_with_its_shard(
    keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    place = Workspace(LocalStorage(root=str(tmp_path)), scratch_dir=str(tmp_path / "scratch"),
                       compression="zstd")  # fmt: skip
    store = place.store("images")
    write(store, keys_of(30), rows_of(30))
    store.gather(keys_of(30))
    (copy,) = (tmp_path / "scratch/shards").glob("*.safetensors")
    made = copy.stat().st_mtime_ns
    store.close()
    store.gather(keys_of(30))
    assert copy.stat().st_mtime_ns == made
    copy.write_bytes(copy.read_bytes()[:-1] + b"\7")
    store.close()
    assert store.gather(keys_of(30))["field"][:, 0].tolist() == list(range(30))  # made anew
    drop_shard(store, store.snapshot().index.shards[0].name)
    assert not copy.exists()


def test_a_packed_shard_opens_elsewhere_once_it_is_unpacked(
    keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = TensorStore(LocalStorage(root=str(tmp_path)), "cache", compression="zstd")
    write(store, keys_of(30), rows_of(30))
    (path,) = (tmp_path / "cache/shards").iterdir()
    plain = tmp_path / "plain.safetensors"
    # As a stream, which is what `zstd -d` does: no size is known beforehand.
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        plain.write_bytes(stream.read())
    assert torch.equal(safetensors.torch.load_file(plain)["field"], rows_of(30))


def test_a_damaged_packed_shard_is_named(keys_of: MakeKeys, rows_of: Make, tmp_path: Path) -> None:
    store = TensorStore(LocalStorage(root=str(tmp_path)), "cache", compression="zstd")
    write(store, keys_of(30), rows_of(30))
    (path,) = (tmp_path / "cache/shards").iterdir()
    data = path.read_bytes()
    path.write_bytes(b"\0" * len(data))
    store.close()
    with pytest.raises(CacheError, match=rf"{path.name} is damaged: it does not unpack"):
        store.gather(keys_of(30))
    assert path.name in verify(store)[0]


def test_a_shard_that_claims_more_bytes_than_its_rows_take_is_refused(
    keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    store = TensorStore(LocalStorage(root=str(tmp_path)), "cache", compression="zstd")
    write(store, keys_of(30), rows_of(30))
    (path,) = (tmp_path / "cache/index").iterdir()
    sound = read_segment(np.fromfile(path, np.uint8), path.name)
    bomb = replace(sound.shards[0], plain_size=2**40)
    path.write_bytes(pack_segment(replace(sound, places=(ShardStamp(sound.stamp, bomb),))))
    store.close()
    assert not store.contains(keys_of(30)).any()
    assert "claims 1099511627776 bytes" in store.problems[0]


@pytest.mark.parametrize("claimed", [0, 99, 101, 2**20])
def test_no_more_is_unpacked_than_was_packed(claimed: int) -> None:
    frame = packed(b"x" * 100)
    with pytest.raises(DamagedError, match="notes is damaged"):
        unpacked(frame, claimed, "notes")
    assert unpacked(frame, 100, "notes").tobytes() == b"x" * 100


def test_a_bomb_takes_no_memory() -> None:
    script = (
        "import resource, sys\n"
        "from factory.cache.format.compression import packed, unpacked\n"
        "bomb = packed(bytes(2**28))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "try:\n    unpacked(bomb, 1000, 'bomb')\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["DamagedError", "True"], done.stderr


@pytest.mark.parametrize("make", [TensorStore, Workspace])
def test_other_compressions_are_refused(make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="compression must be one of none, zstd, got 'gzip'"):
        make(MemoryStorage(name="gzip"), prefix="cache", compression="gzip")
