"""Buckets of S3-compatible object stores as a storage."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from factory.errors import ObjectNotFoundError, StorageError
from factory.limits import Above, AtLeast, check_limits
from factory.records import ObjectInfo
from factory.storage.base import Put, Span, Storage, safe_key
from factory.storage.endpoint_limits import Endpoint, endpoint
from factory.storage.event_loop import OrderedRequests, TransferProgress, run, send_with_retries
from factory.storage.keys import (
    check_span,
    is_listed,
    is_normal,
    safe_prefix,
    strip_prefix,
    temporary_name,
)
from factory.storage.per_process import PerProcess
from factory.storage.retry import RetryLimits
from factory.storage.s3.body import get, put_in_parts, stream_to
from factory.storage.s3.client import (
    check_endpoint,
    close_files,
    environment_endpoint,
    open_files,
    run_within,
)
from factory.storage.s3.s3_errors import FailedCall, fault_of, not_s3, storage_error

if TYPE_CHECKING:
    from aiobotocore.client import AioBaseClient
    from s3fs import S3FileSystem

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


@dataclass(frozen=True)
class S3Storage(Storage):
    """Objects below a prefix of a bucket.

    Credentials come from the environment or the SDK's own chain, and are no setting. With
    an endpoint of your own, the EC2 metadata service is not asked for them (it would only
    cost time) unless AWS_EC2_METADATA_DISABLED is set to "false".

    Attributes:
        bucket: Name of the bucket.
        prefix: Folder in the bucket that keys are relative to. "" is the whole bucket.
        endpoint_url: Server's URL (S3_ENDPOINT_URL); None for AWS itself.
        region: Region; None follows AWS_DEFAULT_REGION.
        max_attempts: Tries per request, the first included. Waits between them grow.
        timeout_s: Seconds to connect, and to wait between bytes.
        max_connections: Requests at once to this server, per process. The largest of all storages
            on that server counts.
        deadline_s: Seconds for all tries of a request; 1 more per MiB received. Waits between them
            count, too.
        verify_checksum: Compare whole objects with their ETag where it is an MD5.
    """

    # As many as go out at once by default, eight times over: the last ones of a call leave
    # connections idle, and this keeps that below an eighth of the time.
    spans_at_once: ClassVar[int] = 256

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    # Where one request in five fails at random, one read in 3000 fails.
    max_attempts: Annotated[int, AtLeast(1)] = 5
    timeout_s: Annotated[float, Above(0)] = 5.0
    max_connections: Annotated[int, AtLeast(1)] = 32
    # Five tries that each wait `timeout_s` and follow a Retry-After fit in; and five requests
    # one after another end before `prefetch.timeout_s`, so that the error is the storage's.
    deadline_s: Annotated[float, Above(0)] = 60.0
    verify_checksum: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that no server could accept, and secrets in the address."""
        if self.endpoint_url:
            check_endpoint(self.endpoint_url)
        if "/" in self.bucket or ":" in self.bucket:
            raise ValueError(
                f"storage.bucket={self.bucket!r} must be a bare bucket name; "
                "put the rest into storage.prefix"
            )
        strip_prefix(self.prefix)
        check_limits(self, "storage")

    @property
    def identity(self) -> str:
        """Bucket and prefix as an "s3://" URI; the server's address follows if one is set."""
        server = f"?endpoint={self.endpoint_url.rstrip('/')}" if self.endpoint_url else ""
        return f"s3://{self.bucket}/{strip_prefix(self.prefix)}".rstrip("/") + server

    @property
    def remote(self) -> bool:
        """True: reads wait for a server."""
        return True

    def _full(self, key: str) -> str:
        return self._root + safe_key(key)

    @property
    def _root(self) -> str:
        prefix = strip_prefix(self.prefix)
        return prefix + "/" if prefix else ""

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a prefix, page by page, with sizes and ETags.

        Keys that are no paths in normal form ("a//b") are left out, with a warning: asked for,
        they would be taken for others ("a/b").

        Raises:
            ObjectNotFoundError: There is no such bucket, or nothing lies below the prefix.
        """
        folder = safe_prefix(prefix)
        start = self._root + (folder + "/" if folder else "")
        attempt = self._attempt("list", start)
        found, odd = False, 0
        request = {"Bucket": self.bucket, "Prefix": start}
        while request:
            page = self._call(attempt, "list_objects_v2", **request)
            for entry in page.get("Contents", ()):
                found = True
                key = entry["Key"][len(self._root) :]
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
                    yield ObjectInfo(key, int(entry["Size"]), entry["ETag"].strip('"'))
            more = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            request = {**request, "ContinuationToken": more} if more else {}
        if start and not found:
            raise ObjectNotFoundError(
                f"nothing lies below s3://{self.bucket}/{start} on {self._server}; "
                "correct the path (or storage.prefix)"
            )

    def head(self, key: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectNotFoundError: There is no such object.
        """
        full = self._full(key)
        said = self._call(
            self._attempt("read", full, key), "head_object", Bucket=self.bucket, Key=full
        )
        return ObjectInfo(safe_key(key), int(said["ContentLength"]), said["ETag"].strip('"'))

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
        return self._do(self._attempt("read", full, key), self._reader(full, start, length))

    def _reader(self, full: str, start: int, length: int | None) -> "_Send[bytes]":
        """Return what sends one request for a span that is not empty."""
        request = self._request(full, start, length)
        verify = self.verify_checksum

        async def send(client: "AioBaseClient", progress: TransferProgress) -> bytes:
            return await get(client, request, progress, start=start, length=length, verify=verify)

        return send

    def _request(self, full: str, start: int, length: int | None) -> dict[str, str]:
        request = {"Bucket": self.bucket, "Key": full}
        if start or length is not None:
            request["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        return request

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Yield several spans in their order, asked for side by side; see `Storage`."""
        server = self._filesystem(), self._endpoint
        ahead = _AHEAD * self.max_connections
        return OrderedRequests(
            lambda span: self._one(span, self._reader, b"", server), spans, ahead
        )

    def read_to(self, spans: Sequence[Span], put: Put) -> Generator[int | StorageError, None, None]:
        """Hand several spans on as they come, asked for side by side; see `Storage`."""
        server = self._filesystem(), self._endpoint
        largest = max((length or _ASKED_BYTES for _, _, length in spans), default=1)
        ahead = min(_AHEAD * self.max_connections, max(_ASKED_SPANS, _ASKED_BYTES // largest))

        def begin(job: tuple[int, Span]) -> Coroutine[Any, Any, int | StorageError]:
            number, span = job
            return self._one(span, partial(self._pourer, partial(put, number)), 0, server)

        return OrderedRequests(begin, enumerate(spans), ahead)

    def _pourer(
        self, put: Callable[[int, Sequence[bytes]], None], full: str, start: int, length: int | None
    ) -> "_Send[int]":
        """Return what sends one request for a span that is not empty, and hands its bytes on."""
        request = self._request(full, start, length)
        verify = self.verify_checksum

        async def send(client: "AioBaseClient", progress: TransferProgress) -> int:
            return await stream_to(
                client, request, progress, put, start=start, length=length, verify=verify
            )

        return send

    async def _one(
        self,
        span: Span,
        reader: "Callable[[str, int, int | None], _Send[T]]",
        nothing: T,
        server: "tuple[S3FileSystem, Endpoint]",
    ) -> T | StorageError:
        """Read a span in the way that a reader does, or return what went wrong."""
        key, start, length = span
        check_span(start, length)
        try:
            full = self._full(key)
            if length == 0:
                await self._ask(_call("head_object", Bucket=self.bucket, Key=full), server=server)
                return nothing
            return await self._ask(reader(full, start, length), server=server)
        except StorageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - translated, and given in the span's place
            attempt = self._attempt("read", self._root + key, key)
            return _caused(storage_error(error, attempt), error)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Store an object by one PUT, or in parts that become visible together.

        Raises:
            StorageError: A kind that says why the server did not take it.
        """
        full = self._full(key)
        attempt = self._attempt("write", full, key)
        target = {"Bucket": self.bucket, "Key": full}
        try:
            self._filesystem()
            if len(data) > ONE_PUT_BYTES:
                run(put_in_parts(self._ask_method, target, data, ONE_PUT_BYTES // 2))
            else:
                run(self._ask_method("put_object", len(data), **target, Body=bytes(data)))
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, attempt) from error

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""
        full = self._full(key)
        self._call(self._attempt("delete", full), "delete_object", Bucket=self.bucket, Key=full)

    def check(self, *, write: bool = False) -> None:
        """List one key, and with `write` put and delete an empty object, within 10 seconds.

        Raises:
            ObjectNotFoundError: There is no such bucket.
            AccessDeniedError: The credentials are missing, wrong or too weak.
            StorageUnavailableError: The server is down, refuses, or does not answer.
        """
        # One attempt: a server that must be asked twice is worth hearing about now.
        key = self._root + temporary_name()
        attempt = self._attempt("write to" if write else "list", self._root)

        async def ask(client: "AioBaseClient") -> None:
            """Send the requests one after the other."""
            page = await client.list_objects_v2(Bucket=self.bucket, Prefix=self._root, MaxKeys=1)
            if "Name" not in page:  # S3 repeats the bucket's name; a web page parsed as XML not
                raise not_s3(attempt)
            if write:
                await client.put_object(Bucket=self.bucket, Key=key, Body=b"")
                await client.delete_object(Bucket=self.bucket, Key=key)

        files = None
        try:
            self._check_bucket()
            hurried_s = min(self.timeout_s, CHECK_ATTEMPT_S)
            files = open_files(self.endpoint_url, self.region, hurried_s, 1)
            run_within(files, ask, CHECK_S)
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, attempt) from error
        finally:
            close_files(files)

    def close(self) -> None:
        """Close this process's connections; they open again on use."""
        close_files(_FILESYSTEMS.pop(self))

    @property
    def _server(self) -> str:
        # What stands before "@" in the environment's address may be a password.
        return self.endpoint_url or environment_endpoint().rpartition("@")[2] or "AWS"

    def _attempt(self, verb: str, full: str, key: str = "") -> FailedCall:
        where = f"s3://{self.bucket}/{full}"
        return FailedCall(f"{verb} {where}", self.bucket, self._server, key)

    def _check_bucket(self) -> None:
        if not self.bucket:
            raise StorageError("storage.bucket is empty; set it to the name of a bucket")

    def _filesystem(self) -> "S3FileSystem":
        self._check_bucket()
        return _FILESYSTEMS.get(self)

    def _call(self, attempt: FailedCall, method: str, **request: object) -> dict[str, Any]:
        return self._do(attempt, _call(method, **request))

    def _do(self, attempt: FailedCall, send: "_Send[T]") -> T:
        try:
            self._filesystem()
            return run(self._ask(send))
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, attempt) from error

    async def _ask(
        self,
        send: "_Send[T]",
        size: int = 0,
        server: "tuple[S3FileSystem, Endpoint] | None" = None,
    ) -> T:
        """Send a request as often as it takes; `size` are the bytes that go with it."""
        files, budget = server or (self._filesystem(), self._endpoint)

        async def once(progress: TransferProgress) -> T:
            progress.sent(size)
            # Made inside, so that the deadline covers the search for credentials.
            return await send(await files.set_session(), progress)

        patience = RetryLimits(self.max_attempts, self.deadline_s)
        return await send_with_retries(once, fault_of, budget, patience)

    async def _ask_method(self, method: str, size: int = 0, /, **request: object) -> Any:
        return await self._ask(_call(method, **request), size)

    @property
    def _endpoint(self) -> Endpoint:
        """The budget of the server; all of AWS's S3 in a region is one."""
        region = f".{self.region}" if self.region else ""
        default = f"https://s3{region}.amazonaws.com"
        url = self.endpoint_url or environment_endpoint() or default
        return endpoint(url, self.max_connections)


_Send = Callable[["AioBaseClient", TransferProgress], Awaitable[T]]


def _call(method: str, **request: object) -> "_Send[dict[str, Any]]":
    """Return what sends one request of a client's method."""

    async def send(client: "AioBaseClient", progress: TransferProgress) -> dict[str, Any]:
        del progress
        answer: dict[str, Any] = await getattr(client, method)(**request)
        return answer

    return send


def _open(storage: S3Storage) -> "S3FileSystem":
    return open_files(
        storage.endpoint_url, storage.region, storage.timeout_s, storage.max_connections
    )


_FILESYSTEMS: PerProcess[S3Storage, "S3FileSystem"] = PerProcess(_open)


def _caused(error: StorageError, cause: Exception) -> StorageError:
    """Return an error that is not raised here with what caused it."""
    error.__cause__ = cause
    return error
