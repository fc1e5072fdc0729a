"""Where a run keeps its facts and encoded tensors."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

from factory.cache.packing import check_compression
from factory.cache.placement import Kept
from factory.cache.store import TensorStore
from factory.catalog.journal import Journal
from factory.catalog.published import Shelf
from factory.storage.base import Storage


@dataclass(frozen=True)
class CachePlace:
    """A folder of a storage, and a local folder for what has to be mapped from there.

    Attributes:
        storage: Storage of the cache.
        prefix: Folder of the cache in its storage.
        scratch_dir: Local folder that remote shards are mirrored to.
        shard_mb: Size a shard is closed at, MiB.
        compression: How new shards are kept in the storage: "none" or "zstd".
    """

    storage: Storage
    prefix: str = "cache"
    scratch_dir: str = ".scratch/shards"
    shard_mb: float = 256.0
    compression: str = "none"

    def __post_init__(self) -> None:
        """Refuse a cache without a folder of its own."""
        if not self.prefix.strip("/"):
            raise ValueError("cache.prefix must not be empty; set cache.prefix=cache")
        if self.shard_mb <= 0:
            raise ValueError(f"cache.shard_mb must be above 0, got {self.shard_mb:g}")
        check_compression(self.compression)

    def shelf(self, backend: str) -> Shelf:
        """Return where the facts of a backend are published, and mapped on this machine."""
        key = self.catalog_key(backend)
        here = self.storage.local_path(key)
        if here is None:
            here = self._own_folder("catalogs") / f"{backend}.parquet"
        return Shelf(self.storage, key, here.with_suffix(".arrow"))

    def kept(self, backend: str) -> Kept:
        """Return where it is kept, on this machine, where the rows of a backend lie."""
        return Kept(self._own_folder("places"), backend)

    def _own_folder(self, kind: str) -> Path:
        """Return a folder of this machine for this cache: two may have backends of one name."""
        name = xxhash.xxh3_64_hexdigest(f"{self.storage.identity}/{self.prefix}".encode())
        return Path(self.scratch_dir).parent / kind / name

    def journal(self, backend: str) -> Journal:
        """Return what an unfinished scan of a backend leaves."""
        return Journal(self.storage, f"{self.prefix}/catalog/{backend}.scan")

    def catalog_key(self, backend: str) -> str:
        """Return where the facts of a backend are published."""
        return f"{self.prefix}/catalog/{backend}.parquet"

    def store(self, backend: str) -> TensorStore:
        """Return the tensors of an embeddings backend."""
        folder = f"{self.prefix}/tensors/{backend}"
        return TensorStore(
            self.storage,
            folder,
            local_dir=str(Path(self.scratch_dir) / backend),
            shard_mb=self.shard_mb,
            compression=str(self.compression),
        )
