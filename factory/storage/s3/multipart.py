"""How does a large object go to an S3 server in parts that become visible together?"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Protocol

# Parts under way at once: each is held in memory a second time while it is sent.
_AT_ONCE = 4


class Ask(Protocol):
    """Sends one request of a client's method, as often as it takes."""

    def __call__(self, method: str, size: int = 0, /, **request: object) -> Awaitable[Any]:
        """Return the answer; `size` are the bytes that go with it."""


async def put_in_parts(
    ask: Ask, target: dict[str, str], data: bytes | memoryview, part_bytes: int
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
    ask: Ask, upload: dict[str, str], view: memoryview, part_bytes: int
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
