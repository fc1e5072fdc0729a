"""How fast is training data that is encoded already when it must come from the disk?

The path is what a trainer gets: plan, store, collate, fetcher and the data module's iterator, in
random order. The floor reads the same files from their beginning to their end, in large pieces, by
as many threads as make batches; by more of them, too, for a disk may want more requests at once.
Before each run the files are put out of the page cache; what the disk has given meanwhile, by the
kernel's count, is told beside what was asked for. What a disk, or the machine below a virtual one,
keeps in memory of its own cannot be put out from here. With a part of the samples alone, few of the
rows that lie beside those asked for are used, as in a cache that is larger than memory.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benches import Line, cached

_MIB = 2**20
# What the floor asks for at once: as much as the rows of a batch.
PIECE = 4 * _MIB
# Threads of the second floor.
MANY = 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes, which are those of `cached`."""
    cached.arguments(parser)
    parser.add_argument("--part", type=float, default=1.0, help="share of the samples that is read")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Fill a cache, then read it through the path and from end to end, in turns."""
    rates: dict[str, list[float]] = {"few": [], "many": [], "path": []}
    given = []
    with tempfile.TemporaryDirectory() as scratch:
        data = cached.module(Path(scratch), options)
        cached.fill(data)
        data.setup()
        list(data.train_dataloader())  # memory is there
        files = sorted(Path(scratch).rglob("*.safetensors"))
        whole = sum(path.stat().st_size for path in files) / _MIB
        size = whole * options.part
        for _ in range(options.runs):
            for name, threads in (("few", options.workers), ("many", MANY)):
                forget(data, files)
                rates[name].append(size / end_to_end(files, threads, options.part))
            forget(data, files)
            before = from_disk()
            rates["path"].append(whole / options.samples * cached.path_rate(data, options.part))
            given.append((from_disk() - before) / size)
        data.close()
    floors = [max(pair) for pair in zip(rates["few"], rates["many"], strict=True)]
    conditions: dict[str, Any] = {
        "MiB": round(size),
        "part": options.part,
        "batch_size": options.batch_size,
        "mode": options.mode,
        "runs": options.runs,
    }
    names = {
        "few": f"end to end, {options.workers} threads",
        "many": f"end to end, {MANY} threads",
        "path": "whole path, random order",
    }
    for name, words in names.items():
        each = [round(rate) for rate in rates[name]]
        yield words, statistics.median(rates[name]), "MiB/s", {**conditions, "each": each}
    for words, beside in ((names["few"], rates["few"]), ("the better", floors)):
        ratios = [a / b for a, b in zip(rates["path"], beside, strict=True)]
        found = {"target": ">= 0.7", "each": [round(ratio, 2) for ratio in ratios]}
        yield f"whole path / {words}", statistics.median(ratios), "", found
    yield "given by the disk / bytes of the rows read", statistics.median(given), "", {}


def forget(data: Any, files: Sequence[Path]) -> None:
    """Put files out of the page cache, which holds on to those that are mapped."""
    for source in data.sources.values():
        for embeds in (source.latents, source.text):
            embeds.store.close()
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def end_to_end(files: Sequence[Path], threads: int, part: float) -> float:
    """Return the seconds that so many threads take to read a part of files, from end to end."""
    opened = [os.open(path, os.O_RDONLY) for path in files]
    pieces = [(fd, at) for fd in opened for at in range(0, os.fstat(fd).st_size, PIECE)]
    pieces = pieces[: round(len(pieces) * part)]

    def share(first: int) -> None:
        """Read every so-manieth piece into memory that is there."""
        place = [bytearray(PIECE)]
        for fd, at in pieces[first::threads]:
            os.preadv(fd, place, at)

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))
    took = time.perf_counter() - start
    for fd in opened:
        os.close(fd)
    return took


def from_disk() -> float:
    """Return what this process has had read from disks so far, MiB."""
    return float(psutil.Process().io_counters().read_bytes) / _MIB
