"""How are bytes kept in a bucket of an S3-compatible object store?"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from factory.errors import ObjectNotFoundError, StorageError
from factory.records import ObjectInfo
from factory.storage.base import Storage, safe_key
from factory.storage.opened import PerProcess
from factory.storage.rules import (
    check_span,
    is_listed,
    is_normal,
    safe_prefix,
    strip_prefix,
    temporary_name,
)
from factory.storage.s3_errors import Attempt, not_s3, storage_error

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


@dataclass(frozen=True)
class S3Storage(Storage):
    """Objects below a prefix of a bucket.

    Credentials come from the environment or the SDK's own chain, and are no setting. With
    an endpoint of your own, the EC2 metadata service is not asked for them (it would only
    cost time) unless AWS_EC2_METADATA_DISABLED is set to "false".

    Attributes:
        bucket: Name of the bucket.
        prefix: Folder-like start of every key; "" for the whole bucket.
        endpoint_url: Address of a server other than AWS, such as "http://127.0.0.1:8333".
        region: Region of the bucket; the SDK's own setting where None.
        max_attempts: Tries of one request in all, with growing waits between them.
        timeout_s: Seconds to wait for a connection, and for the next bytes of an answer.
        max_connections: Requests under way at once, for each process.
    """

    # As many as go out at once by default, eight times over: the last ones of a call leave
    # connections idle, and this keeps that below an eighth of the time.
    spans_at_once: ClassVar[int] = 256

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    max_attempts: int = 3
    timeout_s: float = 5.0
    max_connections: int = 32

    def __post_init__(self) -> None:
        """Refuse settings that no server could accept, and secrets in the address."""
        if self.endpoint_url:
            _check_endpoint(self.endpoint_url)
        if "/" in self.bucket or ":" in self.bucket:
            raise ValueError(
                f"storage.bucket={self.bucket!r} must be a bare bucket name; "
                "put the rest into storage.prefix"
            )
        strip_prefix(self.prefix)
        if self.max_attempts < 1 or self.timeout_s <= 0 or self.max_connections < 1:
            raise ValueError(
                f"storage.max_attempts={self.max_attempts} and "
                f"storage.max_connections={self.max_connections} must be at least 1, "
                f"storage.timeout_s={self.timeout_s} above 0"
            )

    @property
    def identity(self) -> str:
        """Bucket and prefix as an "s3://" URI; the server's address follows if one is set."""
        server = f"?endpoint={self.endpoint_url.rstrip('/')}" if self.endpoint_url else ""
        return f"s3://{self.bucket}/{strip_prefix(self.prefix)}".rstrip("/") + server

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
        request = self._request(full, start, length)

        async def fetch(client: "AioBaseClient") -> bytes:
            """Send the request."""
            return await _get(client, request, self.max_attempts)

        return self._do(self._attempt("read", full, key), fetch)

    def _request(self, full: str, start: int, length: int | None) -> dict[str, str]:
        request = {"Bucket": self.bucket, "Key": full}
        if start or length is not None:
            request["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        return request

    def read_many(self, spans: Sequence[tuple[str, int, int]]) -> Iterator[bytes | StorageError]:
        """Yield several spans in their order, asked for side by side; see `Storage`."""

        async def fetch_all(client: "AioBaseClient") -> list[bytes | StorageError]:
            """Send every request; the pool of connections bounds how many are under way."""
            return await asyncio.gather(*(self._fetch_one(client, span) for span in spans))

        return iter(self._do(self._attempt("read", self._root), fetch_all))

    async def _fetch_one(
        self, client: "AioBaseClient", span: tuple[str, int, int]
    ) -> bytes | StorageError:
        key, start, length = span
        check_span(start, length)
        try:
            full = self._full(key)
            if length == 0:
                await client.head_object(Bucket=self.bucket, Key=full)
                return b""
            return await _get(client, self._request(full, start, length), self.max_attempts)
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
        if len(data) <= ONE_PUT_BYTES:
            self._call(attempt, "put_object", Bucket=self.bucket, Key=full, Body=bytes(data))
            return
        if "?versionId=" in full:
            # s3fs would take the rest of the key for a version and write elsewhere.
            raise StorageError(f"cannot {attempt.action}: '?versionId=' in a large object's key")
        try:
            files = self._filesystem()
            files.pipe_file(f"{self.bucket}/{full}", bytes(data), chunksize=ONE_PUT_BYTES // 2)
        except Exception as error:
            raise storage_error(_root_cause(error), attempt) from error

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
        hurried = replace(self, max_attempts=1, timeout_s=min(self.timeout_s, CHECK_ATTEMPT_S))
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
            files = _open(hurried)
            _run(files, ask, CHECK_S)
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, attempt) from error
        finally:
            _close(files)

    def close(self) -> None:
        """Close this process's connections; they open again on use."""
        _close(_FILESYSTEMS.pop(self))

    @property
    def _server(self) -> str:
        # What stands before "@" in the environment's address may be a password.
        return self.endpoint_url or _environment_endpoint().rpartition("@")[2] or "AWS"

    def _attempt(self, verb: str, full: str, key: str = "") -> Attempt:
        where = f"s3://{self.bucket}/{full}"
        return Attempt(f"{verb} {where}", self.bucket, self._server, key)

    def _check_bucket(self) -> None:
        if not self.bucket:
            raise StorageError("storage.bucket is empty; set it to the name of a bucket")

    def _filesystem(self) -> "S3FileSystem":
        self._check_bucket()
        return _FILESYSTEMS.get(self)

    def _call(self, attempt: Attempt, method: str, **request: object) -> dict[str, Any]:
        async def ask(client: "AioBaseClient") -> dict[str, Any]:
            answer: dict[str, Any] = await getattr(client, method)(**request)
            return answer

        return self._do(attempt, ask)

    def _do(self, attempt: Attempt, operation: "Callable[[AioBaseClient], Awaitable[T]]") -> T:
        try:
            return _run(self._filesystem(), operation)
        except StorageError:
            raise
        except Exception as error:
            raise storage_error(error, attempt) from error


def _run(
    files: "S3FileSystem",
    operation: "Callable[[AioBaseClient], Awaitable[T]]",
    timeout: float | None = None,
) -> T:
    """Run an operation on the client, in the loop of s3fs, and wait for its result."""
    from fsspec.asyn import sync

    async def run() -> T:
        # The client is made inside, so that the deadline covers the search for credentials.
        return await operation(await files.set_session())

    result: T = sync(files.loop, run, timeout=timeout)
    return result


def _close(files: "S3FileSystem | None") -> None:
    # Not the public `s3`, which would connect first where nothing is connected yet.
    client = None if files is None else files._s3  # noqa: SLF001
    if files is not None and client is not None:
        from fsspec.asyn import sync

        # Nothing is lost when it fails: the process's end closes the sockets too.
        with suppress(Exception):
            sync(files.loop, client.close, timeout=1)


async def _get(client: "AioBaseClient", request: dict[str, str], attempts: int) -> bytes:
    """Fetch a body; botocore retries up to its first byte, this from there on."""
    import aiohttp
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

    broken = (aiohttp.ClientError, HTTPClientError, IncompleteReadError, OSError)
    try:
        for left in range(attempts - 1, -1, -1):
            answer = await client.get_object(**request)
            try:
                async with answer["Body"] as body:
                    return bytes(await body.read())
            except broken:
                if not left:
                    raise
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != _RANGE_BEYOND_END:
            raise
    return b""


# HTTP's "range not satisfiable": the object exists, and ends before the span starts.
_RANGE_BEYOND_END = 416


def _open(storage: S3Storage) -> "S3FileSystem":
    """Make the file system of one storage in this process; nothing is connected yet."""
    from aiobotocore.session import AioSession
    from s3fs import S3FileSystem

    session = AioSession()
    settings: dict[str, Any] = {
        "connect_timeout": storage.timeout_s,
        "read_timeout": storage.timeout_s,
        "retries": {"total_max_attempts": storage.max_attempts, "mode": "standard"},
        "max_pool_connections": storage.max_connections,
    }
    if storage.endpoint_url or _environment_endpoint():
        if "AWS_EC2_METADATA_DISABLED" not in os.environ:
            session.get_component("credential_provider").remove("iam-role")
        # Checksums beyond what S3 once asked for: AWS's default, unknown to many servers.
        settings["request_checksum_calculation"] = "when_required"
        settings["response_checksum_validation"] = "when_required"
    files = S3FileSystem(
        endpoint_url=storage.endpoint_url,
        session=session,
        client_kwargs={"region_name": storage.region} if storage.region else None,
        config_kwargs=settings,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    # s3fs would retry on top of botocore, which multiplies the attempts.
    files.retries = 1
    return files


def _environment_endpoint() -> str:
    """Return the server that the SDK takes from the environment; "" for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


_FILESYSTEMS: PerProcess[S3Storage, "S3FileSystem"] = PerProcess(_open)


def _check_endpoint(url: str) -> None:
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
            "AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY in the environment"
        )
    if not sound:
        raise ValueError(
            f"storage.endpoint_url={url!r} must look like 'http://host:port' or 'https://host'"
        )


def _caused(error: StorageError, cause: Exception) -> StorageError:
    """Return an error that is not raised here with what caused it."""
    error.__cause__ = cause
    return error


def _root_cause(error: Exception) -> Exception:
    """Return the client's own error that s3fs dressed as one of the system's."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
