"""Folders of a mounted file system as a storage."""

import errno
import logging
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from factory.errors import AccessDeniedError, ObjectNotFoundError, StorageError, UnsafeKeyError
from factory.records import ObjectInfo
from factory.storage.atomic_write import atomic_file
from factory.storage.base import Span, Storage, safe_key
from factory.storage.keys import check_span, is_listed, safe_prefix, temporary_name

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What an entry says that was removed while we walked, or that is a link in a circle.
_NOWHERE = (errno.ENOENT, errno.ELOOP)
# Not a link; and a pipe of that name does not keep us waiting for a writer.
_WHOLE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_PLAIN = _WHOLE | os.O_NOFOLLOW
# One call to the system gives less than 2 GiB; what is larger takes several.
_ONE_CALL = 2**30


@dataclass(frozen=True)
class LocalStorage(Storage):
    """Files below a folder.

    A symbolic link inside the root is an object like any other as long as it points inside
    the root; one that leaves it is neither listed nor read unless `follow_links` is set.

    Attributes:
        root: Folder that keys are relative to. Relative ones count from the working directory, "~"
            is expanded.
        follow_links: Read through links that leave the root.
    """

    # A read from the page cache takes 6 us: below some hundred, handing work over costs more.
    spans_at_once: ClassVar[int] = 512
    # One page: a second read, where there is more EXIF, costs less than 16 KB each time.
    head_bytes: ClassVar[int] = 4 * 1024

    root: str
    follow_links: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty root, which would mean the working directory by accident."""
        if not self.root:
            raise ValueError("storage.root is empty; set it to a folder ('.' for this one)")

    @property
    def identity(self) -> str:
        """The root as "file://" and its absolute path."""
        return f"file://{self._root}"

    @property
    def _root(self) -> Path:
        return Path(os.path.abspath(Path(self.root).expanduser()))  # noqa: PTH100 - keeps links

    def _confine(self, path: Path, shown: str) -> Path:
        """Return the path unless links lead it out of the root."""
        if not self.follow_links:
            real = os.path.realpath(path)
            root = os.path.realpath(self._root)
            if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
                raise UnsafeKeyError(
                    f"{shown!r} is a link that leaves {self._root}; "
                    "set storage.follow_links=true to allow it"
                )
        return path

    def _path(self, key: str) -> Path:
        name = safe_key(key)
        path = self._root / name
        # Without a link on the way from the root it cannot lead out of it, and nothing need be
        # resolved.
        return (
            path if self.follow_links or _is_free_of_links(path, name) else self._confine(path, key)
        )

    def _own_path(self, key: str) -> Path:
        """Return where a key itself lies (a link's own place), its folder confined."""
        path = self._root / safe_key(key)
        self._confine(path.parent, key)
        return path

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every file below a folder.

        Raises:
            ObjectNotFoundError: The folder does not exist, or is a file.
            AccessDeniedError: A folder below may not be read; it is named.
        """
        for key, size, etag in self._walk(prefix):
            yield ObjectInfo(key, size, etag)

    def listing(self, prefix: str = "") -> "pa.Table":
        """Return every file below a folder as columns; see `Storage.listing`.

        Raises:
            ObjectNotFoundError: The folder does not exist, or is a file.
            AccessDeniedError: A folder below may not be read; it is named.
        """
        from factory.storage.listing import Listing

        return Listing().extend(self._walk(prefix)).table()

    def _walk(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        folder = safe_prefix(prefix)
        top = self._confine(self._root / folder, prefix)
        with _translated(top, "list", setting="" if folder else "storage.root"):
            if not stat.S_ISDIR(top.stat().st_mode):
                raise ObjectNotFoundError(f"cannot list {top}: it is a file, not a folder")
        yield from _FolderWalk(self._root, top, self.follow_links).run()

    def head(self, key: str) -> ObjectInfo:
        """Describe one file from its inode.

        Raises:
            ObjectNotFoundError: There is no such file.
        """
        path = self._path(key)
        with _translated(path, "read"):
            found = path.stat()
        _check_file(path, found)
        return ObjectInfo(safe_key(key), found.st_size, _etag(found))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes, or a span of them.

        Raises:
            ObjectNotFoundError: There is no such file, or it is a folder, a pipe or a device.
            AccessDeniedError: The file may not be read.
        """
        check_span(start, length)
        path = self._path(key)
        with _translated(path, "read"), open(path, "rb", opener=_open) as file:
            _check_file(path, os.fstat(file.fileno()))
            if start:
                file.seek(start)
            return file.read(-1 if length is None else length)

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order; see `Storage.read_many`."""
        folders: dict[str, str] = {}
        return (self._read_at_once(span, folders) for span in spans)

    def _read_at_once(self, span: Span, folders: dict[str, str]) -> bytes | StorageError:
        """Read a plain file without the checks that its folder has passed already.

        What is no plain file (a link, a strange key, an error) takes the long way.
        """
        key, start, length = span
        folder, _, name = key.rpartition("/")
        if start < 0 or (length or 0) < 0 or ".." in key or "\0" in key or key.startswith("/"):
            return self._read_or_error(span)
        try:
            if folder not in folders:
                folders[folder] = _with_separator(str(self._confine(self._root / folder, key)))
            descriptor = os.open(folders[folder] + name, _PLAIN)
            try:
                if length is None:
                    length = max(0, os.fstat(descriptor).st_size - start)
                if length <= _ONE_CALL:
                    return os.pread(descriptor, length, start)
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass
        return self._read_or_error(span)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write a file beside its place, flush it to disk, then move it in; see `atomic_file`.

        Raises:
            StorageError: The disk is full; nothing is left behind.
            AccessDeniedError: The folder may not be written to.
        """
        path = self._own_path(key)
        with _translated(path, "write", len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(data)
            _sync_folder(path.parent)

    def delete(self, key: str) -> None:
        """Remove a file (a link itself, not what it points to); its folder stays.

        Raises:
            StorageError: The key is a folder.
        """
        path = self._own_path(key)
        with _translated(path, "delete"), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def local_path(self, key: str) -> Path:
        """Return the file's absolute path, whether or not it exists."""
        return self._path(key)

    def check(self, *, write: bool = False) -> None:
        """Look into the root; with `write`, make it and write a file there.

        Raises:
            ObjectNotFoundError: The root does not exist, or is a file.
            AccessDeniedError: The root may not be read or written to.
        """
        if write:
            probe = temporary_name()
            self.write(probe, b"")
            self.delete(probe)
        with _translated(self._root, "list", setting="storage.root"), os.scandir(self._root) as top:
            next(top, None)


class _FolderWalk:
    """One walk over a folder; keeps which links it left out, to say so at the end."""

    def __init__(self, root: Path, top: Path, follow_links: bool) -> None:
        self._cut = len(_with_separator(os.fspath(root)))
        self._bounds = _with_separator(os.path.realpath(root))
        self._top = os.path.realpath(top)
        self._start = os.fspath(top)
        self._follow_links = follow_links
        self._left_out: list[str] = []
        self._seen_links: set[str] = set()

    def run(self) -> Iterator[tuple[str, int, str]]:
        """Yield key, size and etag of every file."""
        folders = [self._start]
        links: list[str] = []
        while folders or links:
            if not folders:  # links last and in order, so that which name wins is no accident
                links.sort(reverse=True)
                folders.extend(self._behind(links.pop()))
                continue
            folder = folders.pop()
            with _translated(folder, "list"):
                yield from self._folder(folder, folders, links)
        if self._left_out:
            logger.warning(
                "%s: %d entries not listed (dangling or leaving links, names that are not "
                "UTF-8), such as %r; links out of the folder need storage.follow_links=true",
                self._start, len(self._left_out), self._left_out[0],
            )  # fmt: skip

    def _folder(
        self, folder: str, folders: list[str], links: list[str]
    ) -> Iterator[tuple[str, int, str]]:
        above = _with_separator(folder)[self._cut :].replace(os.sep, "/")
        for entry in self._entries(folder):
            name = entry.name
            if name[0] == "." and not is_listed(name):
                continue
            if not (name.isascii() or _is_utf8(name)):
                self._left_out.append(ascii(entry.path))
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif (found := self._file(entry)) is not None and stat.S_ISREG(found.st_mode):
                yield above + name, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}"

    def _entries(self, folder: str) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(folder) as found:
                return list(found)
        except FileNotFoundError:
            if folder == self._start:
                raise
            return []  # removed while we walked

    def _file(self, entry: "os.DirEntry[str]") -> os.stat_result | None:
        """Return what an entry that is no folder is; None where it may not be listed."""
        link = entry.is_symlink()
        if link and not self._allowed(os.path.realpath(entry.path)):
            self._left_out.append(entry.path)
            return None
        try:
            return entry.stat()
        except OSError as error:
            if error.errno not in _NOWHERE:
                raise
            if link:
                self._left_out.append(entry.path)
            return None  # removed while we walked

    def _behind(self, link: str) -> Iterator[str]:
        """Yield a linked folder to walk, unless it is walked anyway or may not be."""
        real = os.path.realpath(link)
        if not self._allowed(real):
            self._left_out.append(link)
        elif not (
            _with_separator(real).startswith(_with_separator(self._top))
            # A link to a folder above would walk everything again below itself.
            or self._top.startswith(_with_separator(real))
            or real in self._seen_links
        ):
            self._seen_links.add(real)
            yield link

    def _allowed(self, real: str) -> bool:
        return self._follow_links or _with_separator(real).startswith(self._bounds)


def _is_free_of_links(path: Path, name: str) -> bool:
    """Tell whether no part of a key is a link; what is not there is none.

    Args:
        path: Where the key lies.
        name: The key, as the end of that path.
    """
    full = os.fspath(path)
    ends = [len(full) - len(name) + at for at, letter in enumerate(name) if letter == "/"]
    try:
        return not any(stat.S_ISLNK(os.lstat(full[:end]).st_mode) for end in (*ends, len(full)))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def _open(path: str, flags: int) -> int:
    """Open a file to read; a pipe that took a file's place does not keep us waiting."""
    return os.open(path, flags | _WHOLE)


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ObjectNotFoundError(f"{path} is a folder, a pipe or a device, not a file")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return False


def _with_separator(path: str) -> str:
    return path.rstrip(os.sep) + os.sep


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that Python smuggled through; no table can hold them
        return False
    return True


def _etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path | str, action: str, size: int = 0, setting: str = "") -> Iterator[None]:
    """Turn what the operating system says into a kind of `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(error, Path(path), action, size, setting) from error
    except ValueError as error:  # a name that the file system's encoding cannot spell
        raise UnsafeKeyError(f"cannot {action} {str(path)!a}: {error}") from error


def _storage_error(
    error: OSError, path: Path, action: str, size: int, setting: str
) -> StorageError:
    what = f"cannot {action} {path}"
    if error.errno in _FULL:
        return StorageError(
            f"{what}: no space left for {size} bytes; free some on the file system of "
            f"{path.parent} (old caches and runs first) or choose another folder"
            f"{_elsewhere(action)}"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return AccessDeniedError(
            f"{what}: {_denied(error)}; see who may with: ls -ld '{path}' '{path.parent}'"
            f"{_elsewhere(action)}"
        )
    absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    # A socket, or links that have become a circle.
    absent |= error.errno in (errno.ENXIO, errno.ELOOP)
    if absent and action in ("read", "list"):
        mend = f"; create the folder or correct {setting}" if setting else ""
        return ObjectNotFoundError(f"{what}: {error.strerror}{mend}")
    return StorageError(f"{what}: {error.strerror or error}")


def _denied(error: OSError) -> str:
    return "it is read-only" if error.errno == errno.EROFS else "permission denied"


def _elsewhere(action: str) -> str:
    """Return how to have elsewhere what is written: caches, mostly."""
    return ", as storage@cache=local cache.storage.root=FOLDER does" if action == "write" else ""
