"""What storages in buckets of object stores share, whoever keeps the bucket."""

import asyncio
import logging
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from factory.errors import ObjectNotFoundError, StorageError
from factory.limits import Above, AtLeast, check_limits
from factory.records import ObjectInfo
from factory.storage.base import Put, Span, Storage, safe_key
from factory.storage.endpoint_limits import endpoint
from factory.storage.event_loop import OrderedRequests, TransferProgress, run, send_with_retries
from factory.storage.keys import (
    check_span,
    safe_prefix,
    strip_prefix,
    temporary_name,
)
from factory.storage.object_store.client import Client, ClientSettings, hand_in_thread, open_client
from factory.storage.object_store.errors import (
    FailedCall,
    StoreTerms,
    bad_bucket,
    fault_of,
    not_its_protocol,
    storage_error,
)
from factory.storage.per_process import PerProcess
from factory.storage.retry import RetryLimits

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A check makes one attempt of at most this long, and gives up as a whole after CHECK_S:
# the contract's 10 seconds, less a second to report.
CHECK_ATTEMPT_S = 4.0
CHECK_S = 9.0

# Larger objects go up in parts, sent side by side and retried one by one; 64 MiB is well
# above a picture or a tensor shard and well below the 5 GiB that one PUT may carry.
ONE_PUT_BYTES = 64 * 2**20
# Reads begun before the first of them is taken, for each connection: when one ends, the next
# one is there already, and no more than this many results wait in memory.
_AHEAD = 2
# What one call asks for ahead where spans are large, bytes: who needs a few rows waits behind no
# more of each other call. And spans, where they are larger still: one lands while others come.
_ASKED_BYTES = 64 * 2**20
_ASKED_SPANS = 4
_BUCKET = re.compile(r"[\w.$-]+", re.ASCII)
# What the client says of a listing that holds a key like "a//b".
_BAD_KEYS = ("contained empty path segment", "Encountered illegal character")

_Send = Callable[[Client, TransferProgress], Awaitable[T]]


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """Objects below a prefix of a bucket.

    Attributes:
        bucket: Name of the bucket.
        prefix: Folder in the bucket that keys are relative to. "" is the whole bucket.
        endpoint_url: Server's URL; None for the provider's own.
        max_attempts: Tries per request, the first included. Waits between them grow.
        timeout_s: Seconds to connect, and to wait between bytes.
        max_connections: Requests at once to this server, per process. The largest of all storages
            on that server counts.
        deadline_s: Seconds for all tries of a request; 1 more per MiB received. Waits between them
            count, too.
        verify_checksum: Compare whole objects with their ETag where it is an MD5.
        anonymous: Send requests unsigned, as public buckets take them; no credentials are looked
            for.
        verify_tls: Refuse servers whose certificate is not trusted.
        ca_certificate: PEM file of certificates to trust beside the system's.
    """

    # As many as go out at once by default, eight times over: the last ones of a call leave
    # connections idle, and this keeps that below an eighth of the time.
    spans_at_once: ClassVar[int] = 256
    terms: ClassVar[StoreTerms]

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    # Where one request in five fails at random, one read in 3000 fails.
    max_attempts: Annotated[int, AtLeast(1)] = 5
    timeout_s: Annotated[float, Above(0)] = 5.0
    max_connections: Annotated[int, AtLeast(1)] = 32
    # Five tries that each wait `timeout_s` and follow a Retry-After fit in; and five requests
    # one after another end before `prefetch.timeout_s`, so that the error is the storage's.
    deadline_s: Annotated[float, Above(0)] = 60.0
    verify_checksum: bool = True
    anonymous: bool = False
    verify_tls: bool = True
    ca_certificate: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that no server could accept, and secrets in the address."""
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url, self.terms.keys)
        if "/" in self.bucket or ":" in self.bucket:
            raise ValueError(
                f"storage.bucket={self.bucket!r} must be a bare {self.terms.bucket} name; "
                "put the rest into storage.prefix"
            )
        strip_prefix(self.prefix)
        check_limits(self, "storage")

    @property
    @abstractmethod
    def _uri(self) -> str:
        """URI of the bucket, without a slash at its end."""

    @property
    @abstractmethod
    def _default_server(self) -> str:
        """What errors call the server where no endpoint is set."""

    @abstractmethod
    def _connection(self, call: FailedCall) -> tuple[str, dict[str, Any]]:
        """Return the server's URL, and arguments of `ClientSettings` that the kind knows of."""

    @property
    def identity(self) -> str:
        """Bucket and prefix as a URI; the server's address follows if one is set."""
        server = f"?endpoint={self.endpoint_url.rstrip('/')}" if self.endpoint_url else ""
        return f"{self._uri}/{strip_prefix(self.prefix)}".rstrip("/") + server

    @property
    def remote(self) -> bool:
        """True: reads wait for a server."""
        return True

    @property
    def _root(self) -> str:
        prefix = strip_prefix(self.prefix)
        return prefix + "/" if prefix else ""

    def _full(self, key: str) -> str:
        return self._root + safe_key(key)

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a prefix, page by page, with sizes and ETags.

        Keys that are no paths in normal form ("a//b") are left out, with a warning: asked for,
        they would be taken for others ("a/b").

        Raises:
            ObjectNotFoundError: There is no such bucket, or nothing lies below the prefix.
        """
        for page in self._pages(prefix):
            columns = (column.to_pylist() for column in page.columns)
            yield from map(ObjectInfo, *columns)

    def listing(self, prefix: str = "") -> "pa.Table":
        """Return every object below a prefix as columns; see `objects` and `Storage.listing`.

        Raises:
            ObjectNotFoundError: There is no such bucket, or nothing lies below the prefix.
        """
        from factory.storage.listing import sorted_by_key

        return sorted_by_key(list(self._pages(prefix)))

    def _pages(self, prefix: str) -> "Iterator[pa.RecordBatch]":
        """Yield columns of a listing, as many keys at once as the server gives."""
        from factory.storage.object_store.pages import Pages

        folder = safe_prefix(prefix)
        start = self._root + (folder + "/" if folder else "")
        failed = self._failed("list", start)
        pages = Pages(start, len(self._root))
        found = False
        try:
            while (page := self._do(failed, pages.next)) is not None:
                found = True
                yield self._without_folder_marks(page)
        except StorageError as error:
            said = str(error.__cause__)
            if not any(phrase in said for phrase in _BAD_KEYS):
                raise
            for page in self._odd_pages(start, pages.last, failed):
                found = True
                yield page
        if start and not found:
            raise ObjectNotFoundError(
                f"nothing lies below {self._uri}/{start} on {self._server}; "
                "correct the path (or storage.prefix)"
            )

    def _without_folder_marks(self, page: "pa.RecordBatch") -> "pa.RecordBatch":
        from factory.storage.object_store.pages import folder_marks

        marks, doubtful = folder_marks(page)
        marks += [row for row in doubtful if not self.exists(page["key"][row].as_py())]
        return page.filter([row not in marks for row in range(len(page))]) if marks else page

    def _odd_pages(
        self, start: str, after: str | None, failed: FailedCall
    ) -> "Iterator[pa.RecordBatch]":
        """Yield what lies below a prefix where the client takes no listing that holds odd keys."""
        del start, after
        raise StorageError(
            f"cannot {failed.action}: it holds keys that are no paths in normal form, such as "
            "'a//b' or 'a/../b', which object stores of this kind cannot be listed with here; "
            "rename such objects"
        )

    def _warn_of_odd(self, keys: Sequence[str]) -> None:
        if keys:
            logger.warning(
                "%s: %d keys such as %r are no paths in normal form and not listed; rename such "
                "objects", self.identity, len(keys), keys[0],
            )  # fmt: skip

    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        full = self._full(key)
        said = self._do(self._failed("read", full, key), lambda client, _: client.head(full))
        return ObjectInfo(safe_key(key), int(said["size"]), (said["e_tag"] or "").strip('"'))

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes, or a span of them by a ranged request.

        Raises:
            ObjectNotFoundError: There is no such object.
            AccessDeniedError: The credentials are missing, wrong or too weak.
            StorageUnavailableError: The server is down, refuses, or is too slow.
        """
        check_span(start, length)
        if length == 0:  # no range can say "nothing", but a missing object is still an error
            self.head(key)
            return b""
        full = self._full(key)
        return self._do(self._failed("read", full, key), self._reader(full, start, length))

    def _reader(self, full: str, start: int, length: int | None) -> "_Send[bytes]":
        """Return what sends one request for a span that is not empty."""

        async def send(client: Client, progress: TransferProgress) -> bytes:
            return await client.read(full, start, length, progress, self.verify_checksum)

        return send

    def _pourer(
        self, put: Callable[..., None], full: str, start: int, length: int | None
    ) -> "_Send[int]":
        """Return what sends one request for a span that is not empty, and hands its bytes on."""
        hand = partial(hand_in_thread, put)

        async def send(client: Client, progress: TransferProgress) -> int:
            return await client.stream(full, start, length, progress, hand, self.verify_checksum)

        return send

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, asked for side by side; see `Storage`."""
        ahead = _AHEAD * self.max_connections
        return OrderedRequests(partial(self._one, self._client, self._reader, b""), spans, ahead)

    def read_to(self, spans: Sequence[Span], put: Put) -> Generator[int | StorageError, None, None]:
        """Hand several spans on as they come, asked for side by side; see `Storage`."""
        client = self._client
        largest = max((length or _ASKED_BYTES for _, _, length in spans), default=1)
        ahead = min(_AHEAD * self.max_connections, max(_ASKED_SPANS, _ASKED_BYTES // largest))

        def begin(job: tuple[int, Span]) -> Coroutine[Any, Any, int | StorageError]:
            number, span = job
            return self._one(client, partial(self._pourer, partial(put, number)), 0, span)

        return OrderedRequests(begin, enumerate(spans), ahead)

    async def _one(
        self,
        client: Client,
        reader: "Callable[[str, int, int | None], _Send[T]]",
        nothing: T,
        span: Span,
    ) -> T | StorageError:
        """Read a span in the way that a reader does, or return what went wrong."""
        key, start, length = span
        check_span(start, length)
        try:
            full = self._full(key)
            if length == 0:
                await self._ask(client, lambda client, _: client.head(full))
                return nothing
            return await self._ask(client, reader(full, start, length))
        except StorageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - translated, and given in the span's place
            found = storage_error(error, self._failed("read", self._root + key, key))
            found.__cause__ = error
            return found

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store an object by one PUT, or in parts that become visible together.

        Raises:
            StorageError: A kind that says why the server did not take it.
        """
        full = self._full(key)
        parts = ONE_PUT_BYTES // 2 if len(data) > ONE_PUT_BYTES else None
        body = bytes(data)
        self._do(
            self._failed("write", full, key),
            lambda client, _: client.write(full, body, parts),
            len(data),
        )

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""
        full = self._full(key)
        self._do(self._failed("delete", full), lambda client, _: client.delete(full))

    def check(self, *, write: bool = False) -> None:
        """List one page of keys, and with `write` put and delete an empty object, within 10 s.

        Raises:
            ObjectNotFoundError: There is no such bucket.
            AccessDeniedError: The credentials are missing, wrong or too weak.
            StorageUnavailableError: The server is down, refuses, or does not answer.
        """
        key = self._root + temporary_name()
        failed = self._failed("write to" if write else "list", self._root)

        async def ask(client: Client) -> None:
            """Send the requests one after the other."""
            async with asyncio.timeout(CHECK_S):
                try:
                    await anext(client.pages(self._root.rstrip("/")))
                except StopAsyncIteration:
                    await _expect_nothing(client, key, failed)
                if write:
                    await client.write(key, b"", None)
                    await client.delete(key)

        # One attempt: a server that must be asked twice is worth hearing about now.
        once = replace(self, timeout_s=min(self.timeout_s, CHECK_ATTEMPT_S), max_attempts=1)
        try:
            run(ask(once._client))  # noqa: SLF001 - of the same class
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, failed) from error
        finally:
            once.close()

    def close(self) -> None:
        """Close this process's connections; they open again on use."""
        _CLIENTS.pop(self)

    @property
    def _server(self) -> str:
        return self.endpoint_url or self._default_server

    def _failed(self, verb: str, full: str, key: str = "") -> FailedCall:
        return FailedCall(f"{verb} {self._uri}/{full}", self.bucket, self._server, self.terms, key)

    @property
    def _client(self) -> Client:
        return _CLIENTS.get(self)

    def _do(self, failed: FailedCall, send: "_Send[T]", size: int = 0) -> T:
        """Send a request as often as it takes; `size` are the bytes that go with it."""
        try:
            return run(self._ask(self._client, send, size))
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, failed) from error

    async def _ask(self, client: Client, send: "_Send[T]", size: int = 0) -> T:
        async def once(progress: TransferProgress) -> T:
            progress.sent(size)
            return await send(client, progress)

        patience = RetryLimits(self.max_attempts, self.deadline_s)
        return await send_with_retries(once, fault_of, client.endpoint, patience)


async def _expect_nothing(client: Client, key: str, failed: FailedCall) -> None:
    """Raise if a server has an object that cannot be: servers of web pages list nothing, too."""
    try:
        await client.head(key)
    except FileNotFoundError:
        return
    raise not_its_protocol(failed)


def _open(storage: ObjectStorage) -> Client:
    failed = storage._failed("open", storage._root)  # noqa: SLF001 - a part of the class
    if not storage.bucket:
        raise StorageError(
            f"storage.bucket is empty; set it to the name of a {storage.terms.bucket}"
        )
    if not _BUCKET.fullmatch(storage.bucket):  # which the client would panic at
        raise bad_bucket(failed)
    url, kind = storage._connection(failed)  # noqa: SLF001 - as above
    settings = ClientSettings(
        bucket=storage.bucket,
        timeout_s=storage.timeout_s,
        plain_http=url.startswith("http://"),
        verify_tls=storage.verify_tls,
        ca_certificate=storage.ca_certificate,
        **kind,
    )
    return open_client(settings, endpoint(url, storage.max_connections), storage.max_attempts)


_CLIENTS: PerProcess[ObjectStorage, Client] = PerProcess(_open)


def _check_endpoint(url: str, keys: str) -> None:
    """Refuse an address that is none, or that holds a secret.

    Raises:
        ValueError: Says which, and how to fix it.
    """
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        sound = sound and not (parts.query or parts.fragment)
    except ValueError:
        secret, sound = "@" in url, False
    if secret:
        raise ValueError(
            "storage.endpoint_url holds a user or password; take them out and set "
            f"{keys} in the environment"
        )
    if not sound:
        raise ValueError(
            f"storage.endpoint_url={url!r} must look like 'http://host:port' or 'https://host'"
        )
