"""Schemas of storages: where bytes live."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from factory.config.schema.options import above, at_least, opt
from factory.storage.url_list.hosts import PrivateHost


@dataclass
class StorageConfig:
    """Fields every storage shares."""

    _target_: str = MISSING

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from ()


@dataclass
class LocalConfig(StorageConfig):
    """A folder on a mounted file system."""

    _target_: str = "factory.storage.local.LocalStorage"
    root: str = opt(MISSING, "folder that keys are relative to")
    follow_links: bool = opt(False, "read through links that leave the root")


@dataclass
class MemoryConfig(StorageConfig):
    """Bytes in this process's memory; gone when it ends."""

    _target_: str = "factory.storage.memory.MemoryStorage"
    name: str = opt("memory", "name of the memory area; equal names share their contents")


@dataclass
class S3Config(StorageConfig):
    """A bucket of an S3-compatible server; credentials come from the environment only."""

    _target_: str = "factory.storage.s3.s3_storage.S3Storage"
    bucket: str | None = opt(None, "bucket name; or set DATA_BUCKET")
    prefix: str = opt("", "folder in the bucket that keys are relative to")
    endpoint_url: str | None = opt(None, "server's URL (S3_ENDPOINT_URL); null for AWS itself")
    region: str | None = opt(None, "region; null follows AWS_DEFAULT_REGION")
    max_attempts: int = opt(5, "tries per request, the first included")
    timeout_s: float = opt(5.0, "seconds to connect, and to wait between bytes")
    max_connections: int = opt(32, "requests at once to this server, per process")
    deadline_s: float = opt(60.0, "seconds for all tries of a request; 1 more per MiB received")
    verify_checksum: bool = opt(True, "compare whole objects with their ETag where it is an MD5")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("max_attempts", self.max_attempts, 1)
        yield from above("timeout_s", self.timeout_s, 0)
        yield from above("deadline_s", self.deadline_s, 0)
        yield from at_least("max_connections", self.max_connections, 1)
        if not self.bucket:
            yield "bucket is not set; set DATA_BUCKET in the environment, or storage.bucket=NAME"
        if self.endpoint_url is not None:
            parts = urlsplit(self.endpoint_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                yield "endpoint_url must start with http:// or https:// and name a host"
            if parts.username or parts.password:
                yield (
                    "endpoint_url must not hold credentials; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY in the environment instead"
                )


@dataclass
class CsvConfig(StorageConfig):
    """Pictures behind a CSV list of URLs, downloaded once into a bounded cache."""

    _target_: str = "factory.storage.url_list.url_list_storage.UrlListStorage"
    table: str = opt(MISSING, "key of the CSV file in table_storage")
    table_storage: Any = opt(MISSING, "storage the CSV file is read from")
    url_column: str = opt("url", "column that holds the URLs")
    base_url: str | None = opt(None, "URL that relative ones are joined to")
    cache_dir: str = opt(MISSING, "local folder for downloads")
    max_file_mb: float = opt(64.0, "largest download accepted, MiB")
    max_cache_gb: float = opt(10.0, "size the download folder is kept below, GiB")
    timeout_s: float = opt(30.0, "seconds one try of a download may take in all")
    max_redirects: int = opt(5, "redirects followed per download")
    connections: int = opt(16, "downloads at once")
    max_attempts: int = opt(3, "tries per download, the first included")
    deadline_s: float = opt(100.0, "seconds for all tries of a download; 1 more per MiB received")
    private_hosts: list[str] = opt(
        factory=list,
        meaning="hosts[:port] and networks that URLs may lead to though they are private",
    )
    proxy: str | None = opt(None, "proxy's URL; the environment's is not used")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from above("max_file_mb", self.max_file_mb, 0)
        yield from above("max_cache_gb", self.max_cache_gb, 0)
        yield from above("timeout_s", self.timeout_s, 0)
        yield from at_least("max_redirects", self.max_redirects, 0)
        yield from at_least("connections", self.connections, 1)
        yield from at_least("max_attempts", self.max_attempts, 1)
        yield from above("deadline_s", self.deadline_s, 0)
        for host in self.private_hosts:
            try:
                PrivateHost.parse(host)
            except ValueError as error:
                yield f"private_hosts: {error}"


@dataclass
class HuggingFaceConfig(StorageConfig):
    """Rows of a Hugging Face dataset: a saved folder, Parquet files, or a hub name."""

    _target_: str = "factory.storage.huggingface.HuggingFaceStorage"
    dataset: str = opt(MISSING, "folder written by save_to_disk, or what load_dataset takes")
    split: str | None = opt(None, "split to read; needed where there is more than one")
    revision: str | None = opt(None, "commit, tag or branch on the hub")
    image_column: str = opt("image", "column that holds the pictures, or the videos")
    subset: str | None = opt(None, "configuration of the dataset, where it has several")
    cache_dir: str | None = opt(None, "folder of downloads and prepared tables; null: HF_HOME's")
    num_proc: int | None = opt(None, "processes that download and prepare; null: this one alone")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("num_proc", self.num_proc, 1)


@dataclass
class WebDatasetConfig(StorageConfig):
    """Members of tar shards that lie in another storage; read-only."""

    _target_: str = "factory.storage.tar.tar_storage.TarStorage"
    storage: StorageConfig = opt(MISSING, "slot: storage the shards lie in")
    shards: list[str] = opt(
        factory=lambda: ["*.tar"],
        meaning="patterns of shards: names at any depth, or keys; {000..099} is a range",
    )
    index: Any = opt(None, "storage that keeps where members lie; null finds them at each start")
    index_prefix: str = opt("tar-index", "folder of `index`")
    connections: int = opt(16, "shards whose headers are read at once")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from at_least("connections", self.connections, 1)
        if not self.shards:
            yield "shards must not be empty; set shards=['*.tar']"
        if not self.index_prefix.strip("/"):
            yield "index_prefix must not be empty; set index_prefix=tar-index"
