"""How quickly are encoded rows published, beside plain writing of the same bytes?

Rows are fp16 latents of 16 x 64 x 64 in batches of 16. Plain writing puts the same bytes into
files of a shard's size and flushes each to disk, as publishing does. Both are done in turns,
so that what else the machine does meets both.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line

BATCH = 16
SHAPE = (16, 64, 64)
ROW_BYTES = 2 * 16 * 64 * 64
SHARD_MIB = 256


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how much is written, and how often."""
    parser.add_argument("--megabytes", type=int, default=1024, help="MiB written in each run")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--directory", type=Path, help="where it is written")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Write plainly and through a store's writer, in turns."""
    import torch

    from factory.cache.format.recipe import recipe_keys

    count = options.megabytes * 2**20 // ROW_BYTES // BATCH * BATCH
    keys = recipe_keys({}, {"row": range(count)})
    latents = torch.randn(BATCH, *SHAPE).half()
    plain, published, own = [], [], []
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for _ in range(options.runs):
            begun = time.process_time()
            plain.append(count * ROW_BYTES / 2**20 / write_plain(scratch, count * ROW_BYTES))
            between = time.process_time()
            published.append(count * ROW_BYTES / 2**20 / publish(scratch, keys, latents))
            own.append(time.process_time() - between - (between - begun))
    conditions = {"MiB": options.megabytes, "shard MiB": SHARD_MIB, "runs": options.runs}
    yield "floor: plain writing", statistics.median(plain), "MiB/s", conditions
    yield "publishing", statistics.median(published), "MiB/s", conditions
    parts = [mine / floor for mine, floor in zip(published, plain, strict=True)]
    target = {**conditions, "target": "> 0.5"}
    yield "publishing / plain writing", statistics.median(parts), "", target
    yield "processor time beyond plain writing's", statistics.median(own), "s", conditions


def write_plain(scratch: str, size: int) -> float:
    """Write files of a shard's size; return the seconds that took."""
    data = memoryview(os.urandom(2**20) * SHARD_MIB)
    folder = Path(scratch) / "plain"
    folder.mkdir()
    start = time.perf_counter()
    for number, begin in enumerate(range(0, size, len(data))):
        with (folder / str(number)).open("wb") as file:
            file.write(data[: size - begin])
            file.flush()
            os.fsync(file.fileno())
    took = time.perf_counter() - start
    shutil.rmtree(folder)
    return took


def publish(scratch: str, keys: Any, latents: Any) -> float:
    """Publish rows through a writer; return the seconds that took."""
    from factory.cache.store import TensorStore
    from factory.storage import LocalStorage

    store = TensorStore(LocalStorage(scratch), "cache", shard_mb=SHARD_MIB)
    start = time.perf_counter()
    with store.writer({}) as writer:
        for first in range(0, len(keys), BATCH):
            writer.add(keys[first : first + BATCH], {"latents": latents})
    took = time.perf_counter() - start
    shutil.rmtree(Path(scratch) / "cache")
    return took
