"""A storage around another that fails, hangs and lies on demand, for tests of all floors."""

import hashlib
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from factory.errors import StorageError, StorageUnavailableError
from factory.records import ObjectInfo
from factory.storage import Storage
from factory.storage.base import Span
from factory.storage.keys import check_span

# A read that is never released ends after this all the same, so that a failing test ends.
_FOR_EVER_S = 60.0


@dataclass
class Script:
    """What befalls reads; change it at any time, from any thread.

    Attributes:
        failing: Errors to raise by key, at every read.
        times: Reads of a key that fail before it reads well again; absent for all.
        hanging: Keys whose reads wait for `release`.
        cut: Bytes left of a key's object.
        flipped: Keys of which a bit in the middle is wrong.
        share: Part of all reads that fail as unavailable; which follows from the key and how
            often it was read, whatever the order.
        waiting: Set whenever a read hangs.
        release: Lets hanging reads go on.
        reads: How often each key was read.
    """

    failing: dict[str, StorageError] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    flipped: set[str] = field(default_factory=set)
    share: float = 0.0
    waiting: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    reads: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def before(self, key: str) -> None:
        """Hang or raise as the key's read should."""
        with self.lock:
            self.reads[key] += 1
            number = self.reads[key]
        if key in self.hanging:
            self.waiting.set()
            self.release.wait(_FOR_EVER_S)
        if key in self.failing and number <= self.times.get(key, number):
            raise self.failing[key]
        digest = hashlib.blake2b(f"{key} {number}".encode(), digest_size=4).digest()
        if int.from_bytes(digest) / 2**32 < self.share:
            raise StorageUnavailableError(f"cannot read {key!r}: the script says so")

    def shown(self, key: str, data: bytes) -> bytes:
        """Return an object as the reader gets to see it."""
        data = data[: self.cut.get(key, len(data))]
        if key in self.flipped and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data


@dataclass(frozen=True)
class FaultyStorage(Storage):
    """Reads another storage as a script says; listing and writing are that storage's own.

    Attributes:
        inner: The storage.
        script: What befalls reads.
        far: What `remote` says.
    """

    spans_at_once: ClassVar[int] = 64

    inner: Storage
    script: Script = field(default_factory=Script, compare=False)
    far: bool = True

    @property
    def identity(self) -> str:
        """That of the storage inside: the bytes are the same."""
        return self.inner.identity

    @property
    def remote(self) -> bool:
        """As told."""
        return self.far

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield what is there."""
        return self.inner.objects(prefix)

    def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        return self.inner.head(key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, unless the script says otherwise."""
        check_span(start, length)
        self.script.before(key)
        data = self.script.shown(key, self.inner.read(key))
        return data[start : None if length is None else start + length]

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, read one after another."""
        return (self._read_or_error(span) for span in spans)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store an object."""
        self.inner.write(key, data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.inner.delete(key)

    def check(self, *, write: bool = False) -> None:
        """Look whether the storage is there."""
        self.inner.check(write=write)
