"""Bodies of S3 objects: which hash they are compared with, and what odd servers send."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import pytest

from factory.errors import ContentMismatchError
from factory.storage.s3.body import get, stored_md5, stream_to
from factory.storage.s3.s3_errors import fault_of

DATA = bytes(range(256)) * 1200  # more than is hashed in the loop
MD5 = hashlib.md5(DATA).hexdigest()


class Body:
    def __init__(self, data: bytes) -> None:
        self.left = data

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.left = b""

    async def read(self, most: int) -> bytes:
        part, self.left = self.left[:most], self.left[most:]
        return part


class Told:
    """Counts what it is told of."""

    size = 0

    def received(self, size: int) -> None:
        self.size += size


class Client:
    def __init__(self, data: bytes, **said: Any) -> None:
        self.said = {"ContentLength": len(data), "Body": Body(data), "ETag": f'"{MD5}"', **said}

    async def get_object(self, **request: str) -> dict[str, Any]:
        return self.said


Fetch = Callable[..., bytes]


def fetched(client: Client, bucket: str = "b", **options: Any) -> bytes:
    told = Told()
    request = {"Bucket": bucket, "Key": "k"}
    data = asyncio.run(get(client, request, told, **options))  # type: ignore[arg-type]
    assert told.size == client.said["ContentLength"]
    return data


def poured(client: Client, bucket: str = "b", **options: Any) -> bytes:
    told, got = Told(), bytearray()

    def put(at: int, pieces: Sequence[bytes]) -> None:
        assert at == len(got)
        got.extend(b"".join(pieces))

    request = {"Bucket": bucket, "Key": "k"}
    size = asyncio.run(stream_to(client, request, told, put, **options))  # type: ignore[arg-type]
    assert told.size == client.said["ContentLength"]
    assert size == len(got)
    return bytes(got)


@pytest.fixture(params=[fetched, poured])
def fetch(request: pytest.FixtureRequest) -> Fetch:
    """Each of the ways to take a body."""
    return request.param  # type: ignore[no-any-return]


def test_large_bodies_are_handed_on_in_parts() -> None:
    data = bytes(range(256)) * 2**14  # 4 MiB
    pieces: list[int] = []

    def put(at: int, some: Sequence[bytes]) -> None:
        pieces.append(sum(map(len, some)))

    client = Client(data, ETag="")
    request = {"Bucket": "b", "Key": "k"}
    assert asyncio.run(stream_to(client, request, Told(), put)) == len(data)  # type: ignore[arg-type]
    assert pieces == [2**20] * 4
    assert poured(Client(data, ETag="")) == data


def test_a_whole_object_is_compared(fetch: Fetch) -> None:
    assert fetch(Client(DATA)) == DATA
    with pytest.raises(ContentMismatchError, match=r"b/k: 307199 bytes.*verify_checksum=false"):
        fetch(Client(DATA[1:]))
    assert fetch(Client(DATA[1:]), verify=False) == DATA[1:]


def test_a_range_that_is_the_whole_object_is_compared_and_a_part_is_not(fetch: Fetch) -> None:
    whole = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
    with pytest.raises(ContentMismatchError):
        fetch(Client(DATA[:-1] + b"!", ContentRange=whole))
    part = f"bytes 0-9/{len(DATA)}"
    assert fetch(Client(DATA[5:15], ContentRange=part), length=10) == DATA[5:15]


def test_a_server_that_knows_no_ranges_sends_all_and_the_span_is_cut(fetch: Fetch) -> None:
    assert fetch(Client(DATA), start=7, length=5) == DATA[7:12]


def test_fewer_bytes_than_announced_may_pass(fetch: Fetch) -> None:
    client = Client(DATA)
    client.said["ContentLength"] += 1
    with pytest.raises(Exception, match="307201") as caught:
        fetch(client)
    assert fault_of(caught.value) is not None


@pytest.mark.parametrize(
    "said",
    [
        {"ETag": f'"{MD5}-3"'},  # of parts
        {"ETag": '"what-else"'},
        {"ETag": ""},
        {"ServerSideEncryption": "aws:kms"},
        {"ServerSideEncryption": "aws:kms:dsse"},
        {"SSEKMSKeyId": "k"},
        {"SSECustomerAlgorithm": "AES256"},
    ],
)
def test_etags_that_are_no_hash_of_the_content(said: dict[str, str]) -> None:
    answer = {"ETag": f'"{MD5}"', **said}
    assert stored_md5(answer) is None
    assert fetched(Client(DATA[1:], **said)) == DATA[1:]


def test_etags_that_are() -> None:
    for said in ({}, {"ServerSideEncryption": "AES256"}, {"ETag": f'"{MD5.upper()}"'}):
        assert stored_md5({"ETag": f'"{MD5}"', **said}) == MD5


def test_buckets_of_one_zone_have_other_etags() -> None:
    assert fetched(Client(DATA[1:]), bucket="fast--use1-az4--x-s3") == DATA[1:]


@pytest.mark.parametrize(
    ("status", "code", "passes", "throttled"),
    [
        (503, "SlowDown", True, True),
        (503, "", True, True),
        (429, "", True, True),
        (400, "RequestLimitExceeded", True, True),
        (400, "RequestTimeout", True, False),
        (400, "BadDigest", True, False),
        (408, "", True, False),
        (500, "InternalError", True, False),
        (502, "", True, False),
        (501, "NotImplemented", False, False),
        (507, "", False, False),
        (503, "XMinioStorageFull", False, False),
        (404, "NoSuchKey", False, False),
        (403, "AccessDenied", False, False),
        (403, "RequestTimeTooSkewed", False, False),
        (412, "PreconditionFailed", False, False),
    ],
)
def test_answers_that_may_pass(status: int, code: str, passes: bool, throttled: bool) -> None:
    from botocore.exceptions import ClientError

    said = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "4"}}
    answer = {"Error": {"Code": code}, "ResponseMetadata": said}
    fault = fault_of(ClientError(answer, "GetObject"))
    assert (fault is not None) == passes
    if fault is not None:
        assert (fault.throttled, fault.retry_after_s) == (throttled, 4.0)
        assert str(status) in fault.why
        assert code in fault.why


def test_failures_of_the_client_that_may_pass() -> None:
    import aiohttp
    from botocore import exceptions as boto

    slow = boto.ReadTimeoutError(endpoint_url="u")
    assert fault_of(slow).timeout  # type: ignore[union-attr]
    assert fault_of(boto.FlexibleChecksumError(error_msg="m")).damaged  # type: ignore[union-attr]
    broken = boto.EndpointConnectionError(endpoint_url="u", error=OSError("no"))
    assert "OSError" in fault_of(broken).why  # type: ignore[union-attr]
    for passing in (aiohttp.ClientPayloadError(), ConnectionResetError()):
        assert type(passing).__name__ in fault_of(passing).why  # type: ignore[union-attr]
    for lasting in (boto.NoCredentialsError(), KeyError("k"), boto.ParamValidationError(report="")):
        assert fault_of(lasting) is None
