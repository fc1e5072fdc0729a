"""Workspace: where a run keeps its facts and encoded tensors."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import xxhash

from factory.cache.row_locations import LocationFiles
from factory.cache.store import TensorStore
from factory.catalog.facts_store import FactsStore
from factory.catalog.scan.journal import Journal
from factory.limits import Above, AtLeast, OneOf, check_limits
from factory.storage.base import Storage


@dataclass(frozen=True)
class Workspace:
    """A folder of a storage, and a local folder for what has to be mapped from there.

    Attributes:
        storage: Storage of the cache.
        prefix: Folder of the cache in its storage.
        scratch_dir: Local folder that remote shards are copied to.
        shard_mb: Size a shard is closed at, MiB.
        disk_gb: Limit of the copies there, GiB; None: none, 0: no copies.
        ram_gb: Limit of copies in memory, shared by a machine's processes, GiB.
        ram_dir: Memory file system they lie in.
        ahead_mb: How far ahead of the trainer rows are fetched, MiB; 0: not.
        preload: Copy all to memory, up to ram_gb, before training.
        compression: How new shards are kept in the storage: none | zstd, which takes a tenth off
            latents and more off padded texts; unpacked to scratch_dir when first used; both kinds
            are read.
        damaged: Rows that turn out damaged or gone: rebuild: encode them anew, and say so | stop
            the run.
    """

    storage: Storage
    prefix: str = "cache"
    scratch_dir: str = ".scratch/shards"
    shard_mb: Annotated[float, Above(0)] = 256.0
    disk_gb: Annotated[float | None, AtLeast(0)] = None
    ram_gb: Annotated[float, AtLeast(0)] = 0.0
    ram_dir: str = "/dev/shm"  # noqa: S108 - a memory file system that every user may write to
    ahead_mb: Annotated[float, AtLeast(0)] = 1024.0
    preload: bool = False
    compression: Annotated[str, OneOf("none", "zstd")] = "none"
    damaged: Annotated[str, OneOf("rebuild", "stop")] = "rebuild"

    def __post_init__(self) -> None:
        """Refuse a cache without a folder of its own."""
        if not self.prefix.strip("/"):
            raise ValueError("cache.prefix must not be empty; set cache.prefix=cache")
        check_limits(self, "cache")
        if self.preload and not self.ram_gb:
            raise ValueError("cache.preload=true needs memory; set cache.ram_gb")

    def facts_store(self, backend: str) -> FactsStore:
        """Return where the facts of a backend are published, and mapped on this machine."""
        key = self.catalog_key(backend)
        here = self.storage.local_path(key)
        if here is None:
            here = self._own_folder("catalogs") / f"{backend}.parquet"
        return FactsStore(self.storage, key, here.with_suffix(".arrow"))

    def kept(self, backend: str) -> LocationFiles:
        """Return where it is kept, on this machine, where the rows of a backend lie."""
        return LocationFiles(self._own_folder("places") / backend)

    def _own_folder(self, kind: str) -> Path:
        """Return a folder of this machine for this cache: two may have backends of one name."""
        return Path(self.scratch_dir).parent / kind / self._name

    def journal(self, backend: str) -> Journal:
        """Return what an unfinished scan of a backend leaves."""
        return Journal(self.storage, f"{self.prefix}/catalog/{backend}.scan")

    def catalog_key(self, backend: str) -> str:
        """Return where the facts of a backend are published."""
        return f"{self.prefix}/catalog/{backend}.parquet"

    def store(self, backend: str, shard_rows: int | None = None) -> TensorStore:
        """Return the tensors of an embeddings backend.

        Args:
            backend: Its name.
            shard_rows: Rows a shard is closed at, if it is not full before.
        """
        folder = f"{self.prefix}/tensors/{backend}"
        return TensorStore(
            self.storage,
            folder,
            local_dir=self.scratch_dir,
            shard_mb=self.shard_mb,
            disk_gb=self.disk_gb,
            ram_dir=str(Path(self.ram_dir) / f"tensor-cache-{os.getuid()}" / self._name),
            ram_gb=self.ram_gb,
            compression=str(self.compression),
            shard_rows=shard_rows,
        )

    @property
    def _name(self) -> str:
        """A name of this cache alone: two runs may have backends of one name."""
        return xxhash.xxh3_64_hexdigest(f"{self.storage.identity}/{self.prefix}".encode())


# Its name in version 0.1, kept for one version.
CachePlace = Workspace
