"""How fast is training data that is encoded already, through the whole path, beside its floor?

The floor is a bare gather of the same rows in the same order from one memory map of each field,
into memory that is there: into one batch over and over, which never leaves the processor's cache,
and into as many batches in turn as are kept ready. The path is what a trainer gets: plan, store,
collate, fetcher and the data module's iterator. One file a tensor, as `torch.save` writes it, is
what it replaces. All is read in turns from a warm page cache, so that a busy machine slows all of
them alike.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benches import RUNS, Line, Quick, in_turn

# A 512 px picture of a model with 16 latent channels, and the text of a CLIP encoder.
LATENT = (16, 64, 64)
EMBED = (77, 768)
# Files written for the layout of one file a tensor: reading more only takes longer.
FILES = 1000
_MIB = 2**20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("samples", type=int, nargs="?", default=4000, help="a quarter MB each")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch")
    parser.add_argument("--buckets", type=int, default=1, help="shapes the samples fall into")
    parser.add_argument("--shard-mb", type=float, default=256, help="size of a shard, MiB")
    parser.add_argument("--mode", default="thread", help="where batches are made, as prefetch.mode")
    parser.add_argument("--workers", type=int, default=2, help="threads that make batches")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Fill a cache, then time the floor, the path and files in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        data = module(Path(scratch), options)
        fill(data)
        data.setup()
        floor, files = Floor(Path(scratch), data), Files(Path(scratch) / "files")
        list(data.train_dataloader())  # checksums are compared, and memory is there
        before = private_mb()
        rates: dict[str, list[float]] = {"floor": [], "turns": [], "path": [], "files": []}
        for _ in range(options.runs):
            rates["floor"].append(floor.rate(1))
            rates["turns"].append(floor.rate(data.prefetch.batches))
            rates["path"].append(path_rate(data))
            rates["files"].append(files.rate(options.batch_size))
        held = private_mb() - before
        data.close()
    row = floor.row_bytes
    conditions: dict[str, Any] = {
        "samples": options.samples,
        "batch_size": options.batch_size,
        "KB a sample": round(row / 1000),
        "mode": options.mode,
        "runs": options.runs,
    }
    names = {
        "floor": "bare gather, into one batch",
        "turns": f"bare gather, into {data.prefetch.batches} batches in turn",
        "path": "whole path",
        "files": "one file a tensor",
    }
    for name, words in names.items():
        rate = statistics.median(rates[name])
        yield words, rate, "samples/s", {**conditions, "GB/s": round(rate * row / 1e9, 2)}
    for name, target in (("floor", "> 0.6"), ("turns", "> 0.6"), ("files", "> 10")):
        ratios = [a / b for a, b in zip(rates["path"], rates[name], strict=True)]
        found = {"target": target, "each": [round(ratio, 2) for ratio in ratios]}
        yield f"whole path / {names[name]}", statistics.median(ratios), "", found
    yield "private memory taken meanwhile", held, "MiB", {"cache MiB": options.samples * row / _MIB}


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield one epoch beside the bare gather of its rows, into as many batches in turn."""
    sizes = {"samples": 1000, "batch_size": 16, "buckets": 1, "shard_mb": 256, "workers": 2}
    for mode in ("thread",) if short else ("thread", "process"):
        data = module(scratch / mode, argparse.Namespace(**sizes, mode=mode))
        fill(data)
        data.setup()
        floor = Floor(scratch / mode, data)
        list(data.train_dataloader())  # checksums are compared, and memory is there
        gather = partial(floor.rate, data.prefetch.batches)
        if mode == "thread":
            yield Quick("cached", in_turn(gather, partial(path_rate, data)))
        if not short:
            name = "cached_wall" if mode == "thread" else "cached_process_wall"
            yield Quick(name, in_turn(gather, partial(path_rate, data), time.perf_counter))
        data.close()


@dataclass(frozen=True)
class Listed:
    """Facts of pictures that nobody has to look at, since all is encoded already.

    Attributes:
        samples: How many there are.
        buckets: How many shapes they have.
    """

    samples: int
    buckets: int

    def scan(self, scan: Any, engine: Any) -> Any:
        """Return their facts."""
        import pyarrow as pa

        from factory.catalog.facts import Facts

        del engine
        numbers = np.arange(self.samples)
        table = pa.table(
            {
                "key": [f"folder{n % 100:03d}/picture{n:08d}.jpg" for n in numbers.tolist()],
                "size": np.full(self.samples, 200_000),
                "etag": [f"{n:016x}" for n in numbers.tolist()],
                "width": np.full(self.samples, 512),
                "height": 512 + 64 * (numbers % self.buckets),
                "text": [[f"a picture of thing {n} beside another"] for n in numbers.tolist()],
            }
        )
        return Facts.of_table(table, scan.origin(self), scan.known)


class Image:
    """An encoder of pictures that is only asked for its name."""

    fingerprint, downscale = "bench/image", 8

    def release(self) -> None:
        """Do nothing."""


class Text(Image):
    """An encoder of captions that is only asked for its name."""

    fingerprint = "bench/text"


def module(scratch: Path, options: argparse.Namespace) -> Any:
    """Return a data module of pictures that were measured; no file of them is there."""
    from factory import FactoryDataModule, ImageBackend, Workspace
    from factory.backends.embeddings import ImageEmbedBackend, TextEmbedBackend
    from factory.catalog.captions.sources import ColumnCaptions
    from factory.runtime.prefetch.batch_fetcher import Prefetch
    from factory.storage.local import LocalStorage

    pictures, storage = scratch / "pictures", LocalStorage(str(scratch))
    pictures.mkdir(parents=True)
    place = Workspace(storage, scratch_dir=str(scratch / "scratch"), shard_mb=options.shard_mb)
    embeds: Mapping[str, Any] = {"cache": place}
    return FactoryDataModule(
        [
            ImageBackend(
                name="pictures",
                storage=LocalStorage(str(pictures)),
                metadata=Listed(options.samples, options.buckets),  # type: ignore[arg-type]
                caption=ColumnCaptions(columns=("text",)),
                resolution=512,
            ),
            ImageEmbedBackend(name="latents", encoder=Image(), **embeds),  # type: ignore[arg-type]
            TextEmbedBackend(name="captions", encoder=Text(), **embeds),  # type: ignore[arg-type]
        ],
        batch_size=options.batch_size,
        cache=place,
        prefetch=Prefetch(mode=options.mode, workers=options.workers),
    )


def fill(data: Any) -> None:
    """Write rows for every picture and caption, as precomputing would."""
    import torch

    from factory.registry.precompute import missing_pictures
    from factory.registry.prepare import survey

    sources, _ = survey(data.registry, seed=0)
    source = sources["pictures"]
    noise = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 2**14, (256, *LATENT), dtype=torch.int16, generator=noise)
    embeds = torch.randint(0, 2**14, (256, *EMBED), dtype=torch.int16, generator=noise)
    latents, text = source.latents, source.text
    _, keys = missing_pictures(source, latents)
    with latents.store.writer(latents.recipe(source.backend.reader)) as writer:
        for at in range(0, len(keys), 256):
            some = keys[at : at + 256]
            writer.add(some, {"latents": rows[: len(some)].view(torch.float16)})
    captions = ["", *source.catalog.all_texts()]
    with text.store.writer(text.recipe) as writer:
        for at in range(0, len(captions), 256):
            some = captions[at : at + 256]
            fields = {"embeds": embeds[: len(some)].view(torch.float16)}
            writer.add(text.keys(some), fields)
    for embeds in (latents, text):
        embeds.store.refresh()


class Floor:
    """A bare gather of rows in plan order."""

    def __init__(self, scratch: Path, data: Any) -> None:
        """Write one file of each field."""
        plan = data.plan
        self.steps = [plan.at(0, step).rows for step in range(plan.steps(0))]
        shapes = {"latents": LATENT, "embeds": EMBED}
        self.fields = []
        self.places = [
            [np.empty((len(self.steps[0]), *shape), np.float16) for shape in shapes.values()]
            for _ in range(data.prefetch.batches)
        ]
        for name, shape in shapes.items():
            count = 1 + max(int(rows.max()) for rows in self.steps)
            path = scratch / f"{name}.raw"
            written = np.memmap(path, np.float16, "w+", shape=(count, *shape))
            for row in range(count):
                written[row] = row % 1000
            written.flush()
            self.fields.append(np.memmap(path, np.float16, "r", shape=(count, *shape)))
        self.row_bytes = sum(place[0].nbytes for place in self.places[0])
        self.rate(data.prefetch.batches)

    def rate(self, batches: int) -> float:
        """Return samples a second into so many batches in turn."""
        turns = itertools.cycle(self.places[:batches])
        start = time.perf_counter()
        for rows, places in zip(self.steps, turns, strict=False):
            for field, place in zip(self.fields, places, strict=True):
                field.take(rows, axis=0, out=place[: len(rows)], mode="clip")
        return sum(map(len, self.steps)) / (time.perf_counter() - start)


class Files:
    """One file a tensor, read sample by sample and stacked."""

    def __init__(self, folder: Path) -> None:
        """Write the files."""
        import torch

        folder.mkdir()
        self.paths = [(folder / f"{n}-l.pt", folder / f"{n}-e.pt") for n in range(FILES)]
        for latent, embed in self.paths:
            torch.save(torch.zeros(LATENT, dtype=torch.float16), latent)
            torch.save(torch.zeros(EMBED, dtype=torch.float16), embed)

    def rate(self, batch_size: int) -> float:
        """Return samples a second."""
        import torch

        order = np.random.default_rng(1).permutation(FILES).tolist()
        start = time.perf_counter()
        for at in range(0, FILES, batch_size):
            chosen = [self.paths[n] for n in order[at : at + batch_size]]
            for kind in (0, 1):
                torch.stack([torch.load(paths[kind], weights_only=True) for paths in chosen])
        return FILES / (time.perf_counter() - start)


def path_rate(data: Any, part: float = 1.0) -> float:
    """Return samples a second of one epoch, or of a part of it, as a trainer gets it."""
    loader, count = data.train_dataloader(), 0
    steps = round(len(loader) * part)
    start = time.perf_counter()
    for batch in itertools.islice(loader, steps):
        count += len(batch)
    return count / (time.perf_counter() - start)


def private_mb() -> float:
    """Return memory that this process alone holds, MiB."""
    return float(psutil.Process().memory_full_info().uss) / _MIB
