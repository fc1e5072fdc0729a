"""How fast is an epoch of encoded rows from S3: the first, and the second from its copies?

A server on loopback holds a cache; rows are gathered in random order, as a plan would, while
coming ones are fetched ahead. What the S3 client reaches on the same bytes is measured in turns
with it: in whole shards and in parts, which are thrown away (the better of the two is the first
floor), and in parts that are written to files as they come, which any copy must do (the second).
Client and server share this machine's cores, so what the one gains the other loses.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from benches import Line

_MIB = 2**20
_PART = 8 * _MIB
RUNS = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how much there is."""
    parser.add_argument("--mb", type=int, default=512, help="size of the cache, MiB")
    parser.add_argument("--row-kb", type=int, default=128, help="size of a row, KiB")
    parser.add_argument("--shard-mb", type=float, default=64.0, help="size of a shard, MiB")
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a batch")
    parser.add_argument("--ahead-mb", type=float, default=1024.0, help="fetched ahead, MiB")
    parser.add_argument("--disk-gb", type=float, help="limit of the copies; none if not given")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Measure the client, a first epoch and a second one, in turns."""
    from factory.demo.s3server import S3Server

    with tempfile.TemporaryDirectory(prefix="cached-s3-") as folder:
        root = Path(folder)
        with S3Server(root / "server") as server, patch.dict(os.environ, server.environment()):
            yield from _measure(root, options)


def _measure(root: Path, options: argparse.Namespace) -> Iterator[Line]:
    from factory.cache.store import TensorStore
    from factory.storage import S3Storage
    from factory.storage.local import LocalStorage

    far = S3Storage("training-data", endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
    here = LocalStorage(str(root / "local"))
    keys = write(TensorStore(far, "cache", shard_mb=options.shard_mb), options)
    write(TensorStore(here, "cache", shard_mb=options.shard_mb), options)
    rates: dict[str, list[float]] = {
        name: [] for name in ("whole", "parts", "written", "first", "second", "here")
    }
    size = len(keys) * options.row_kb / 1024
    for number in range(options.runs):
        for name, part in (("whole", None), ("parts", _PART)):
            rates[name].append(size / timed(client, far, part))
        rates["written"].append(size / timed(written, far, root / "written"))
        # A page cache that fills up anew each time would be measured with it.
        shutil.rmtree(root / "written")
        copies = str(root / "copies")
        store = TensorStore(
            far, "cache", local_dir=copies, shard_mb=options.shard_mb, disk_gb=options.disk_gb
        )
        for name, each in (
            ("first", store),
            ("second", store),
            ("here", TensorStore(here, "cache")),
        ):
            rates[name].append(size / timed(epoch, each, keys, options, seed=number))
        store.close()
        shutil.rmtree(copies)
    far.close()
    yield from _lines(rates, options)


def _lines(rates: dict[str, list[float]], options: argparse.Namespace) -> Iterator[Line]:
    """Yield the medians of rates, MiB/s, and of what one is of another."""

    def share(name: str, of: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], of, strict=True))

    each = {name: [round(rate, 1) for rate in found] for name, found in rates.items()}
    given = {name: value for name, value in vars(options).items() if name not in ("bench", "run")}
    for name, meaning, conditions in (
        ("whole", "client, whole shards", {}),
        ("parts", "client, parts of 8 MiB", {}),
        ("written", "client, parts written as they come", {}),
        ("first", "first epoch", {**given, "each": each}),
        ("second", "second epoch", {}),
    ):
        yield meaning, statistics.median(rates[name]), "MiB/s", conditions
    best = [max(pair) for pair in zip(rates["whole"], rates["parts"], strict=True)]
    yield "first epoch / client's best", share("first", best), "", {"target": ">= 0.7"}
    yield "first epoch / client's parts written", share("first", rates["written"]), "", {}
    yield "second epoch / gathered from a local cache", share("second", rates["here"]), "", {}


def write(store: Any, options: argparse.Namespace) -> Any:
    """Fill a store with rows of random bytes; return their keys."""
    import torch

    from factory.cache.format.recipe import recipe_keys

    count = options.mb * 1024 // options.row_kb
    keys = recipe_keys({"bench": "cached_s3"}, {"row": range(count)})
    with store.writer(recipe={"bench": "cached_s3"}) as writer:
        for start in range(0, count, 256):
            some = keys[start : start + 256]
            rows = torch.randint(0, 256, (len(some), options.row_kb * 1024), dtype=torch.uint8)
            writer.add(some, {"latents": rows})
    return keys


def client(storage: Any, part: int | None) -> None:
    """Read all shards, whole or in parts, as fast as the client can."""
    for data in storage.read_many(spans_of(storage, part)):
        if isinstance(data, Exception):
            raise data


def written(storage: Any, folder: Path) -> None:
    """Write all shards to files in parts, each piece as it comes."""
    spans = spans_of(storage, _PART)
    folder.mkdir()
    with ExitStack() as stack:
        names = {key for key, _, _ in spans}
        files = {
            key: stack.enter_context((folder / Path(key).name).open("wb", buffering=0))
            for key in names
        }

        def put(number: int, offset: int, pieces: Any) -> None:
            key, start, _ = spans[number]
            os.pwritev(files[key].fileno(), pieces, start + offset)

        for size in storage.read_to(spans, put):
            if isinstance(size, Exception):
                raise size


def spans_of(storage: Any, part: int | None) -> list[tuple[str, int, int | None]]:
    """Return what is asked for to read all shards: whole, or in parts of so many bytes."""
    spans: list[tuple[str, int, int | None]] = []
    for info in storage.objects("cache/shards"):
        if part is None:
            spans.append((info.key, 0, None))
        else:
            starts = range(0, info.size, part)
            spans += [(info.key, start, min(part, info.size - start)) for start in starts]
    return spans


def epoch(store: Any, keys: Any, options: argparse.Namespace, *, seed: int) -> None:
    """Gather all rows in random order, with those to come fetched ahead."""
    from factory.cache.gather.gather_plan import GatherPlan
    from factory.runtime.prefetch.cache_prefetch import CachePrefetcher

    order = np.random.default_rng(seed).permutation(len(keys))
    steps = [order[n : n + options.batch_size] for n in range(0, len(order), options.batch_size)]

    def parts() -> Iterator[Any]:
        for number in range(len(steps)):
            yield SimpleNamespace(step=SimpleNamespace(global_step=number))

    def needs(part: Any) -> Iterator[Any]:
        refs = store.snapshot().index.find(keys[steps[part.step.global_step]])
        yield GatherPlan(store, refs)

    out: dict[str, Any] = {}
    copied = store.shard_files.copied
    ahead = CachePrefetcher(needs, [store], options.ahead_mb, plan=7)
    for part in ahead.along(parts) if copied else parts():
        store.gather(keys[steps[part.step.global_step]], out)


def timed(work: Any, *given: Any, **named: Any) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work(*given, **named)
    return time.perf_counter() - start
