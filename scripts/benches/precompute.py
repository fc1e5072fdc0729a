"""How much do reading, encoding and writing hinder each other while a cache is filled?

An encoder that takes no time shows what is left of the rate at which pictures are read and
decoded alone, by the same threads in the same run. Rows that come from memory show what is left
of the speed at which files of as many bytes are written. Both are taken in turns. At the end:
how many pictures a second an empty cache is asked for, their keys made on the way.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benches import RUNS, Line
from benches.images import make

# Of the rows that are written: the size of captions in many text encoders, 77 x 2048 in float16.
TOKENS, WIDTH = 77, 2048


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how much there is to do."""
    parser.add_argument("--pictures", type=int, default=400, help="how many are decoded")
    parser.add_argument("--size", default="1024x768", metavar="WxH", help="of the pictures, px")
    parser.add_argument("--resolution", type=int, default=512, help="px, edge of equal area")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures encoded at once")
    parser.add_argument("--captions", type=int, default=2048, help="rows of 308 KiB written")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are asked for")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time reading, writing and asking."""
    with tempfile.TemporaryDirectory() as scratch:
        yield from reading(Path(scratch), options)
        yield from writing(Path(scratch), options)
        yield from asking(Path(scratch), options)


@dataclass(frozen=True)
class Instant:
    """Encoders that take no time: they give the same rows again and again."""

    fingerprint: str = "instant"
    downscale: int = 8

    def encode(self, samples: Any) -> dict[str, Any]:
        """Return latents of pixels, or embeddings of captions."""
        if isinstance(samples, Sequence):
            return {"embeds": _rows(len(samples), TOKENS, WIDTH)}
        count, height, width, _ = samples.shape
        return {"latents": _rows(count, 4, height // 8, width // 8)}

    def release(self) -> None:
        """Hold nothing."""


@cache
def _rows(*shape: int) -> Any:
    import torch

    return torch.randn(shape, dtype=torch.float16)


def reading(scratch: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Compare filling a cache with decoding alone."""
    from factory.engine.local_engine import LocalEngine
    from factory.registry.precompute import fill_pictures

    make(scratch / "pictures", options.pictures, options.size)
    engine = LocalEngine()
    alone, filled = [], []
    for number in range(options.runs):
        source = picture_source(scratch, f"cache-{number}", options)
        wanted = source.pictures(source.catalog.decisions.order)
        start = time.perf_counter()
        count = sum(1 for _ in engine.map(source.backend.reader, wanted))
        middle = time.perf_counter()
        fill_pictures(source, source.latents, engine)
        alone.append(count / (middle - start))
        filled.append(count / (time.perf_counter() - middle))
    conditions = {
        "pictures": options.pictures, "size": options.size, "resolution": options.resolution,
        "batch_size": options.batch_size, "runs": options.runs,
    }  # fmt: skip
    yield "pictures decoded alone", statistics.median(alone), "images/s", conditions
    yield "pictures decoded and stored", statistics.median(filled), "images/s", conditions
    ratio = statistics.median(two / one for one, two in zip(alone, filled, strict=True))
    yield "stored / decoded alone", ratio, "ratio", {**conditions, "target": ">= 0.7"}


def picture_source(scratch: Path, cache: str, options: argparse.Namespace) -> Any:
    """Return a folder of pictures, scanned, with an empty store."""
    from factory import ImageBackend, ImageEmbedBackend, Workspace
    from factory.backends.prepared import PreparedBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.engine.local_engine import LocalEngine
    from factory.storage.local import LocalStorage

    backend = ImageBackend(
        name="pictures",
        storage=LocalStorage(str(scratch / "pictures")),
        caption=FilenameCaptions(),
        resolution=options.resolution,
    )
    store = ImageEmbedBackend(
        name="latents",
        cache=Workspace(LocalStorage(str(scratch / cache))),
        encoder=Instant(),  # type: ignore[arg-type] - nothing is decoded again
        batch_size=options.batch_size,
    )
    return PreparedBackend(backend, backend.catalog(backend.scan(None, LocalEngine()), 0), store)


def writing(scratch: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Compare filling a cache with writing as many bytes to files."""
    from factory import TextEmbedBackend, Workspace
    from factory.engine.local_engine import LocalEngine
    from factory.registry.precompute import fill_captions
    from factory.storage.local import LocalStorage

    captions = [f"caption {number}" for number in range(options.captions)]
    shard_mb = 256
    data = os.urandom(shard_mb * 2**20)
    raw, stored = [], []
    for number in range(options.runs):
        place = Workspace(LocalStorage(str(scratch / f"text-{number}")), shard_mb=shard_mb)
        store = TextEmbedBackend(name="text", cache=place, encoder=Instant())
        start = time.perf_counter()
        filled = fill_captions(store, captions, LocalEngine())
        middle = time.perf_counter()
        write_raw(scratch / f"raw-{number}", filled.bytes, data)
        stored.append(filled.bytes / (middle - start) / 2**20)
        raw.append(filled.bytes / (time.perf_counter() - middle) / 2**20)
        # Else whoever comes later is given memory for its files that nobody has touched yet.
        for folder in (f"text-{number}", f"raw-{number}"):
            shutil.rmtree(scratch / folder)
    conditions = {"MiB": round(filled.bytes / 2**20), "runs": options.runs}
    yield "files written", statistics.median(raw), "MiB/s", conditions
    yield "rows stored", statistics.median(stored), "MiB/s", conditions
    ratio = statistics.median(two / one for one, two in zip(raw, stored, strict=True))
    yield "rows stored / files written", ratio, "ratio", {**conditions, "target": ">= 0.5"}


def write_raw(folder: Path, size: int, data: bytes) -> None:
    """Write files of so many bytes in all, each until it is on the disk, as a shard is."""
    folder.mkdir()
    for start in range(0, size, len(data)):
        with (folder / str(start)).open("wb") as file:
            file.write(memoryview(data)[: size - start])
            file.flush()
            os.fsync(file.fileno())


def asking(scratch: Path, options: argparse.Namespace) -> Iterator[Line]:
    """Time the question which of many pictures are missing from an empty store."""
    import numpy as np
    import pyarrow as pa

    from factory import ImageBackend, ImageEmbedBackend, Workspace
    from factory.backends.prepared import PreparedBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.catalog.facts import Facts
    from factory.encoder.dct import BlockDCT
    from factory.registry.precompute import missing_pictures
    from factory.storage.local import LocalStorage

    rng, rows = np.random.default_rng(0), options.rows
    table = pa.table(
        {
            "key": [f"photos/part-{n % 100:03}/picture-{n:09}.jpg" for n in range(rows)],
            "etag": [f"{n:x}-18a" for n in range(rows)],
            "width": rng.integers(400, 3000, rows),
            "height": rng.integers(400, 3000, rows),
        }
    )
    backend = ImageBackend(
        name="asked", storage=LocalStorage(str(scratch)), caption=FilenameCaptions(), resolution=512
    )
    place = Workspace(LocalStorage(str(scratch / "asked")))
    store = ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT())
    source = PreparedBackend(backend, backend.catalog(Facts.of_table(table, {}), 0), store)
    start = time.perf_counter()
    asked = len(source.catalog.decisions.order)
    missing_pictures(source, source.latents)
    conditions = {"rows": asked, "runs": 1}
    yield "rows asked for", asked / (time.perf_counter() - start), "rows/s", conditions
