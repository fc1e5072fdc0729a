"""Clients of object stores: what one process has open to a bucket, by way of obstore."""

import asyncio
import atexit
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from factory.errors import ContentMismatchError, StorageError
from factory.storage.endpoint_limits import Endpoint
from factory.storage.event_loop import TransferProgress, cancel_every_task, run_in_disk_thread
from factory.storage.keys import slice_bytes
from factory.storage.per_process import PerProcess

# Bytes that are handed on at once: a word between two threads costs some 50 us, and as much is
# held for each request. Shorter bodies come in one piece: they move no deadline.
_PIECE = 2**20
# Hashing up to this size takes the loop 0.2 ms; more is done beside it, in a thread.
_HASHED_IN_LOOP = 2**17
# Keys of one page, as servers give them.
_PAGE = 1000
# The client ends a request after 30 s by default; here deadlines do that, which move with bytes.
_NO_TIMEOUT = timedelta(days=1)
_MD5 = re.compile(r'"?([0-9a-fA-F]{32})"?')
# What obstore says of a span that begins after its object's end, of a bucket that is not there, and
# of a server or proxy that knows no spans.
_BEYOND_END = ("status code: 416", "Wanted range starting at")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NO_SPANS = "Received non-partial response"

# Longest wait at the process's end, and how often in a row threads must be found idle.
_LEAVING_S = 2.0
_QUIET_ROUNDS = 3

# Set in a process that was forked from one that had loaded the library.
_FORKED = threading.Event()


def _note_fork() -> None:
    if "obstore" in sys.modules:
        _FORKED.set()


os.register_at_fork(after_in_child=_note_fork)


def _library(_: str) -> Any:
    """Return obstore's functions; a forked child loads a copy of its own.

    The library's threads stay in the process that started them, and a child that used the same
    copy would wait for them for ever.
    """
    from obstore import _obstore

    atexit.register(_leave_python)
    if not _FORKED.is_set():
        return _obstore
    if not hasattr(os, "memfd_create"):
        raise StorageError(
            "object stores cannot be used in a forked process on this system; start worker "
            "processes with multiprocessing_context='forkserver' or 'spawn'"
        )
    # Under a name of its own: one file is loaded only once.
    descriptor = os.memfd_create("obstore")
    try:
        with Path(str(_obstore.__file__)).open("rb") as file:
            os.sendfile(descriptor, file.fileno(), 0, os.fstat(file.fileno()).st_size)
        path = f"/proc/self/fd/{descriptor}"
        loader = ExtensionFileLoader(_obstore.__name__, path)
        spec = spec_from_file_location(_obstore.__name__, path, loader=loader)
        assert spec is not None  # noqa: S101 - for type checkers
        copy = module_from_spec(spec)
        loader.exec_module(copy)
        return copy
    finally:
        os.close(descriptor)


def _leave_python() -> None:
    """Wait at the process's end until the library's threads have left Python.

    They set results of requests, and what comes back to an interpreter that has begun to end
    aborts the process.
    """
    cancel_every_task()
    deadline = time.monotonic() + _LEAVING_S
    quiet = 0
    while quiet < _QUIET_ROUNDS and time.monotonic() < deadline:
        time.sleep(0.002)  # in which a thread that waits for the interpreter's lock gets it
        ours = {thread.ident for thread in threading.enumerate()}
        quiet = 0 if sys._current_frames().keys() - ours or _is_busy() else quiet + 1  # noqa: SLF001 - there is no public way


def _is_busy() -> bool:
    """Tell whether a thread of the library has something to do."""
    for file in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # ended meanwhile
            name, _, rest = file.read_text().rpartition(")")
            if "(tokio-rt" in name and rest.split()[0] == "R":
                return True
    return False


_LIBRARIES: PerProcess[str, Any] = PerProcess(_library)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How a client of one bucket is made; holds secrets, and is kept nowhere.

    Attributes:
        kind: Class of obstore: "S3Store", "GCSStore" or "AzureStore".
        bucket: Bucket or container.
        config: What the class takes beside.
        headers: Sent with each request.
        credentials: Called by obstore for credentials; None leaves them to it.
        hashed: Whether ETags may be MD5 of objects.
        timeout_s: Seconds to connect, and to wait between bytes.
        plain_http: Whether the server's address begins with "http://".
        verify_tls: Whether certificates are looked at.
        ca_certificate: File of certificates to trust beside the system's.
    """

    kind: str
    bucket: str
    config: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    credentials: Callable[[], dict[str, Any]] | None = None
    hashed: bool = True
    timeout_s: float
    plain_http: bool
    verify_tls: bool
    ca_certificate: str | None


def open_client(settings: ClientSettings, endpoint: Endpoint, tries: int = 1) -> "Client":
    """Make a client; nothing is connected yet.

    Args:
        settings: What to connect to, and how.
        endpoint: Limits on requests to the server.
        tries: How often the client itself sends a part of a large object. Any other request it
            sends once: ours is the loop that sends it again, which knows the limits.
    """
    library = _LIBRARIES.get("obstore")
    wait = timedelta(seconds=settings.timeout_s)
    options: dict[str, Any] = {
        "timeout": _NO_TIMEOUT, "connect_timeout": wait, "read_timeout": wait,
        "allow_http": settings.plain_http, "allow_invalid_certificates": not settings.verify_tls,
        "default_headers": settings.headers,
    }  # fmt: skip
    if settings.ca_certificate:
        options["root_certificate"] = _certificates(settings.ca_certificate)

    def store(retries: int) -> Any:
        given: dict[str, Any] = {
            "config": settings.config,
            "client_options": options,
            "retry_config": {"max_retries": retries, "retry_timeout": _NO_TIMEOUT},
        }
        if settings.credentials is not None:
            given["credential_provider"] = settings.credentials
        return getattr(library._store, settings.kind)(settings.bucket, **given)  # noqa: SLF001 - as obstore.store has it

    return Client(library, store(0), lambda: store(tries - 1), endpoint, settings.hashed)


def _certificates(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise StorageError(
            f"storage.ca_certificate={file!r} cannot be read ({error.strerror}); name a PEM file"
        ) from error


class Client:
    """Requests to one bucket, each sent once; for the loop of `event_loop.run`.

    They raise what obstore raises, and ContentMismatchError for bytes that are not those that
    the ETag was made of.

    Attributes:
        endpoint: Limits on requests to the server.
    """

    def __init__(
        self,
        library: Any,
        store: Any,
        patient: Callable[[], Any],
        endpoint: Endpoint,
        hashed: bool,
    ) -> None:
        """Keep what is open.

        Args:
            library: obstore's functions, as this process may use them.
            store: Bucket that each request goes to once.
            patient: Makes one that sends a request again by itself.
            endpoint: Limits on requests to the server.
            hashed: Whether ETags may be MD5 of objects.
        """
        self._library, self._store, self._patient = library, store, patient
        self.endpoint = endpoint
        self._hashed = hashed

    async def head(self, path: str) -> dict[str, Any]:
        """Return size and ETag of an object, as `size` and `e_tag`."""
        found: dict[str, Any] = await self._library.head_async(self._store, path)
        return found

    async def read(
        self, path: str, start: int, length: int | None, progress: TransferProgress, verify: bool
    ) -> bytes:
        """Return an object's bytes, or a span that is not empty.

        Args:
            path: The object.
            start: First byte.
            length: Number of bytes; None to the end.
            progress: Told of every piece.
            verify: Compare whole objects with their ETag, where that is an MD5.
        """
        pieces: list[bytes] = []

        async def keep(_: int, some: Sequence[bytes | memoryview]) -> None:
            """Copy what the client holds."""
            pieces.extend(bytes(piece) for piece in some)

        await self.stream(path, start, length, progress, keep, verify)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def stream(
        self,
        path: str,
        start: int,
        length: int | None,
        progress: TransferProgress,
        hand: Callable[[int, Sequence[bytes | memoryview]], Any],
        verify: bool,
    ) -> int:
        """Hand a span's bytes on as they come, each piece awaited; return how many it was.

        See `read` for the arguments; `hand` takes the first byte in the span and pieces from there
        on, and has taken some already when an error comes.
        """
        try:
            if length is not None and length <= _PIECE:  # one call instead of two
                data = await self._library.get_range_async(
                    self._store, path, start=start, length=length
                )
                progress.received(len(data))
                await hand(0, [memoryview(data)])
                return len(data)
            return await self._stream(path, start, length, progress, hand, verify)
        except Exception as error:
            said = str(error)
            if any(phrase in said for phrase in _BEYOND_END):
                return 0
            if _NO_SPANS not in said:
                raise
        whole = await self.read(path, 0, None, progress, verify)
        data = slice_bytes(whole, start, length)
        await hand(0, [data])
        return len(data)

    async def _stream(
        self,
        path: str,
        start: int,
        length: int | None,
        progress: TransferProgress,
        hand: Callable[[int, Sequence[bytes | memoryview]], Any],
        verify: bool,
    ) -> int:
        span = {"range": {"offset": start} if length is None else (start, start + length)}
        options = span if start or length is not None else None
        answer = await self._library.get_async(self._store, path, options=options)
        first, end = answer.range
        wanted = None
        if verify and self._hashed and first == 0 and end == answer.meta["size"]:
            wanted = _MD5.fullmatch(answer.meta["e_tag"] or "")
        md5 = hashlib.md5(usedforsecurity=False)
        size = 0
        async for piece in _pieces(answer, end - first):
            progress.received(len(piece))
            if wanted is not None:
                if len(piece) > _HASHED_IN_LOOP:
                    await asyncio.to_thread(md5.update, piece)
                else:
                    md5.update(piece)
            await hand(size, [piece])
            size += len(piece)
        if wanted is not None and md5.hexdigest() != wanted[1].lower():
            await self._compare(path, size, md5.hexdigest(), wanted[1])
        return size

    async def _compare(self, path: str, size: int, found: str, wanted: str) -> None:
        """Raise, unless the server encrypts objects under keys of its own, for others' ETags."""
        if await asyncio.to_thread(self._is_encrypted, path):
            self._hashed = False
            return
        raise ContentMismatchError(
            f"{size} bytes came whose MD5 is {found}, and the server's ETag says {wanted}; upload "
            "the object anew, or, if this server's ETags are no MD5, set "
            "storage.verify_checksum=false"
        )

    def _is_encrypted(self, path: str) -> bool:
        """Tell whether an object's ETag is no MD5, since it is encrypted under a key of its own.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html. The client does not show
        the headers that say it, and a signed URL is asked instead.
        """
        import urllib3

        try:
            url = self._library.sign(self._store, "HEAD", path, timedelta(minutes=1))
            said = urllib3.request("HEAD", str(url), timeout=5, retries=False).headers
        except Exception:  # noqa: BLE001 - what cannot be asked is not said, and the bytes stay wrong
            return False
        own_key = "x-amz-server-side-encryption-customer-algorithm" in said
        return own_key or said.get("x-amz-server-side-encryption", "AES256") != "AES256"

    async def write(self, path: str, data: bytes, part_bytes: int | None) -> None:
        """Store an object whole or not at all.

        Args:
            path: The object.
            data: Its bytes.
            part_bytes: Bytes of a part, of which four are sent side by side; None sends one whole.
        """
        if part_bytes is None:
            await self._library.put_async(self._store, path, data, use_multipart=False)
        else:
            await self._library.put_async(
                self._patient(), path, data, use_multipart=True, chunk_size=part_bytes,
                max_concurrency=4,
            )  # fmt: skip

    async def delete(self, path: str) -> None:
        """Remove an object; an absent one is no error."""
        try:
            await self._library.delete_async(self._store, path)
        except FileNotFoundError as error:
            if any(code in str(error) for code in _NO_BUCKET):
                raise

    def pages(self, prefix: str, after: str | None = None) -> Any:
        """Return an asynchronous iterator of Arrow record batches: what lies below a prefix.

        Args:
            prefix: Folder, without a slash at its end; "" for all.
            after: Key that the first one follows.
        """
        return self._library.list(
            self._store, prefix or None, offset=after, chunk_size=_PAGE, return_arrow=True
        )


async def _pieces(answer: Any, size: int) -> AsyncIterator[bytes | memoryview]:
    """Receive a body: in one piece, or as it comes."""
    if size <= _PIECE:
        yield memoryview(await answer.bytes_async())
        return
    async for piece in answer.stream(_PIECE):
        yield piece


async def hand_in_thread(
    put: Callable[[int, Sequence[bytes | memoryview]], None],
    at: int,
    pieces: Sequence[bytes | memoryview],
) -> None:
    """Hand pieces on in a thread that may wait for a disk."""
    await run_in_disk_thread(put, at, pieces)
