"""How long do decisions about N rows take: geometry, filters and buckets, on one core?

Rows are made beforehand: sizes at random from 256 to 4096 px, names of some thirty letters,
file-name captions, one row in a thousand unreadable. The catalog is an Arrow file that is
memory-mapped, as it is in a run; private memory is what the process itself holds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line, Quick, in_turn

# Rows made at a time.
PART = 2**20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and how often."""
    parser.add_argument("rows", type=int, metavar="N", help="rows of the catalog")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--random", action="store_true", help="random crops, from hashed names")
    parser.add_argument("--directory", type=Path, help="where the catalog is written")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Write a catalog, decide about it, and tell time and memory."""
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.catalog.decisions import decide
    from factory.media.geometry.geometry import Geometry

    style = "random" if options.random else "center"
    geometry = Geometry(
        1024, crop_style=style, minimum_image_size=400,
        minimum_aspect_ratio=0.4, maximum_aspect_ratio=2.5,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        facts = mapped(write(Path(scratch) / "facts.arrow", options.rows))
        times, clock = [], []
        for _ in range(options.runs):
            start, used = time.perf_counter(), time.process_time()
            made = decide(facts, geometry, FilenameCaptions(), name="bench", seed=1)
            times.append(time.perf_counter() - start)
            clock.append(time.process_time() - used)
        conditions = {"rows": options.rows, "runs": options.runs, "crop": style}
        target = {"target": "< 3 for 10 million rows"}
        yield "decide", statistics.median(times), "s", {**conditions, **target}
        yield "decide, processor time", statistics.median(clock), "s", conditions
        held = (made.reason.nbytes + made.order.nbytes + made.offsets.nbytes) / 2**20
        yield "memory of the decisions", held, "MiB", conditions
        yield "memory of the process", private_mb(), "MiB", {"mapped pages": "left out"}
        yield "peak resident memory", peak_mb(), "MiB", {"mapped pages": "included"}
        yield "kept", made.kept, "rows", {"buckets": len(made.buckets)}


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield decisions about rows beside sorting these by their two edges."""
    import numpy as np

    from factory.catalog.captions.sources import FilenameCaptions
    from factory.catalog.decisions import decide
    from factory.media.geometry.geometry import Geometry

    del short
    facts = mapped(write(scratch / "facts.arrow", 200_000))
    edges = [facts.table[name].to_numpy() for name in ("width", "height")]
    geometry, captions = Geometry(1024, minimum_image_size=400), FilenameCaptions()
    yield Quick(
        "decide",
        in_turn(
            lambda: np.lexsort(edges),
            lambda: decide(facts, geometry, captions, name="bench", seed=1),
        ),
    )


def mapped(path: Path) -> Any:
    """Return facts of a memory-mapped file."""
    import pyarrow as pa

    from factory.catalog.facts import Facts

    return Facts(pa.ipc.open_file(pa.memory_map(str(path))).read_all())


def write(path: Path, rows: int) -> Path:
    """Write a catalog of so many rows, part by part."""
    import numpy as np
    import pyarrow as pa

    from factory.catalog.facts import SCHEMA

    random = np.random.default_rng(1)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as out:
        for first in range(0, rows, PART):
            count = min(PART, rows - first)
            out.write_batch(part(random, first, count))
    return path


def part(random: Any, first: int, count: int) -> Any:
    """Return some rows of made-up facts."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from factory.catalog.facts import SCHEMA

    numbers = np.arange(first, first + count)
    name = pa.array(np.char.mod("%010d", numbers))
    key = pc.binary_join_element_wise("pictures/folder/", name, ".jpg", "")
    bad = pa.array(numbers % 1000 == 0)
    columns = {
        "key": key,
        "size": pa.array(random.integers(10_000, 4_000_000, count)),
        "etag": pc.binary_join_element_wise("17f3a", name, "-"),
        "width": pa.array(random.integers(256, 4096, count, dtype=np.int32)),
        "height": pa.array(random.integers(256, 4096, count, dtype=np.int32)),
        "format": pa.array(np.full(count, "JPEG")),
        "frames": pa.array(np.ones(count, dtype=np.int32)),
        "error": pc.if_else(bad, "truncated: it breaks off", pa.scalar(None, pa.string())),
    }
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns
        else pa.nulls(count, field.type)
        for field in SCHEMA
    ]  # fmt: skip
    return pa.record_batch(arrays, schema=SCHEMA)


def private_mb() -> float:
    """Return memory that is this process's own, without pages of mapped files, MiB.

    Such pages count as private elsewhere while no other process maps the same file.
    """
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    (line,) = (line for line in rollup.splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1]) / 1024


def peak_mb() -> float:
    """Return the highest resident memory so far, mapped files included, MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
