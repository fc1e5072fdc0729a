"""How fast are objects of a bucket read and listed: obstore bare, `storage=s3` on it, and s3fs?

In turns, on a SeaweedFS server of its own, which shares this machine's processors. The seconds
that clients compute, which what else runs here hardly changes, are told beside the rates.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benches import RUNS, Line

# Bytes of an object, as a photograph of the web has them, and requests under way at once.
SIZE = 200_000
CONCURRENCY = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how much is read and listed."""
    parser.add_argument("--objects", type=int, default=1000, metavar="N", help="objects to read")
    parser.add_argument("--keys", type=int, default=10_000, metavar="N", help="keys to list")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each, in turns")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Measure all of them in turns."""
    from factory.demo.s3server import S3Server
    from factory.storage import S3Storage

    with tempfile.TemporaryDirectory() as scratch, S3Server(Path(scratch) / "s3") as server:
        os.environ.update(server.environment())
        Path(scratch, "empty").mkdir()
        server.upload(Path(scratch) / "empty", "training-data", "")
        storage = S3Storage(
            "training-data", endpoint_url=server.endpoint_url, max_connections=CONCURRENCY
        )
        keys = [f"read/{number:06}" for number in range(options.objects)]
        listed = [f"list/{number // 1000:03}/{number:06}" for number in range(options.keys)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: storage.write(key, os.urandom(SIZE)), keys))
            list(pool.map(lambda key: storage.write(key, b"x"), listed))
        yield from _measured(_ways(storage, keys), options.runs, "objects/s")
        yield from _measured(_listings(storage, options.keys), options.runs, "keys/s")
        storage.close()


def _ways(storage: Any, keys: list[str]) -> dict[str, tuple[Callable[[], object], int]]:
    from s3fs import S3FileSystem

    client = bare_client(storage)
    files = S3FileSystem(
        endpoint_url=storage.endpoint_url,
        config_kwargs={"max_pool_connections": CONCURRENCY},
        skip_instance_cache=True,
    )
    paths = [f"{storage.bucket}/{key}" for key in keys]
    spans = [(key, 0, SIZE) for key in keys]
    whole = [(key, 0, None) for key in keys]
    count = len(keys)
    return {
        "read bare obstore": (lambda: bare_reads(client, keys, SIZE, CONCURRENCY), count),
        "read storage=s3": (lambda: _read(storage, spans), count),
        "read storage=s3 with MD5": (lambda: _read(storage, whole), count),
        "read s3fs": (lambda: files.cat(paths, batch_size=CONCURRENCY), count),
    }


def _listings(storage: Any, count: int) -> dict[str, tuple[Callable[[], object], int]]:
    import obstore

    client = bare_client(storage)

    def bare() -> None:
        """List by obstore alone, as columns."""
        found = sum(
            page.num_rows
            for page in obstore.list(client, "list", chunk_size=1000, return_arrow=True)
        )
        assert found == count  # noqa: S101 - a benchmark of what is not there says nothing

    return {
        "list bare obstore": (bare, count),
        "list storage=s3": (lambda: storage.listing("list"), count),
    }


def _measured(
    ways: dict[str, tuple[Callable[[], object], int]], runs: int, unit: str
) -> Iterator[Line]:
    walls: dict[str, list[float]] = {name: [] for name in ways}
    computed: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, (work, count) in ways.items():
            begun, used = time.perf_counter(), time.process_time()
            work()
            if turn:  # the first one opens connections
                walls[name].append((time.perf_counter() - begun) / count)
                computed[name].append((time.process_time() - used) / count)
    for name in ways:
        used = statistics.median(computed[name]) * 1e3
        yield name, 1 / statistics.median(walls[name]), unit, {"client_ms": round(used, 4)}


def _read(storage: Any, spans: list[tuple[str, int, int | None]]) -> None:
    for found in storage.read_many(spans):
        if isinstance(found, Exception):
            raise found


def bare_client(storage: Any) -> Any:
    """Return obstore's own client of a storage's bucket."""
    from obstore.store import S3Store

    return S3Store(
        storage.bucket,
        endpoint=storage.endpoint_url,
        region="us-east-1",
        client_options={"allow_http": True},
    )


def bare_reads(client: Any, keys: list[str], size: int, concurrency: int) -> None:
    """Read the first bytes of each object, so many at once."""
    import obstore

    async def read_all() -> None:
        """Send every request."""
        gate = asyncio.Semaphore(concurrency)

        async def read(key: str) -> None:
            """Send one request, and copy what comes."""
            async with gate:
                bytes(await obstore.get_range_async(client, key, start=0, length=size))

        await asyncio.gather(*map(read, keys))

    asyncio.run(read_all())
