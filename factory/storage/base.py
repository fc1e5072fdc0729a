"""The contract every storage keeps: named bytes below one root."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar, NoReturn

from factory.errors import ObjectNotFoundError, StorageError, UnsafeKeyError
from factory.records import ObjectInfo

if TYPE_CHECKING:
    import pyarrow as pa

# Of an object: key, first byte, and number of bytes or None for all that follow.
Span = tuple[str, int, int | None]
# Takes bytes of several spans: a span's number, the first byte in the span, and pieces that follow
# one another. It may be called in any thread and wait for a disk.
Put = Callable[[int, int, "Sequence[bytes | memoryview]"], None]

# Empty parts of a path, and those that mean a folder: rare in buckets, and never in folders.
ODD_PART = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")

# Where spans are held whole before they are put somewhere, so much is asked for in one go.
_HELD_BYTES = 32 * 2**20
_HELD_SPANS = 64


class Storage(ABC):
    """Named bytes below one root.

    A storage is a value: cheap to make, comparable, printable, picklable. It does no I/O
    until it is used, and opens its connections per process, so it may cross into workers.
    Keys are '/'-separated paths relative to the root. All methods are thread-safe and raise
    only `StorageError` and its kinds for what the storage did.
    """

    # True where objects live on servers of their own (a list of URLs), so that one failing
    # says nothing of the others.
    independent_objects: ClassVar[bool] = False
    # Spans that one call of `read_many` should be given: many where it reads them side by side
    # or where one read costs microseconds, few where each waits for a server.
    spans_at_once: ClassVar[int] = 1
    # First bytes that are read of an object to look at its header: the header of nearly every
    # picture of the web. Camera files with an embedded preview cost a second read.
    head_bytes: ClassVar[int] = 16 * 1024

    @property
    @abstractmethod
    def identity(self) -> str:
        """A URI that tells this root from every other; holds no secret."""

    @property
    def remote(self) -> bool:
        """Whether reads wait for a network, so that reading ahead pays."""
        return False

    @abstractmethod
    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a folder-like prefix, in no particular order.

        Raises:
            ObjectNotFoundError: The root or prefix does not exist.
        """

    def listing(self, prefix: str = "") -> "pa.Table":
        """Return every object below a folder-like prefix, as columns sorted by key.

        Returns:
            Columns `key` (large_string), `size` (int64) and `etag` (large_string), as in
            `ObjectInfo`.

        Raises:
            ObjectNotFoundError: The root or prefix does not exist.
        """
        from factory.storage.listing import Listing

        rows = ((info.key, info.size, info.etag) for info in self.objects(prefix))
        return Listing().extend(rows).table()

    @abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectNotFoundError: There is no such object.
        """

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or `length` bytes from `start` (fewer at the end).

        Raises:
            ObjectNotFoundError: There is no such object.
        """

    def read_many(self, spans: Sequence[Span]) -> Generator["bytes | StorageError", None, None]:
        """Yield several spans (key, start, length) in their order, each as `read` gives it.

        A length of None reaches to the object's end. What fails stands in the place of its
        bytes, so that one bad object costs no other. A remote storage may begin at the call,
        reads some spans ahead of what is taken, and ends each in bytes or an error after a
        bounded time; closing the iterator cancels what is under way. Bytes that are released
        before the next are asked for leave their memory to them.
        """
        return (self._read_or_error(span) for span in spans)

    def read_to(
        self, spans: Sequence[Span], put: Put
    ) -> Generator["int | StorageError", None, None]:
        """Hand the bytes of several spans on; yield of each, in their order, how many it has.

        Like `read_many`, for large spans that need not be held in memory whole. A number comes
        after all bytes of its span were put; those of spans that follow may be put before it,
        and bytes of one that failed, or was tried again, too. `put` raises only StorageError,
        which then stands in the place of the span's number. Once the iterator is closed `put`
        may still run, and is begun no more a bounded time later.
        """
        number = 0
        for group in in_groups([length or 0 for _, _, length in spans]):
            for found in self.read_many(spans[group]):
                yield found if isinstance(found, StorageError) else _put_whole(found, number, put)
                number += 1

    def _read_or_error(self, span: Span) -> "bytes | StorageError":
        try:
            return self.read(*span)
        except StorageError as error:
            return error

    @abstractmethod
    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store an object whole or not at all; readers never see a part of it."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""

    def exists(self, key: str) -> bool:
        """Tell whether an object is there."""
        try:
            self.head(key)
        except ObjectNotFoundError:
            return False
        return True

    def local_path(self, key: str) -> Path | None:
        """Return where the object lies on a mounted file system, to be memory-mapped."""
        del key
        return None

    @abstractmethod
    def check(self, *, write: bool = False) -> None:
        """Fail within 10 seconds if the root cannot be reached (or written to).

        The error names the setting at fault and how to fix it.
        """

    def close(self) -> None:  # noqa: B027 - most storages hold nothing open
        """Close what this process opened; the storage may be used again afterwards."""


class ReadOnlyStorage(Storage):
    """A storage that is only read, such as a dataset of somebody else's."""

    # What messages call it, such as "a list of URLs is".
    described: ClassVar[str]

    def write(self, key: str, data: bytes | memoryview) -> NoReturn:
        """Refuse.

        Raises:
            UnsafeKeyError: The key leaves its root.
            StorageError: Always.
        """
        del data
        raise StorageError(f"cannot write {safe_key(key)!r}: {self.described} read-only")

    def delete(self, key: str) -> NoReturn:
        """Refuse; see `write`."""
        raise StorageError(f"cannot delete {safe_key(key)!r}: {self.described} read-only")

    def check(self, *, write: bool = False) -> None:
        """Refuse to be written to, else see `Storage.check`.

        Raises:
            StorageError: `write` was asked for.
        """
        if write:
            raise StorageError(f"{self.identity} is read-only; store elsewhere")


class TabularStorage(Storage):
    """A storage whose objects are rows of a table, with more columns beside the bytes."""

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> "pa.Table":
        """Return a table with the column `key` and the columns asked for, one row an object.

        Raises:
            TableError: A column is not there; the message lists those that are.
        """

    def paths(self) -> "pa.ChunkedArray | None":
        """Return the path each row's file has in a folder that the table was made from.

        Returns:
            large_string, one a row in the order of `listing`, "" where there is none; None where
            no row has one.
        """
        return None

    def class_names(self, column: str) -> Sequence[str] | None:
        """Return the names that a column's whole numbers stand for; None for other columns."""
        del column
        return None


def in_groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield which of some spans, of these lengths in bytes, are held in memory at once."""
    start = size = 0
    for number, length in enumerate(lengths):
        if number > start and (size + length > _HELD_BYTES or number - start == _HELD_SPANS):
            yield slice(start, number)
            start, size = number, 0
        size += length
    if lengths:
        yield slice(start, len(lengths))


def _put_whole(found: bytes, number: int, put: Put) -> "int | StorageError":
    try:
        put(number, 0, [found])
    except StorageError as error:
        return error
    return len(found)


def safe_key(key: str) -> str:
    """Return a normalised key, or refuse one that would leave its root.

    Raises:
        UnsafeKeyError: The key is absolute, empty, holds '..' or a NUL.
    """
    if not ODD_PART.search(key) and "\0" not in key:
        return key
    parts = PurePosixPath(key).parts
    # Not only parts[0] == "/": POSIX keeps two leading slashes as a root of its own.
    if not parts or key.startswith("/") or ".." in parts or "\0" in key:
        raise UnsafeKeyError(
            f"key {key!r} leaves its root; keys are relative paths without '..' or NUL"
        )
    return "/".join(parts)
