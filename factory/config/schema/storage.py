"""Schemas of storages: where bytes live."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from omegaconf import MISSING

from factory.config.schema.derived import SLOT, settings_of
from factory.config.schema.options import opt
from factory.storage.fsspec_files import check_url, missing_package, protocol_of
from factory.storage.url_list.hosts import PrivateHost
from factory.storage.url_list.hosts import check_url as check_web_url


@dataclass
class StorageConfig:
    """Fields every storage shares."""

    _target_: str = MISSING


@settings_of("factory.storage.local.LocalStorage")
class LocalConfig(StorageConfig):
    """A folder on a mounted file system."""


@settings_of("factory.storage.memory.MemoryStorage")
class MemoryConfig(StorageConfig):
    """Bytes in this process's memory; gone when it ends."""


_OBJECT_STORAGE = "factory.storage.object_store.object_storage.ObjectStorage"


class _BucketConfig(StorageConfig):
    """What buckets of all kinds are asked for."""

    # Of whom it is asked; a variable of the environment that holds credentials.
    _keys: ClassVar[str]

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not self.bucket:
            yield "bucket is not set; set DATA_BUCKET in the environment, or storage.bucket=NAME"
        if self.endpoint_url is not None:
            parts = urlsplit(self.endpoint_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                yield "endpoint_url must start with http:// or https:// and name a host"
            if parts.username or parts.password:
                yield (
                    f"endpoint_url must not hold credentials; set {self._keys} in the environment "
                    "instead"
                )


@settings_of("factory.storage.object_store.buckets.S3Storage", _OBJECT_STORAGE)
class S3Config(_BucketConfig):
    """A bucket of an S3-compatible server; credentials come from the environment only."""

    _keys: ClassVar[str] = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

    # Without one it is said which variable sets it.
    bucket: str | None = opt(None, "bucket name; or set DATA_BUCKET")


@settings_of("factory.storage.object_store.buckets.GcsStorage", _OBJECT_STORAGE)
class GcsConfig(_BucketConfig):
    """A bucket of Google Cloud Storage; credentials come from the environment only."""

    _keys: ClassVar[str] = "GOOGLE_APPLICATION_CREDENTIALS"

    bucket: str | None = opt(None, "bucket name; or set DATA_BUCKET")


@settings_of("factory.storage.object_store.buckets.AzureStorage", _OBJECT_STORAGE)
class AzureConfig(_BucketConfig):
    """A container of Azure Blob Storage; credentials come from the environment only."""

    _keys: ClassVar[str] = "AZURE_STORAGE_ACCOUNT_KEY"

    bucket: str | None = opt(None, "container's name; or set DATA_BUCKET")


@settings_of("factory.storage.fsspec_storage.FsspecStorage")
class FsspecConfig(StorageConfig):
    """Whatever fsspec knows: SFTP, WebDAV, SMB, archives, GitHub, the Hub, buckets."""

    # Without one it is said what sets it.
    url: str | None = opt(None, "root of the keys, such as sftp://host/folder or zip::cats.zip")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        try:
            check_url(self.url or "")
        except ValueError as error:
            yield str(error).removeprefix("storage.")
        else:
            for protocol in map(protocol_of, self.url.split("::")):
                if package := missing_package(protocol):
                    yield (
                        f"url={self.url!r} needs the package {package!r}, which is not "
                        f"installed; install it with: pip install '{package}'"
                    )


_WEB_STORAGE = "factory.storage.url_list.web_storage.WebStorage"


class _WebConfig(StorageConfig):
    """What storages of web servers are asked for."""

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        for host in self.private_hosts:
            try:
                PrivateHost.parse(host)
            except ValueError as error:
                yield f"private_hosts: {error}"


# Settings of requests come behind those of the storage: they are seldom looked for.
@settings_of(_WEB_STORAGE, "factory.storage.http_storage.HttpStorage")
class HttpConfig(_WebConfig):
    """A folder of a web server that shows its folders; read-only."""

    _target_: str = "factory.storage.http_storage.HttpStorage"

    # Without one it is said what sets it.
    url: str | None = opt(None, "URL of the folder that keys are relative to")

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not self.url:
            yield "url is not set; set url=https://host/folder"
        else:
            try:
                check_web_url(self.url, "url")
            except ValueError as error:
                yield str(error)
        yield from _WebConfig.problems(self)


@settings_of(_WEB_STORAGE, "factory.storage.url_list.url_list_storage.UrlListStorage")
class CsvConfig(_WebConfig):
    """Pictures behind a CSV list of URLs, downloaded once into a bounded cache."""

    _target_: str = "factory.storage.url_list.url_list_storage.UrlListStorage"

    cache_dir: str = MISSING


@settings_of("factory.storage.huggingface.HuggingFaceStorage")
class HuggingFaceConfig(StorageConfig):
    """Rows of a Hugging Face dataset: a saved folder, Parquet files, or a hub name."""


@settings_of("factory.storage.tar.tar_storage.TarStorage")
class WebDatasetConfig(StorageConfig):
    """Members of tar shards that lie in another storage; read-only."""

    storage: StorageConfig = SLOT

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if not self.shards:
            yield "shards must not be empty; set shards=['*.tar']"
        if not self.index_prefix.strip("/"):
            yield "index_prefix must not be empty; set index_prefix=tar-index"
