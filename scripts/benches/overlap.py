"""Does a trainer wait where every read takes 20 ms: what share of its time, and how often?

Each read of the storage waits as one of a distant server does, any number of them at once; the
trainer takes 50 ms a step and leaves the processor alone meanwhile, as one on a GPU does. The
first batch, which nothing can come before, is not counted. A second line has the pictures lie
on the disk itself: what waiting is left there is for the processor.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benches import RUNS, Line
from benches.images import make
from factory.errors import StorageError
from factory.storage.base import Span
from factory.storage.event_loop import OrderedRequests
from factory.storage.local import LocalStorage

# A step that waits longer is noticed; less is the handing over itself.
LATE_S = 0.001
# Reads begun before the first is taken: as many as S3's storage has by default.
AHEAD = 64


@dataclass(frozen=True)
class DistantStorage(LocalStorage):
    """A folder of which every read takes a while.

    Attributes:
        delay_s: Seconds that a read waits.
    """

    spans_at_once: ClassVar[int] = 256

    delay_s: float = 0.0

    @property
    def remote(self) -> bool:
        """True: reads wait."""
        return True

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Wait, then read."""
        time.sleep(self.delay_s)
        return super().read(key, start, length)

    def read_many(self, spans: Sequence[Span]) -> Generator[bytes | StorageError, None, None]:
        """Wait for many at once, and yield them in their order."""

        async def arrive(span: Span) -> bytes | StorageError:
            """Wait, then read."""
            await asyncio.sleep(self.delay_s)
            try:
                return LocalStorage.read(self, *span)
            except StorageError as error:
                return error

        return OrderedRequests(arrive, spans, AHEAD)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how slow everything is."""
    parser.add_argument("--read-ms", type=float, default=20, help="time of a read, ms")
    parser.add_argument("--step-ms", type=float, default=50, help="time of a training step, ms")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run")
    parser.add_argument("--size", default="320x320", metavar="WxH", help="of the pictures, px")
    parser.add_argument("--resolution", type=int, default=256, help="px, edge of equal area")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Train on nothing from a distant storage, and from the disk."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        make(folder, options.steps * options.batch_size, options.size)
        root = str(folder)
        distant = DistantStorage(root, delay_s=options.read_ms / 1000)
        for name, storage in (("distant", distant), ("disk", LocalStorage(root))):
            yield from storage_lines(name, storage, Path(scratch) / name, options)


def storage_lines(
    name: str, storage: LocalStorage, scratch: Path, options: argparse.Namespace
) -> Iterator[Line]:
    """Time runs over one storage."""
    from factory import FactoryDataModule, ImageBackend, Workspace
    from factory.catalog.captions.sources import FilenameCaptions

    backend = ImageBackend(
        name="pictures", storage=storage, caption=FilenameCaptions(), resolution=options.resolution
    )
    place = Workspace(LocalStorage(str(scratch)))
    data = FactoryDataModule([backend], batch_size=options.batch_size, cache=place)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    waits = [waited(loader, options.step_ms / 1000) for _ in range(options.runs)]
    data.close()
    shares = [sum(run) / (sum(run) + len(run) * options.step_ms / 1000) for run in waits]
    conditions: dict[str, Any] = {
        "read_ms": options.read_ms if name == "distant" else "as it is",
        "step_ms": options.step_ms,
        "batch_size": options.batch_size,
        "size": options.size,
        "resolution": options.resolution,
        "steps": len(waits[0]),
        "runs": options.runs,
    }
    target = {"target": "< 2", "each": [round(100 * share, 2) for share in shares]}
    yield f"{name}: time waited", 100 * statistics.median(shares), "%", {**conditions, **target}
    late = [wait for run in waits for wait in run if wait > LATE_S]
    yield f"{name}: steps that waited > 1 ms", len(late) / options.runs, "per run", conditions


def waited(loader: Any, step_s: float) -> list[float]:
    """Return the seconds that each step of an epoch waited for its batch, but the first."""
    waits = []
    before = time.perf_counter()
    for _ in loader:
        waits.append(time.perf_counter() - before)
        time.sleep(step_s)
        before = time.perf_counter()
    return waits[1:]
