"""What does a batch cost on its way from whoever makes it to the trainer?

Batches are made already, so that only the machinery is timed: a bare loop as the floor, then each
mode in turn. Of another process the price of copying to shared memory is in it, and shown beside
one copy of the same bytes in this process. While the queue is full, nobody may use a processor.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from benches import RUNS, Line, Quick, in_turn
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.collate import batch_bytes
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.worker.process import BatchWorker

MODES = ("loop", "inline", "thread", "process")


@dataclass(frozen=True)
class Prepared:
    """Gives the same batch for every job; picklable, for the other process makes its own.

    Attributes:
        rows: Samples of the batch.
        edge: Edge of its latents, which have 4 channels of 16 bits.
    """

    rows: int
    edge: int

    def __call__(self) -> Callable[[int], Batch]:
        """Return what makes batches."""
        made = batch(self.rows, self.edge)
        return lambda _: made


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--batches", type=int, default=3000, help="batches of one run")
    parser.add_argument("--rows", type=int, default=16, help="samples per batch")
    parser.add_argument("--edge", type=int, default=64, help="edge of a latent; 64 is a 512 px one")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of the full queue")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time the modes in turns, then one copy, then a queue that is full."""
    made = batch(options.rows, options.edge)
    conditions = {
        "runs": options.runs,
        "batch": f"{options.rows} samples, {batch_bytes(made) / 2**20:.2f} MiB",
    }
    worker: BatchWorker[int, Batch] = BatchWorker(
        Prepared(options.rows, options.edge), workers=2, timeout_s=60
    )
    list(fetch("process", made, 1, worker))  # its start is not counted
    costs: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    copies = []
    for _ in range(options.runs):
        for mode in MODES:
            batches = iter([made] * options.batches)
            if mode != "loop":
                batches = iter(fetch(mode, made, options.batches, worker))
            costs[mode].append(cost(batches, options.batches))
        copies.append(copy_cost(made, options.batches))
    for mode, found in costs.items():
        target = {"thread": {"target": "< 100"}}.get(mode, {})
        wall, here = (1e6 * statistics.median(values) for values in zip(*found, strict=True))
        yield f"{mode}, a batch", wall, "us", {**conditions, **target}
        yield f"{mode}, processor time here, a batch", here, "us", conditions
    yield "one copy of a batch", 1e6 * statistics.median(copies), "us", conditions
    for mode in ("thread", "process"):
        share = idle(fetch(mode, made, 100, worker), options.idle)
        full = {**conditions, "target": "< 2", "seconds": options.idle}
        yield f"{mode}, processor time while the queue is full", 100 * share, "%", full
    worker.close()


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield handing over a batch from a thread beside two bare queues to it and back."""
    del scratch
    count, made = 2000, batch(16, 8)
    prepared: BatchWorker[int, Batch] = BatchWorker(Prepared(16, 8), workers=2, timeout_s=60)

    def bare() -> None:
        """Send each number to a thread and wait for it to come back."""
        there: SimpleQueue[int] = SimpleQueue()
        back: SimpleQueue[int] = SimpleQueue()
        thread = threading.Thread(target=lambda: [back.put(there.get()) for _ in range(count)])
        thread.start()
        for number in range(count):
            there.put(number)
            back.get()
        thread.join()

    def deliver(mode: str) -> list[Batch]:
        """Take every batch from a fetcher."""
        return list(fetch(mode, made, count, prepared))

    yield Quick("fetcher", in_turn(bare, lambda: deliver("thread")))
    if not short:
        yield Quick("fetcher_wall", in_turn(bare, lambda: deliver("thread"), time.perf_counter))
        list(fetch("process", made, 1, prepared))  # its start is not counted
        process = in_turn(bare, lambda: deliver("process"), time.perf_counter)
        yield Quick("fetcher_process_wall", process)
    prepared.close()


def fetch(
    mode: str, made: Batch, count: int, worker: BatchWorker[int, Batch]
) -> BatchFetcher[int, Batch]:
    """Return a fetcher of batches that are made already."""
    return BatchFetcher(
        lambda _: made, range(count), Prefetch(mode=mode), nbytes=batch_bytes, worker=worker
    )


def cost(batches: Iterator[Any], count: int) -> tuple[float, float]:
    """Return seconds, and seconds of a processor here, a batch; the first one is left out."""
    next(batches)
    start, used = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    ended, after = time.perf_counter(), time.process_time()
    return (ended - start) / (count - 1), (after - used) / (count - 1)


def copy_cost(made: Batch, count: int) -> float:
    """Return seconds that one copy of a batch's latents takes, to memory that is there."""
    assert made.latents is not None  # noqa: S101 - made below
    place = torch.empty_like(made.latents)
    start = time.perf_counter()
    for _ in range(count):
        place.copy_(made.latents)
    return (time.perf_counter() - start) / count


def idle(fetcher: BatchFetcher[int, Batch], seconds: float) -> float:
    """Return which share of a core is used here while a trainer works, 0 to 1."""
    batches = iter(fetcher)
    next(batches)
    before = time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - before) / seconds
    batches.close()  # type: ignore[attr-defined]
    return share


def batch(rows: int, edge: int) -> Batch:
    """Return a batch of latents with the texts of a text-to-image model."""
    sizes = torch.full((rows, 2), 512, dtype=torch.int32)
    return Batch(
        backend="photos", bucket="512x512", epoch=0, step=0, global_step=0,
        rows=torch.arange(rows),
        keys=[f"folder/{row:08d}.jpg" for row in range(rows)],
        captions=["a caption of a few words"] * rows,
        original_size=sizes, target_size=sizes, crop_top_left=sizes,
        valid=torch.ones(rows, dtype=torch.bool),
        latents=torch.zeros(rows, 4, edge, edge, dtype=torch.float16),
        text={"embeds": torch.zeros(rows, 77, 64, dtype=torch.float16)},
    )  # fmt: skip
