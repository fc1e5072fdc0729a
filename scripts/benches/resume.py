"""How long until the first batch of a resumed run of N rows: from its state to the batch?

Facts are made up beforehand, as in `decide`, and decided about; the data module, its plan,
fingerprint, loader and prefetch are the real ones. Pictures are not read: the batch tells its
rows. Every run hashes the names and the order of all rows anew, as a new process must.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line, Quick, in_turn
from benches.decide import mapped, private_mb, write

# Optimizer steps from the start of a run at which it is resumed.
STEPS = (0, 1_000_000)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and how often."""
    parser.add_argument(
        "rows", type=int, nargs="?", default=1_000_000, metavar="N", help="rows of the catalog"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--directory", type=Path, help="where the catalog is written")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Decide about a catalog, and resume from several steps."""
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        folder = Path(scratch)
        source = _source(write(folder / "facts.arrow", options.rows), folder)
        for step in STEPS:
            times = [_resume(source, step) for _ in range(options.runs)]
            conditions = {"rows": options.rows, "runs": options.runs, "step": step}
            target = {"target": "< 1 for 10 million rows"}
            median = statistics.median(times)
            yield "state to first batch", median, "s", {**conditions, **target}
            yield "memory of the process", private_mb(), "MiB", {"mapped pages": "left out"}


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield a resumed run, and the one before it, beside hashing the rows' names for both."""
    del short
    source = _source(write(scratch / "facts.arrow", 200_000), scratch)
    names = source.catalog.facts.table["key"].combine_chunks().buffers()[-1]

    def digest() -> None:
        """Hash the names as often as the two runs must."""
        for _ in range(2):
            hashlib.sha256(names).digest()

    yield Quick("resume", in_turn(digest, lambda: _resume(source, 1000)))


def _source(path: Path, folder: Path) -> Any:
    """Return a backend made ready, without its pictures."""
    from factory import ImageBackend
    from factory.backends.prepared import PreparedBackend
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.storage.local import LocalStorage

    backend = ImageBackend(
        name="bench", storage=LocalStorage(str(folder)), caption=FilenameCaptions(), repeats=1
    )
    return PreparedBackend(backend, backend.catalog(mapped(path), 1), None, None)


def _resume(source: Any, at: int) -> float:
    """Resume a new data module from a step; return the seconds until its first batch."""
    from factory.lightning.data_state import sealed
    from factory.lightning.datamodule import FactoryDataModule

    class Fake(FactoryDataModule):
        """Batches that tell their rows."""

        def _collate(self) -> Any:
            return _told

    def module() -> Any:
        data = Fake([source.backend], batch_size=16, seed=1)
        data.sources = {"bench": source}
        return data

    before = module()
    before.setup()
    epoch, step = before.plan.position(at)
    state = sealed({**before.state_dict(), "epoch": epoch, "step": step})
    data = module()
    start = time.perf_counter()
    data.setup()
    data.load_state_dict(state)
    rows = next(iter(data.train_dataloader())).rows.tolist()
    seconds = time.perf_counter() - start
    if rows != before.plan.at(epoch, step).rows.tolist():
        raise AssertionError("another batch")
    data.close()
    before.close()
    return seconds


def _told(part: Any) -> Any:
    """Return a batch that holds its rows alone."""
    import torch

    from factory import Batch

    step, none = part.step, torch.zeros(0)
    return Batch(
        step.backend, step.bucket, step.epoch, step.step, step.global_step,
        torch.from_numpy(part.rows), [], [], none, none, none, none,
    )  # fmt: skip
