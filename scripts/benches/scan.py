"""How many files a second are found and measured: a folder, or `s3://` on a server of its own?

The floor is measured in the same run, in turns: of a folder, opening each file and reading its
first 16 KB; of S3, bare ranged GETs through the same client at the same concurrency. Files are
in the page cache. Figures are medians; the catalog is published in every run.
"""

import argparse
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line, Quick, in_turn

# First bytes of a file, as the scan reads them.
HEAD = 16 * 1024
# Requests under way at once: the storage's own default.
CONCURRENCY = 32


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is scanned."""
    parser.add_argument("place", metavar="DIR|s3://", help="folder; or s3:// for SeaweedFS here")
    parser.add_argument("--make", type=int, default=0, metavar="N", help="write N JPEGs first")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time scans of a folder, or of a bucket."""
    if options.place.startswith("s3://"):
        yield from bucket(options.make or 4000, options.runs)
        return
    folder = Path(options.place).resolve()
    if options.make:
        make(folder, options.make)
    yield from local(folder, options.runs)


def local(folder: Path, runs: int) -> Iterator[Line]:
    """Time the floor, a cold scan, a warm start, and a refresh after one changed file."""
    from factory import ImageBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.storage import LocalStorage

    backend = ImageBackend(
        name="pictures", storage=LocalStorage(str(folder)), caption=FilenameCaptions()
    )
    paths = [str(path) for path in folder.rglob("*.jpg")]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        desk = Desk(backend, Path(scratch))
        for _ in range(runs + 1):  # the first one warms the page cache
            note(times, "open and read 16 KB", lambda: read_heads(paths))
            desk.empty()
            note(times, "cold scan", desk.scan)
            note(times, "warm start", desk.scan)
            desk.change_one()
            note(times, "refresh, one changed", desk.scan)
    conditions = {"files": len(paths), "runs": runs, "cache": "page cache warm"}
    rates = {name: len(paths) / statistics.median(found[1:]) for name, found in times.items()}
    targets = {"cold scan": "40000", "warm start": "100000"}
    for name, rate in rates.items():
        target = {"target": targets[name]} if name in targets else {}
        yield name, rate, "files/s", {**conditions, **target}
    floor = rates["open and read 16 KB"]
    yield "cold scan / floor", rates["cold scan"] / floor, "ratio", {"target": ">= 0.3"}
    ratio = rates["warm start"] / rates["refresh, one changed"]
    yield "refresh time / warm time", ratio, "ratio", {"target": "<= 1.1"}


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield a cold scan, and one of a folder that is known, beside reading each file's head."""
    from factory import ImageBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.storage import LocalStorage

    del short
    folder = scratch / "pictures"
    make(folder, 4000)
    paths = [str(path) for path in folder.rglob("*.jpg")]
    backend = ImageBackend(
        name="pictures", storage=LocalStorage(str(folder)), caption=FilenameCaptions()
    )
    desk = Desk(backend, scratch)

    def cold() -> None:
        """Scan what nothing is known of; forgetting it is a small part."""
        desk.empty()
        desk.scan()

    yield Quick("scan", in_turn(lambda: read_heads(paths), cold))
    yield Quick("scan_warm", in_turn(lambda: read_heads(paths), desk.scan))


def bucket(count: int, runs: int) -> Iterator[Line]:
    """Time bare ranged GETs and a cold scan of a bucket on a SeaweedFS server."""
    from factory import ImageBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.demo.s3server import S3Server
    from factory.storage import S3Storage

    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, S3Server(Path(scratch) / "s3") as server:
        make(Path(scratch) / "pictures", count)
        os.environ.update(server.environment())
        server.upload(Path(scratch) / "pictures", "training-data", "pictures")
        storage = S3Storage("training-data", endpoint_url=server.endpoint_url)
        desk = Desk(
            ImageBackend(name="pictures", storage=storage, caption=FilenameCaptions()),
            Path(scratch),
        )
        keys = [info.key for info in storage.objects("pictures")]
        for _ in range(runs + 1):
            note(times, "bare ranged GETs", lambda: bare_gets(storage, keys))
            desk.empty()
            note(times, "cold scan", desk.scan)
            note(times, "listing", lambda: storage.listing("pictures"))
        storage.close()
    conditions = {"objects": len(keys), "runs": runs, "concurrency": CONCURRENCY}
    rates = {name: len(keys) / statistics.median(found[1:]) for name, found in times.items()}
    for name, rate in rates.items():
        yield name, rate, "objects/s", conditions
    ratio = rates["cold scan"] / rates["bare ranged GETs"]
    yield "cold scan / bare GETs", ratio, "ratio", {"target": ">= 0.8"}


def note(times: dict[str, list[float]], name: str, work: Callable[[], object]) -> None:
    """Time one piece of work."""
    start = time.perf_counter()
    work()
    times.setdefault(name, []).append(time.perf_counter() - start)


def read_heads(paths: list[str]) -> None:
    """Do what cannot be done without: open each file and read its first bytes."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, HEAD)
        os.close(descriptor)


def bare_gets(storage: Any, keys: list[str]) -> None:
    """Send a ranged GET for each key by the storage's own library."""
    from benches.buckets import bare_client, bare_reads

    bare_reads(bare_client(storage), keys, HEAD, CONCURRENCY)


class Desk:
    """A cache of its own to publish a scan into, as `preparation` does."""

    def __init__(self, backend: Any, scratch: Path) -> None:
        """Take a backend and a folder for the cache."""
        from factory import Workspace
        from factory.engine.local_engine import LocalEngine
        from factory.storage import LocalStorage

        self.backend, self.folder = backend, scratch / "cache"
        self.place = Workspace(LocalStorage(str(scratch)))
        self.engine = LocalEngine()

    def empty(self) -> None:
        """Forget everything published."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def scan(self) -> None:
        """Scan, and publish what changed."""
        shelf, journal = self.place.facts_store("pictures"), self.place.journal("pictures")
        known = shelf.load()
        facts = self.backend.scan(known, self.engine, journal)
        if known is None or not facts.table.equals(known.table):
            shelf.save(facts)
        journal.clear()

    def change_one(self) -> None:
        """Publish facts in which one file is of another version than the one that is there."""
        import pyarrow as pa

        from factory.catalog.facts import Facts, replace_column

        shelf = self.place.facts_store("pictures")
        facts = shelf.load()
        etags = facts.table["etag"].to_pylist()
        etags[len(etags) // 2] = "another"
        table = replace_column(facts.table, "etag", pa.array(etags, pa.large_string()))
        shelf.save(Facts(table, facts.origin))


def make(folder: Path, count: int) -> None:
    """Write JPEGs of several sizes, a thousand to a folder, some with EXIF."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(1)
    blobs = []
    for number, (wide, tall) in enumerate([(640, 480), (512, 768), (1024, 768), (600, 900)] * 5):
        coarse = random.integers(0, 255, (tall // 16, wide // 16, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        sink = io.BytesIO()
        picture = Image.fromarray(coarse).resize((wide, tall), Image.Resampling.BICUBIC)
        picture.save(sink, "JPEG", quality=60, exif=exif if number % 3 == 0 else b"")
        blobs.append(sink.getvalue())
    for number in range(count):
        place = folder / f"{number // 1000:05d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.jpg").write_bytes(blobs[number % len(blobs)])
