"""Whatever fsspec knows as a storage: SFTP, WebDAV, SMB, archives, GitHub, the Hub, buckets."""

import json
import logging
import posixpath
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from factory.errors import ObjectNotFoundError, StorageError
from factory.limits import Above, AtLeast, check_limits
from factory.records import ObjectInfo
from factory.storage.base import Span, Storage, safe_key
from factory.storage.endpoint_limits import Endpoint, endpoint
from factory.storage.event_loop import OrderedRequests, TransferProgress, run, send_with_retries
from factory.storage.fsspec_errors import fault_of, redacted, status_of, storage_error
from factory.storage.fsspec_files import (
    LOCAL,
    WHOLE_WRITES,
    Files,
    check_url,
    place,
    protocol_of,
    trimmed,
)
from factory.storage.keys import check_span, is_listed, is_normal, safe_prefix, temporary_name
from factory.storage.per_process import PerProcess
from factory.storage.retry import ExhaustedError, RetryLimits

logger = logging.getLogger(__name__)

# Read by one call: what is longer takes several, each with a deadline of its own. Well above a
# picture, so that one call is the rule.
_PIECE_BYTES = 32 * 2**20
# One call may list a whole bucket: 100 million keys come in so many seconds.
_LISTING_S = 6 * 3600.0
# A check gives up after so long: the contract's 10 seconds, less one to report.
_CHECK_S = 9.0
_AHEAD = 2
# Under which names file systems tell that a file changed, the surest first.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "sha", "blob_id", "CRC")
_TIMES = (
    "LastModified", "last_modified", "mtime", "last_write_time", "modified", "modify", "updated",
    "created",
)  # fmt: skip


@dataclass(frozen=True)
class FsspecStorage(Storage):
    """Objects below a URL that fsspec knows.

    Credentials come from the environment, where the protocol's own client looks for them, or
    from options that are read from there. What cannot be written whole or not at all by one call
    is written beside its place and renamed; where the protocol cannot rename, it is read-only.

    Attributes:
        url: Root of the keys, such as "sftp://host/folder" or "zip::/archives/cats.zip".
        options: What the file system of the protocol takes. Secrets are read from the environment:
            '${oc.env:NAME}'.
        max_attempts: Tries per request, the first included. Waits between them grow.
        timeout_s: Seconds to connect, and to wait between bytes, where the client has such a limit.
        max_connections: Requests at once to this server, per process. The largest of all storages
            on that server counts.
        deadline_s: Seconds for all tries of a request; 1 more per MiB. Waits between them count,
            too.
    """

    # As S3 has it: the last ones of a call leave connections idle for an eighth of the time.
    spans_at_once: ClassVar[int] = 128

    url: str
    options: Mapping[str, Any] | None = None
    max_attempts: Annotated[int, AtLeast(1)] = 5
    timeout_s: Annotated[float, Above(0)] = 10.0
    max_connections: Annotated[int, AtLeast(1)] = 16
    deadline_s: Annotated[float, Above(0)] = 60.0

    def __post_init__(self) -> None:
        """Refuse a URL that fsspec does not know, and secrets in it."""
        object.__setattr__(self, "options", _plain(self.options or None))
        check_url(self.url)
        check_limits(self, "storage")

    def __hash__(self) -> int:
        return hash((self.url, json.dumps(self.options, sort_keys=True, default=str)))

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown["options"] = redacted(self._given) or None
        given = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({given})"

    @property
    def _given(self) -> Mapping[str, Any]:
        return self.options or {}

    @property
    def identity(self) -> str:
        """The URL, and the options that say where it is."""
        return place(self.url, self._given)

    @property
    def remote(self) -> bool:
        """True unless the bytes are on this machine."""
        return protocol_of(self.url.rpartition("::")[2]) not in LOCAL

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a prefix.

        Keys that are no paths in normal form ("a//b") are left out, with a warning: asked for,
        they would be taken for others ("a/b").

        Raises:
            ObjectNotFoundError: The root does not exist, or nothing lies below the prefix.
        """
        folder = safe_prefix(prefix)
        files = self._files("list")
        top = files.path(folder)
        action = f"list {self._where(folder)}"
        found, odd = False, 0
        for info in self._tree(files, top, action):
            found = True
            key = files.key(str(info["name"]))
            if not is_listed(key):
                continue
            if not is_normal(key):
                odd += 1
                logger.log(
                    logging.WARNING if odd == 1 else logging.DEBUG,
                    "%s: %r is no path in normal form and not listed; rename such objects",
                    self.identity, key,
                )  # fmt: skip
            else:
                yield ObjectInfo(key, int(info["size"]), _version(info))
        if folder and not found:
            raise ObjectNotFoundError(f"nothing lies below {self._where(folder)}; correct the path")

    def _tree(self, files: Files, top: str, action: str) -> Iterator[Mapping[str, Any]]:
        """Yield what fsspec tells of each file below a folder."""
        if files.lists_flat:
            found = self._do(action, "find", top, detail=True, limit_s=_LISTING_S)
            yield from (info for name, info in found.items() if name.strip("/") != top.strip("/"))
            return
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                entries = self._do(action, "ls", folder, detail=True)
            except ObjectNotFoundError:
                if folder == top:
                    raise
                continue  # removed while we walked
            for info in entries:
                name = str(info["name"]).rstrip("/")
                if info["type"] == "directory":
                    waiting.append(name)
                elif name.strip("/") != folder.strip("/"):
                    yield info

    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        name = safe_key(key)
        action = f"read {self._where(key)}"
        info = self._do(action, "info", self._files(action).path(name))
        return _described(name, info, action)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or a span of them.

        Raises:
            ObjectNotFoundError: There is no such object.
            AccessDeniedError: The credentials are missing, wrong or too weak.
            StorageUnavailableError: The server is down, refuses, or is too slow.
        """
        check_span(start, length)
        safe_key(key)
        self._files(f"read {self._where(key)}")
        found = run(self._one((key, start, length)))
        if isinstance(found, StorageError):
            raise found
        return found

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, asked for side by side; see `Storage`."""
        self._files("read")
        return OrderedRequests(self._one, spans, _AHEAD * self.max_connections)

    async def _one(self, span: Span) -> bytes | StorageError:
        """Read a span, or return what went wrong."""
        key, start, length = span
        check_span(start, length)
        action = f"read {self._where(key)}"
        try:
            path = self._files(action).path(safe_key(key))
            if length == 0:
                _described(key, await self._ask("info", path), action)
                return b""
            return await self._span(path, start, length, action)
        except StorageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - translated, and given in the span's place
            found = storage_error(error, action, self._given)
            found.__cause__ = error
            return found

    async def _span(self, path: str, start: int, length: int | None, action: str) -> bytes:
        """Read a span in pieces, which are one as a rule."""
        pieces: list[bytes] = []
        left = length
        while left is None or left > 0:
            size = _PIECE_BYTES if left is None else min(left, _PIECE_BYTES)
            pieces.append(await self._piece(path, start, size, action))
            start, left = start + size, None if left is None else left - size
            if len(pieces[-1]) < size:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _piece(self, path: str, start: int, size: int, action: str) -> bytes:
        try:
            span: Any = {"start": start, "end": start + size}  # s3fs has another order of them
            found = bytes(await self._ask("cat_file", path, size=size, **span))
        except Exception as error:
            # What a client says of a folder, or of a span behind the end, is its own affair.
            kinds = FileNotFoundError | PermissionError | StorageError | ExhaustedError
            if isinstance(error, kinds) or status_of(error) == 404:  # noqa: PLR2004 - HTTP's
                raise
            try:
                info = await self._ask("info", path)
            except Exception:  # noqa: BLE001 - the first error says more
                raise error from None
            if _described("x", info, action).size > start:
                raise
            return b""
        if not (found or start):  # an empty file, or what FTP gives of a folder
            _described("x", await self._ask("info", path), action)
        return found

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store an object by one call, or beside its place and by a rename.

        Raises:
            StorageError: A kind that says why the server did not take it.
        """
        name = safe_key(key)
        action = f"write {self._where(key)}"
        files = self._files(action)
        path = files.path(name)
        if files.protocol in WHOLE_WRITES:
            self._do(action, "pipe_file", path, bytes(data), size=len(data))
        elif files.renames:
            self._write_beside(path, bytes(data), action)
        else:
            raise StorageError(
                f"cannot {action}: {files.protocol} cannot store an object whole or not at all "
                "(fsspec neither renames there nor writes by one request), so that it is only "
                "read; store elsewhere, as storage@cache=local cache.storage.root=FOLDER does"
            )

    def _write_beside(self, path: str, data: bytes, action: str) -> None:
        folder = posixpath.dirname(path)
        beside = f"{folder}/{temporary_name()}"
        try:
            try:
                self._do(action, "pipe_file", beside, data, size=len(data))
            except StorageError:  # most clients do not say that the folder is missing
                self._do(action, "makedirs", folder, exist_ok=True)
                self._do(action, "pipe_file", beside, data, size=len(data))
            self._do(action, "mv", beside, path)
        except BaseException:
            with suppress(StorageError):
                self._do(action, "rm_file", beside)
            raise

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error.

        Raises:
            StorageError: The key is a folder.
        """
        name = safe_key(key)
        action = f"delete {self._where(key)}"
        files = self._files(action)
        path = files.path(name)
        with suppress(ObjectNotFoundError):
            if files.renames and self._do(action, "info", path)["type"] == "directory":
                raise StorageError(f"cannot {action}: it is a folder")
            self._do(action, "rm_file", path)

    def check(self, *, write: bool = False) -> None:
        """Look at the root; with `write`, put and delete an empty object.

        Raises:
            ObjectNotFoundError: The root does not exist.
            AccessDeniedError: The credentials are missing, wrong or too weak.
            StorageUnavailableError: The server is down, refuses, or does not answer.
        """
        files = self._files("check")
        action = f"{'write to' if write else 'list'} {self.identity}"
        if write:
            probe = temporary_name()
            self.write(probe, b"")
            self.delete(probe)
        try:
            self._do(action, "info", files.path(""), limit_s=_CHECK_S, attempts=1)
        except ObjectNotFoundError:
            bucket, _, below = files.root.strip("/").partition("/")
            # A folder of a bucket begins with its first object.
            if files.protocol not in WHOLE_WRITES or not below:
                raise ObjectNotFoundError(
                    f"cannot {action}: it does not exist; correct storage.url, or create it"
                ) from None
            self._do(action, "info", bucket, limit_s=_CHECK_S, attempts=1)

    def close(self) -> None:
        """Close this process's connections; they open again on use."""
        if (files := _FILES.pop(self)) is not None:
            files.close()

    def _where(self, key: str) -> str:
        root = trimmed(self.url)
        return root + key if root.endswith("/") else f"{root}/{key}"

    def _files(self, action: str) -> Files:
        try:
            return _FILES.get(self)
        except Exception as error:
            raise storage_error(error, action, self._given) from error

    def _do(
        self,
        action: str,
        method: str,
        *args: Any,
        size: int = 0,
        limit_s: float | None = None,
        attempts: int | None = None,
        **more: Any,
    ) -> Any:
        """Call a method of the file system from this thread."""
        self._files(action)
        patience = RetryLimits(attempts or self.max_attempts, limit_s or self.deadline_s)
        try:
            return run(self._ask(method, *args, size=size, patience=patience, **more))
        except Exception as error:
            raise storage_error(error, action, self._given) from error

    async def _ask(
        self,
        method: str,
        *args: Any,
        size: int = 0,
        patience: RetryLimits | None = None,
        **more: Any,
    ) -> Any:
        """Call a method as often as it takes; `size` are the bytes that come or go."""
        files = _FILES.get(self)

        async def once(progress: TransferProgress) -> Any:
            progress.sent(size)
            found = await files.call(method, *args, **more)
            if isinstance(found, bytes):
                self._endpoint.count(received=len(found))
            return found

        patience = patience or RetryLimits(self.max_attempts, self.deadline_s)
        return await send_with_retries(once, fault_of, self._endpoint, patience)

    @property
    def _endpoint(self) -> Endpoint:
        own = self._given.get("endpoint_url") or self._given.get("base_url")
        url = str(own or self.url.rpartition("::")[2])
        parts = urlsplit(url)
        if parts.scheme in ("s3", "s3a", "gs", "gcs", "abfs", "az", "hf"):  # one server for all
            url = f"{parts.scheme}://{parts.scheme}"
        return endpoint(url, self.max_connections)


def _described(key: str, info: Mapping[str, Any], action: str) -> ObjectInfo:
    if info["type"] == "directory":
        raise ObjectNotFoundError(f"cannot {action}: it is a folder")
    return ObjectInfo(safe_key(key), int(info["size"]), _version(info))


def _version(info: Mapping[str, Any]) -> str:
    """Return what changes with a file: its ETag or checksum, else its time and size."""
    for name in _VERSIONS:
        if info.get(name):
            return str(info[name]).strip('"')
    time: Any = next((info[name] for name in _TIMES if info.get(name)), "")
    if isinstance(time, datetime):
        time = time.timestamp()
    if isinstance(time, float):
        time = f"{int(time * 1e6):x}"
    return f"{time}-{int(info['size']):x}"


def _plain(options: Any) -> Any:
    """Return options as plain dicts and lists."""
    if isinstance(options, Mapping):
        return {str(name): _plain(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [_plain(value) for value in options]
    return options


_FILES: PerProcess[FsspecStorage, Files] = PerProcess(
    lambda storage: Files(
        storage.url, storage.options or {}, storage.max_connections, storage.timeout_s
    )
)
