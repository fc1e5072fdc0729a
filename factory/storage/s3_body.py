"""How is an S3 object's body received, and is it the one that was stored?"""

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Any

from factory.errors import ContentMismatchError
from factory.storage.loop import Progress
from factory.storage.rules import cut

if TYPE_CHECKING:
    from aiobotocore.client import AioBaseClient

# As much as the client's own buffer holds, twice over.
_CHUNK = 2**18
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
    progress: Progress,
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
    from botocore.exceptions import ClientError

    try:
        answer = await client.get_object(**request)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != _RANGE_BEYOND_END:
            raise
        return b""
    data = await _received(answer, progress)
    ranged = _RANGE.fullmatch(answer.get("ContentRange", ""))
    whole = ranged is None or (ranged[1] == "0" and ranged[3] == str(int(ranged[2]) + 1))
    if verify and whole and not request["Bucket"].endswith(_NO_MD5):
        await _compare(data, answer, request)
    # A proxy that knows no ranges sends the whole object.
    return cut(data, start, length) if ranged is None else data


async def _received(answer: dict[str, Any], progress: Progress) -> bytes:
    from botocore.exceptions import IncompleteReadError

    parts, left = [], int(answer["ContentLength"])
    async with answer["Body"] as body:
        # Most bodies come in one part, and the end of those need not be asked for.
        while left > 0 and (part := await body.read(_CHUNK)):
            progress.received(len(part))
            parts.append(part)
            left -= len(part)
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(data) != answer["ContentLength"]:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=answer["ContentLength"])
    return data


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


async def _compare(data: bytes, answer: dict[str, Any], request: dict[str, str]) -> None:
    wanted = stored_md5(answer)
    if wanted is None:
        return
    found = _md5(data) if len(data) <= _HASHED_IN_LOOP else await asyncio.to_thread(_md5, data)
    if found != wanted:
        raise ContentMismatchError(
            f"cannot read s3://{request['Bucket']}/{request['Key']}: {len(data)} bytes came whose "
            f"MD5 is {found}, and the server's ETag says {wanted}; upload the object anew, or, "
            "if this server's ETags are no MD5, set storage.verify_checksum=false"
        )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
