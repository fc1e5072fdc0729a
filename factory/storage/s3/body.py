"""Bodies of S3 objects: received in one try and checked, or sent in parts."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from factory.errors import ContentMismatchError
from factory.storage.event_loop import TransferProgress, run_in_disk_thread
from factory.storage.keys import slice_bytes

if TYPE_CHECKING:
    from aiobotocore.client import AioBaseClient

# As much as the client's own buffer holds, twice over.
_CHUNK = 2**18
# Bytes that are handed on at once: a word between two threads costs some 50 us, and as much is
# held for each request.
_HANDED = 2**20
# Hashing up to this size takes the loop 0.2 ms; more is done beside it, in a thread.
_HASHED_IN_LOOP = 2**17
# HTTP's "range not satisfiable": the object exists, and ends before the span starts.
_RANGE_BEYOND_END = 416

# Buckets of one zone, whose ETags are no hashes.
_NO_MD5 = "--x-s3"
_MD5 = re.compile(r'"?([0-9a-fA-F]{32})"?')
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


async def get(
    client: "AioBaseClient",
    request: dict[str, str],
    progress: TransferProgress,
    *,
    start: int = 0,
    length: int | None = None,
    verify: bool = True,
) -> bytes:
    """Fetch an object, or the span of it that the request names, in one try.

    Args:
        client: The client.
        request: Bucket, key and range.
        progress: Told of every part.
        start: First byte of the span.
        length: Its length; None to the end.
        verify: Hash whole objects, where the server gives their MD5.

    Raises:
        IncompleteReadError: Fewer bytes came than were announced.
        ContentMismatchError: The bytes are not those that the ETag was made of.
    """
    answer = await _answer(client, request)
    if answer is None:
        return b""
    wanted = _wanted_md5(answer, request) if verify else None
    data = await _received(answer, request, progress, wanted)
    # A proxy that knows no ranges sends the whole object.
    return slice_bytes(data, start, length) if _range(answer) is None else data


async def stream_to(
    client: "AioBaseClient",
    request: dict[str, str],
    progress: TransferProgress,
    put: Callable[[int, Sequence[bytes]], None],
    *,
    start: int = 0,
    length: int | None = None,
    verify: bool = True,
) -> int:
    """Fetch a span as `get` does, in one try, and hand its bytes on as they come.

    Args:
        client: The client.
        request: Bucket, key and range.
        progress: Told of every part.
        put: Takes the first byte in the span and pieces from there on; called in a thread.
        start: First byte of the span.
        length: Its length; None to the end.
        verify: Hash whole objects, where the server gives their MD5.

    Returns:
        How many bytes it was.

    Raises:
        IncompleteReadError, ContentMismatchError: As `get` does; bytes were handed on already.
    """
    answer = await _answer(client, request)
    if answer is None:
        return 0
    wanted = _wanted_md5(answer, request) if verify else None
    if _range(answer) is None and (start or length is not None):
        data = slice_bytes(await _received(answer, request, progress, wanted), start, length)
        await run_in_disk_thread(put, 0, [data])
        return len(data)
    md5 = hashlib.md5(usedforsecurity=False)

    def hand(at: int, pieces: list[bytes]) -> None:
        if wanted is not None:
            for piece in pieces:
                md5.update(piece)
        put(at, pieces)

    size = await _handed(answer, progress, hand)
    if wanted is not None:
        _compare(md5.hexdigest(), wanted, size, request)
    return size


async def _handed(
    answer: dict[str, Any], progress: TransferProgress, hand: Callable[[int, list[bytes]], None]
) -> int:
    """Receive a body, hand it on in threads, and return its size."""
    size, left = 0, int(answer["ContentLength"])
    async with answer["Body"] as body:
        while left > 0 and (pieces := await _pieces(body, min(left, _HANDED), progress)):
            await run_in_disk_thread(hand, size, pieces)
            some = sum(map(len, pieces))
            size, left = size + some, left - some
    _check_length(size, answer)
    return size


async def _answer(client: "AioBaseClient", request: dict[str, str]) -> dict[str, Any] | None:
    """Return what the server says; None where the object ends before the span."""
    from botocore.exceptions import ClientError

    try:
        answer: dict[str, Any] = await client.get_object(**request)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != _RANGE_BEYOND_END:
            raise
        return None
    return answer


async def _pieces(body: Any, least: int, progress: TransferProgress) -> list[bytes]:
    """Receive at least so many bytes, fewer at the end."""
    pieces: list[bytes] = []
    # Most bodies come in one part, and the end of those need not be asked for.
    while least > 0 and (piece := await body.read(_CHUNK)):
        progress.received(len(piece))
        pieces.append(piece)
        least -= len(piece)
    return pieces


async def _received(
    answer: dict[str, Any], request: dict[str, str], progress: TransferProgress, wanted: str | None
) -> bytes:
    """Receive a whole body, and compare it with the MD5 wanted."""
    async with answer["Body"] as body:
        parts = await _pieces(body, int(answer["ContentLength"]), progress)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    _check_length(len(data), answer)
    if wanted is not None:
        found = _md5(data) if len(data) <= _HASHED_IN_LOOP else await asyncio.to_thread(_md5, data)
        _compare(found, wanted, len(data), request)
    return data


def _check_length(found: int, answer: dict[str, Any]) -> None:
    from botocore.exceptions import IncompleteReadError

    if found != answer["ContentLength"]:
        raise IncompleteReadError(actual_bytes=found, expected_bytes=answer["ContentLength"])


def _range(answer: dict[str, Any]) -> re.Match[str] | None:
    """Return first byte, last byte and size of the object; None if all of it is sent."""
    return _RANGE.fullmatch(answer.get("ContentRange", ""))


def _wanted_md5(answer: dict[str, Any], request: dict[str, str]) -> str | None:
    """Return the MD5 that the body must have; None where it is a part, or the server gives none."""
    ranged = _range(answer)
    whole = ranged is None or (ranged[1] == "0" and ranged[3] == str(int(ranged[2]) + 1))
    return stored_md5(answer) if whole and not request["Bucket"].endswith(_NO_MD5) else None


def stored_md5(answer: dict[str, Any]) -> str | None:
    """Return the MD5 of an object that its answer gives; None where it gives none.

    An ETag is one if the object came in one piece and is not encrypted under a key of its own:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    """
    own_key = "SSECustomerAlgorithm" in answer or "SSEKMSKeyId" in answer
    if own_key or answer.get("ServerSideEncryption", "AES256") != "AES256":
        return None
    match = _MD5.fullmatch(answer.get("ETag", ""))
    return match[1].lower() if match else None


def _compare(found: str, wanted: str, size: int, request: dict[str, str]) -> None:
    if found != wanted:
        raise ContentMismatchError(
            f"cannot read s3://{request['Bucket']}/{request['Key']}: {size} bytes came whose "
            f"MD5 is {found}, and the server's ETag says {wanted}; upload the object anew, or, "
            "if this server's ETags are no MD5, set storage.verify_checksum=false"
        )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# Parts under way at once: each is held in memory a second time while it is sent.
_AT_ONCE = 4


class SendRequest(Protocol):
    """Sends one request of a client's method, as often as it takes."""

    def __call__(self, method: str, size: int = 0, /, **request: object) -> Awaitable[Any]:
        """Return the answer; `size` are the bytes that go with it."""


async def put_in_parts(
    ask: SendRequest, target: dict[str, str], data: bytes | memoryview, part_bytes: int
) -> None:
    """Store an object in parts, several under way at once, each repeated by itself.

    Args:
        ask: Sends a request.
        target: Bucket and key.
        data: The object.
        part_bytes: Size of a part; the last one is smaller.
    """
    begun = await ask("create_multipart_upload", **target)
    upload = {**target, "UploadId": begun["UploadId"]}
    try:
        parts = await _all_parts(ask, upload, memoryview(data), part_bytes)
        await ask("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
    except BaseException:
        # What cannot be taken back is left to the bucket's own rules.
        with suppress(Exception):
            await ask("abort_multipart_upload", **upload)
        raise


async def _all_parts(
    ask: SendRequest, upload: dict[str, str], view: memoryview, part_bytes: int
) -> list[dict[str, object]]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def send(number: int, start: int) -> dict[str, object]:
        async with gate:
            body = bytes(view[start : start + part_bytes])
            answer = await ask("upload_part", len(body), **upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    starts = range(0, len(view), part_bytes)
    return await _gathered([send(number, start) for number, start in enumerate(starts, 1)])


async def _gathered(jobs: "list[Any]") -> list[Any]:
    """Run jobs side by side; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
