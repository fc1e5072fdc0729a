"""How fast is it? `python scripts/bench.py NAME` prints one JSON object a line.

Each object has `bench`, `metric`, `value`, `unit` and `conditions`. Values are medians of
several runs; machines differ and are shared, so compare values of one run with each other.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Enough for a steady median on a shared machine, few enough to wait for.
RUNS = 5

IMPORT = "import time; t = time.perf_counter(); import factory; print(time.perf_counter() - t)"
TORCH_FREE = "import sys, factory; print(int('torch' in sys.modules))"
# Imports are timed apart: they are paid once by any program that trains.
BUILD = """
import time, torch, lightning, factory.builder
t = time.perf_counter()
cfg = factory.compose(["data=multi"])
composed = time.perf_counter()
factory.builder.build(cfg)
print(composed - t, time.perf_counter() - composed)
"""

Line = tuple[str, float, str, dict[str, Any]]


def main() -> int:
    """Run one benchmark and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="NAME")
    benches.add_parser("startup", help="import factory; compose and build the multi demo")
    images = benches.add_parser("images", help="a folder of pictures to batches, no cache")
    images.add_argument("directory", type=Path, metavar="DIR", help="folder of JPEG files")
    images.add_argument("--resolution", type=int, default=512, help="px, edge of equal area")
    images.add_argument("--batch-size", type=int, default=16, help="samples per batch")
    options = parser.parse_args()
    chosen: Callable[[argparse.Namespace], Iterator[Line]]
    chosen = {"startup": startup, "images": pictures}[options.bench]
    for metric, value, unit, conditions in chosen(options):
        line = {"bench": options.bench, "metric": metric, "value": round(value, 4), "unit": unit}
        print(json.dumps({**line, "conditions": {**machine(), **conditions}}), flush=True)
    return 0


def machine() -> dict[str, Any]:
    """Return what every figure depends on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def startup(options: argparse.Namespace) -> Iterator[Line]:
    """Time `import factory`, and composing and building the multi demo, each in a new process."""
    del options
    conditions = {"runs": RUNS, "processes": "new, file cache warm"}
    run_python(IMPORT)
    imports = [float(run_python(IMPORT)[0]) for _ in range(RUNS)]
    yield "import factory", statistics.median(imports), "s", {**conditions, "target": "< 0.5"}
    yield "torch imported by it", float(run_python(TORCH_FREE)[0]), "modules", {"target": "0"}
    runs = [[float(text) for text in run_python(BUILD)] for _ in range(RUNS)]
    both = [sum(run) for run in runs]
    yield "compose", statistics.median(run[0] for run in runs), "s", conditions
    yield "build", statistics.median(run[1] for run in runs), "s", conditions
    target = {**conditions, "target": "< 1.5", "data": "multi", "imports": "not counted"}
    yield "compose and build", statistics.median(both), "s", target


def run_python(code: str) -> list[str]:
    """Run code in a new interpreter and return the words it printed."""
    done = subprocess.run(  # noqa: S603 - this interpreter, with code from above
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def pictures(options: argparse.Namespace) -> Iterator[Line]:
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


if __name__ == "__main__":
    sys.exit(main())
