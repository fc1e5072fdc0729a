"""A storage that writes down what is read from it and fails where it is told to."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from factory.catalog.captions.sources import Captions, FilenameCaptions
from factory.catalog.facts import Fact, Facts
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.scan import Metadata, Scan
from factory.engine.engine import Engine
from factory.engine.local_engine import LocalEngine
from factory.errors import StorageError
from factory.records import ObjectInfo
from factory.storage.base import Storage
from factory.storage.local import LocalStorage

ENGINE: Engine = LocalEngine(workers=2)


@dataclass(frozen=True)
class Watched(LocalStorage):
    """A folder that counts what is read from it.

    Attributes:
        reads: How often each key was read since `forget`.
        broken: What to raise for a key.
    """

    reads: Counter[str] = field(default_factory=Counter, compare=False)
    broken: dict[str, Exception] = field(default_factory=dict, compare=False)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Count, then fail or read."""
        self.reads[key] += 1
        if key in self.broken:
            raise self.broken[key]
        return super().read(key, start, length)

    def read_many(self, spans: Sequence[tuple[str, int, int]]) -> Iterator[bytes | StorageError]:
        """Count and fail as `read` does."""
        return map(self._read_or_error, spans)

    def listing(self, prefix: str = "") -> pa.Table:
        """Return what `objects` yields."""
        return Storage.listing(self, prefix)

    def taken(self) -> list[str]:
        """Return the keys read since the last call, sorted."""
        keys = sorted(self.reads)
        self.reads.clear()
        return keys


@dataclass(frozen=True)
class Scattered(Watched):
    """The same, each object on a server of its own."""

    independent_objects: ClassVar[bool] = True


@dataclass(frozen=True)
class Stale(Watched):
    """A folder whose listing still shows objects that are gone."""

    ghosts: tuple[str, ...] = ()

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield what is there, and what was."""
        yield from super().objects(prefix)
        yield from (ObjectInfo(key, 100, "old") for key in self.ghosts)


def scanned(
    storage: Storage,
    prefix: str = "p",
    *,
    metadata: Metadata | None = None,
    captions: Captions | None = None,
    known: Facts | None = None,
) -> Facts:
    """Scan a folder as the backend "pics" does."""
    scan = Scan("pics", storage, prefix, captions or FilenameCaptions(), known)
    return (metadata or Discovery()).scan(scan, ENGINE)


def by_key(facts: Facts) -> dict[str, Fact]:
    """Return the facts by key."""
    return {fact.key: fact for fact in facts.rows()}


def facts_of(*sizes: tuple[int, int], errors: dict[int, str] | None = None) -> Facts:
    """Return facts of pictures "p/0000.png" and on, of these sizes."""
    rows = [
        Fact(f"p/{n:04d}.png", 1, f"e{n}", w, h, "PNG", error=(errors or {}).get(n))
        for n, (w, h) in enumerate(sizes)
    ]
    return Facts.of(rows, {})


def replace_file(path: Path, other: Path) -> None:
    """Put another file's bytes in the place of a file, in one step."""
    fresh = path.with_name("fresh")
    shutil.copyfile(other, fresh)
    fresh.replace(path)
