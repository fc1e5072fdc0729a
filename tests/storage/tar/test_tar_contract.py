"""The inside of a tar shard keeps the contract, wherever the shard lies."""

import pickle
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from factory.errors import StorageError, UnsafeKeyError
from factory.storage import LocalStorage, MemoryStorage, S3Storage, Storage, TarStorage
from factory.testing.storage import StorageContract
from tests.storage.conftest import BUCKET
from tests.storage.tar.tars import Rewritten, archive


class TestLocalShard(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        (tmp_path / "root").mkdir()
        index = LocalStorage(str(tmp_path / "index"))
        storage = Rewritten(LocalStorage(str(tmp_path / "root")), index=index)
        yield storage
        storage.close()

    def test_is_a_value(self, storage: Storage) -> None:
        storage.write("a", b"x")
        storage.read("a")  # opened things must not change what it is
        copy = pickle.loads(pickle.dumps(storage))
        assert copy == storage
        assert hash(copy) == hash(storage)
        names = {kind.__name__: kind for kind in (Rewritten, LocalStorage, MemoryStorage)}
        assert eval(repr(copy), names) == storage
        assert copy.read("a") == b"x"

    def test_many_threads(self, storage: Storage) -> None:
        # Shards are at rest while they are read; that one may be replaced is tested above.
        names = [f"n/{number}" for number in range(64)]
        for name in names[::-1]:
            storage.write(name, name.encode())
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(storage.read, names * 4)) == [n.encode() for n in names * 4]
            assert {info.key for info in pool.map(storage.head, names)} == set(names)


class TestShardInMemory(TestLocalShard):
    crosses_processes = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = Rewritten(MemoryStorage(uuid.uuid4().hex))
        yield storage
        storage.storage.delete("s.tar")


@pytest.mark.parametrize("server", ["moto_endpoint", "weed_endpoint"])
@pytest.mark.usefixtures("credentials")
def test_shards_in_a_bucket(server: str, request: pytest.FixtureRequest) -> None:
    bucket = S3Storage(BUCKET, uuid.uuid4().hex, request.getfixturevalue(server))
    pictures = {f"{n:04d}.jpg": bytes([n]) * 3000 * n for n in range(40)}
    bucket.write("p/0.tar", archive(pictures))
    bucket.write("p/1.tar", archive({"0001.jpg": b"another"}))
    first = TarStorage(bucket, index=bucket)
    listed = {info.key: info for info in first.objects("p")}
    assert set(listed) == {f"p/0.tar/{name}" for name in pictures} | {"p/1.tar/0001.jpg"}
    assert len(list(bucket.objects("tar-index"))) == 2
    second = TarStorage(bucket, index=bucket, connections=2)  # finds the indexes
    assert second.read("p/1.tar/0001.jpg") == b"another"
    for name, data in pictures.items():
        assert second.read(f"p/0.tar/{name}") == data
        assert second.head(f"p/0.tar/{name}") == listed[f"p/0.tar/{name}"]
    assert second.read("p/0.tar/0007.jpg", 20_990, 99) == b"\7" * 10
    bucket.write("p/1.tar", archive({"other.jpg": b"12345", "0001.jpg": b"new"}))
    assert second.head("p/1.tar/0001.jpg").etag != listed["p/1.tar/0001.jpg"].etag
    assert second.read("p/1.tar/0001.jpg") == b"new"
    bucket.delete("p/1.tar")
    with pytest.raises(FileNotFoundError):
        second.read("p/1.tar/0001.jpg")
    second.close()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "//x", "../x", "s.tar/../../x", "a\0b", ".."])
def test_keys_that_leave_the_root_are_refused(tmp_path: Path, key: str) -> None:
    storage = TarStorage(LocalStorage(str(tmp_path)))
    (tmp_path / "s.tar").write_bytes(archive({"a": b"x"}))
    for call in (storage.read, storage.head, storage.exists, storage.delete):
        with pytest.raises(UnsafeKeyError):
            call(key)
    if key:
        with pytest.raises(UnsafeKeyError):
            list(storage.objects(key))


def test_read_only(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(archive({"a": b"x"}))
    storage = TarStorage(LocalStorage(str(tmp_path)))
    storage.check()
    for call in (
        lambda: storage.write("s.tar/a", b"x"),
        lambda: storage.delete("s.tar/a"),
        lambda: storage.check(write=True),
    ):
        with pytest.raises(StorageError, match="read-only"):
            call()
