"""What fsspec knows keeps the contract, on real servers, as far as each protocol can."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.errors import StorageError
from factory.storage import FsspecStorage, Storage
from factory.testing.storage import ODD_NAMES, StorageContract
from tests.storage.conftest import BUCKET
from tests.storage.served import PASSWORD, USER, CoarseTimes, Served, serving


class TestFile(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        (tmp_path / "root").mkdir()
        storage = FsspecStorage(f"file://{tmp_path}/root")
        yield storage
        storage.close()


class TestMemory(StorageContract):
    crosses_processes = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = FsspecStorage(f"memory://{uuid.uuid4().hex}")
        yield storage
        for info in list(storage.objects()):
            storage.delete(info.key)
        storage.close()


class TestS3Moto(StorageContract):
    @pytest.fixture
    def storage(self, moto_endpoint: str, credentials: None) -> Iterator[Storage]:
        url = f"s3://{BUCKET}/{uuid.uuid4().hex}/"
        storage = FsspecStorage(url, {"endpoint_url": moto_endpoint})
        yield storage
        storage.close()


class TestS3Weed(StorageContract):
    @pytest.fixture
    def storage(self, weed_endpoint: str, credentials: None) -> Iterator[Storage]:
        url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        storage = FsspecStorage(url, {"endpoint_url": weed_endpoint})
        yield storage
        storage.close()


class _WithPassword(CoarseTimes):
    """Servers that a user logs in to."""

    def test_is_a_value(self, storage: Storage) -> None:
        assert PASSWORD not in repr(storage)
        assert PASSWORD not in storage.identity
        assert hash(storage) == hash(FsspecStorage(storage.url, storage.options))


def served(protocol: str) -> Any:
    """Return a fixture of a server that lasts for the module."""

    @pytest.fixture(scope="module", name=protocol)
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        with serving(protocol, tmp_path_factory.mktemp(protocol)) as found:
            yield found

    return server


sftp, webdav = served("sftp"), served("webdav")


def below(url: str, **options: object) -> Iterator[Storage]:
    """Yield a storage of a new folder of a server."""
    storage = FsspecStorage(f"{url}/{uuid.uuid4().hex}", options)
    yield storage
    storage.close()


class TestSftp(_WithPassword):
    @pytest.fixture
    def storage(self, sftp: Served) -> Iterator[Storage]:
        url = f"sftp://{USER}@127.0.0.1:{sftp.port}"
        own = {"allow_agent": False, "look_for_keys": False}  # none of this machine's
        yield from below(url, password=PASSWORD, **own)


class TestWebdav(StorageContract):
    @pytest.fixture
    def storage(self, webdav: Served) -> Iterator[Storage]:
        url = f"http://127.0.0.1:{webdav.port}"
        yield from below("webdav:/", base_url=url)

    def test_readers_never_see_a_part(self, storage: Storage) -> None:
        """This server deletes a file before it moves another to its place."""

    @pytest.mark.parametrize("key", ODD_NAMES)
    def test_odd_names(self, storage: Storage, key: str) -> None:
        if any(sign in key for sign in "%?#"):  # webdav4 takes them for parts of a URL
            with pytest.raises(StorageError, match="rename it"):
                storage.write(key, b"1")
        else:
            super().test_odd_names(storage, key)
