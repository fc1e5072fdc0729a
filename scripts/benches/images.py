"""How many pictures a second go from a folder to batches, without a cache?"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and how large it becomes."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of JPEG files")
    parser.add_argument("--resolution", type=int, default=512, help="px, edge of equal area")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time a folder of pictures through scan, plan, decode, crop and collate."""
    folder = options.directory.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        data = pixel_module(folder, Path(scratch), options)
        start = time.perf_counter()
        data.prepare_data()
        data.setup()
        ready = time.perf_counter() - start
        found = len(data.sources["pictures"].catalog.facts)
        conditions = {
            "files": found,
            "kept": len(data.sources["pictures"].catalog),
            "resolution": options.resolution,
            "batch_size": options.batch_size,
        }
        yield "scan and plan", found / ready, "files/s", conditions
        loader = data.train_dataloader()
        rates, floor = [], decode_rate(data)
        for _ in range(RUNS):
            start = time.perf_counter()
            count = sum(len(batch) for batch in loader)
            rates.append(count / (time.perf_counter() - start))
        rate = statistics.median(rates)
        yield "images to batches", rate, "images/s", {**conditions, "runs": RUNS}
        yield "decode and crop alone, one thread", floor, "images/s", conditions
        yield "batches / decode alone", rate / floor, "ratio", conditions
        data.close()


def pixel_module(folder: Path, scratch: Path, options: argparse.Namespace) -> Any:
    """Return a data module that gives pixels of a folder, captions from file names."""
    from factory import CachePlace, FactoryDataModule, ImageBackend
    from factory.storage.local import LocalStorage

    place = CachePlace(LocalStorage(str(scratch)))
    backend = ImageBackend(
        name="pictures", storage=LocalStorage(str(folder)), resolution=options.resolution
    )
    return FactoryDataModule([backend], batch_size=options.batch_size, cache=place)


def decode_rate(data: Any) -> float:
    """Return how many pictures a second one thread reads, decodes and cuts, without a plan."""
    from factory.backends.picture import ReadPicture

    source = data.sources["pictures"]
    wanted = source.pictures(source.catalog.decisions.order)
    read = ReadPicture(source.backend.storage)
    start = time.perf_counter()
    for picture in wanted:
        read(picture)
    return len(wanted) / (time.perf_counter() - start)
