"""How quickly does a tensor store's index of N rows open, and a batch's keys be found in it?

The first process merges what 400 writers published and leaves a table on this machine; every
later one maps it. Beside it, measured in the same run, stands the floor: mapping the same
bytes and reading them once. Memory is what the process itself holds, not what it maps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line
from benches.decide import private_mb

SHARDS = 400
BATCH = 16
LOOKUPS = 2000
# Rows of one more shard, published after the index was opened.
NEW = 5000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and how often."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the index")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--directory", type=Path, help="where the store is written")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Publish an index, open it several times, look keys up, and refresh."""
    import numpy as np

    from factory.cache.store import TensorStore
    from factory.storage import LocalStorage

    conditions = {"rows": options.rows, "shards": SHARDS, "runs": options.runs}
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:

        def fresh() -> TensorStore:
            return TensorStore(LocalStorage(scratch), "cache")

        keys = keys_of(options.rows, seed=1)
        publish(fresh(), keys)
        chosen = keys[np.random.default_rng(2).integers(0, options.rows, (LOOKUPS, BATCH))]
        del keys
        took = _seconds(lambda: fresh().open())
        yield "first open, which merges", took, "s", {**conditions, "runs": 1}
        before = private_mb()
        floor, opened = [], []
        for _ in range(options.runs):
            floor.append(_seconds(lambda: read_once(Path(scratch) / "cache/merged")))
            store = fresh()
            opened.append(_seconds(store.open))
        yield "floor: map the same bytes, read once", statistics.median(floor), "s", conditions
        yield "open", statistics.median(opened), "s", {**conditions, "target": "< 0.5"}
        yield from _lookups(store, chosen, options.rows)
        memory = {**conditions, "target": "does not grow with rows"}
        yield "private memory of an open store", private_mb() - before, "MiB", memory
        took = _refresh(fresh(), store)
        yield "refresh", took, "s", {**conditions, "new rows": NEW, "runs": 1}


def _lookups(store: Any, chosen: Any, rows: int) -> Iterator[Line]:
    import numpy as np

    index = store.snapshot().index
    times = [_seconds(lambda keys=keys: index.find(keys)) * 1e6 for keys in chosen]
    conditions = {"rows": rows, "keys": BATCH, "batches": LOOKUPS, "target": "< 100"}
    yield "find a batch", statistics.median(times), "us", conditions
    yield "find a batch, 99 of 100", float(np.quantile(times, 0.99)), "us", conditions


def _refresh(writer: Any, store: Any) -> float:
    publish(writer, keys_of(NEW, seed=3), shards=1)
    return _seconds(store.refresh)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_once(folder: Path) -> None:
    """Map every file of a folder and look at each of its bytes."""
    import numpy as np

    for path in folder.glob("*.safetensors"):
        np.memmap(path, np.uint8, "r")[: path.stat().st_size // 8 * 8].view(np.uint64).max()


def keys_of(rows: int, seed: int) -> Any:
    """Return keys as hashing gives them, V16 [rows]."""
    import numpy as np

    from factory.cache.format.recipe import KEY_DTYPE

    halves = np.random.default_rng(seed).integers(0, 2**64, 2 * rows, dtype=np.uint64)
    return halves.view(KEY_DTYPE)


def publish(store: Any, keys: Any, shards: int = SHARDS) -> None:
    """Put segments in place as writers leave them, with a stand-in for each shard.

    An index looks at the size of a shard's file and not into it, so the files are of a byte.
    """
    import numpy as np

    from factory.cache.format.segment import ShardRecord, ShardStamp, new_segment, note
    from factory.cache.format.shard import RowField
    from factory.cache.writer import new_name, publish_segment

    layout = (RowField("latents", "F16", (16, 64, 64)),)
    for number, part in enumerate(np.array_split(keys, shards)):
        stamp = store.next_stamp()
        record = ShardRecord(new_name(stamp), 1, len(part), layout, '{"kind":"latents"}', 1)
        store.storage.write(store.shard_files.key(record.name), b"\0")
        rows = np.arange(len(part))
        zeros = np.zeros(len(part), np.uint32)
        notes = [
            note(f"photos/{number:04}/{row:06}.jpg", {"etag": "5-1a"}) for row in range(len(part))
        ]
        place = [ShardStamp(stamp, record)]
        segment = new_segment(stamp, place, part, zeros, rows, rows.astype(np.uint64), notes)
        publish_segment(store.index_files, segment)
