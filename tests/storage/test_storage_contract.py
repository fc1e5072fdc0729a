"""Every storage that can be written to keeps the contract."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.storage import (
    AzureStorage,
    GcsStorage,
    LocalStorage,
    MemoryStorage,
    S3Storage,
    Storage,
)
from factory.testing.storage import StorageContract
from tests.storage.conftest import AZURE_ACCOUNT, BUCKET


class TestLocal(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        (tmp_path / "root").mkdir()
        return LocalStorage(str(tmp_path / "root"))


class TestMemory(StorageContract):
    crosses_processes = False

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        storage = MemoryStorage(uuid.uuid4().hex)
        yield storage
        for info in list(storage.objects()):
            storage.delete(info.key)


class TestS3Moto(StorageContract):
    @pytest.fixture
    def storage(self, moto_endpoint: str, credentials: None) -> Iterator[Storage]:
        storage = S3Storage(BUCKET, f"/{uuid.uuid4().hex}/", moto_endpoint)
        yield storage
        storage.close()


class TestS3Weed(StorageContract):
    @pytest.fixture
    def storage(self, weed_endpoint: str, credentials: None) -> Iterator[Storage]:
        storage = S3Storage(BUCKET, uuid.uuid4().hex, weed_endpoint)
        yield storage
        storage.close()


class TestGcsProtocol(StorageContract):
    """The client speaks the XML API, which is S3's but for credentials, as is this fake's."""

    @pytest.fixture
    def storage(self, moto_endpoint: str, gcs_credentials: None) -> Iterator[Storage]:
        storage = GcsStorage(BUCKET, uuid.uuid4().hex, moto_endpoint)
        yield storage
        storage.close()


class TestAzurite(StorageContract):
    @pytest.fixture
    def storage(self, azurite_endpoint: str, azure_credentials: None) -> Iterator[Storage]:
        storage = AzureStorage(BUCKET, uuid.uuid4().hex, azurite_endpoint, account=AZURE_ACCOUNT)
        yield storage
        storage.close()
