"""How quickly does a published catalog of N rows open, and a row of it come?

Opening is what a run does: look at the published object, then map the Arrow file. Memory is
what the process itself holds, not what it maps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benches import RUNS, Line
from benches.decide import private_mb, write

LOOKUPS = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and how often."""
    parser.add_argument("rows", type=int, metavar="N", help="rows of the catalog")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--directory", type=Path, help="where the catalog is written")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Publish a catalog, open it several times, and look rows up."""
    import numpy as np

    from factory.catalog.facts_store import FactsStore
    from factory.storage import LocalStorage

    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        shelf = FactsStore(LocalStorage(scratch), "facts.parquet", Path(scratch) / "facts.arrow")
        publish(shelf, options.rows)
        before = private_mb()
        times, found = [], None
        for _ in range(options.runs):
            start = time.perf_counter()
            found = shelf.load()
            times.append(time.perf_counter() - start)
        conditions = {"rows": options.rows, "runs": options.runs}
        yield "open", statistics.median(times), "s", {**conditions, "target": "< 0.5"}
        memory = {**conditions, "target": "< 300"}
        yield "private memory", private_mb() - before, "MiB", memory
        looks = []
        for row in np.random.default_rng(2).integers(0, options.rows, LOOKUPS).tolist():
            start = time.perf_counter()
            found.key(row), found.take("width", [row]), found.take("height", [row])  # type: ignore[union-attr]
            looks.append(time.perf_counter() - start)
        look = {"rows looked up": LOOKUPS, "columns": 3, "target": "< 100"}
        yield "look up a row", statistics.median(looks) * 1e6, "us", look
        yield "look up a row, 99 of 100", float(np.quantile(looks, 0.99)) * 1e6, "us", look


def publish(shelf: object, rows: int) -> None:
    """Put a catalog in place as `FactsStore.save` leaves it.

    Only the mapped file is written whole: the Parquet object beside it is looked at when a
    catalog opens, not read.
    """
    import pyarrow as pa

    from factory.catalog.facts_store import FORMAT_VERSION, write_mapped

    shelf.storage.write(shelf.key, b"a stand-in")  # type: ignore[attr-defined]
    etag = shelf.storage.head(shelf.key).etag  # type: ignore[attr-defined]
    header = {"format_version": FORMAT_VERSION, "origin": {}, "rows": rows}
    mapped: Path = shelf.mapped  # type: ignore[attr-defined]
    source = pa.ipc.open_file(pa.memory_map(str(write(mapped.with_suffix(".plain"), rows))))
    batches = (source.get_batch(number) for number in range(source.num_record_batches))
    write_mapped(mapped, source.schema, batches, header, etag)
