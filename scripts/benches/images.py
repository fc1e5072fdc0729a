"""How many pictures a second go from a folder to batches, without a cache?

The whole path is timed (catalog, plan, read, decode, turn upright, resize, crop, stack to uint8
batches), in turns with a torch DataLoader of two worker processes in which Pillow does the same
to the same pictures by decoding them whole and resizing by Lanczos.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line, Quick, in_turn

# Of the DataLoader: one for each core of the smallest machine this is run on.
WORKERS = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and how large it becomes."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of JPEG files")
    parser.add_argument("--resolution", type=int, default=512, help="px, edge of equal area")
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch")
    parser.add_argument("--decode", default="fast", choices=["fast", "exact"], help="as the option")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each; medians are given")
    parser.add_argument("--make", type=int, default=0, metavar="N", help="write N pictures first")
    parser.add_argument("--make-size", default="1024x768", metavar="WxH", help="their size, px")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Time both pipelines in turns over the same pictures, then compare their pixels."""
    folder = options.directory.resolve()
    if options.make:
        make(folder, options.make, options.make_size)
    with tempfile.TemporaryDirectory() as scratch:
        data = pixel_module(folder, Path(scratch), options)
        start = time.perf_counter()
        data.prepare_data()
        data.setup()
        ready = time.perf_counter() - start
        source = data.sources["pictures"]
        conditions = {
            "files": len(source.catalog.facts),
            "kept": len(source.catalog),
            "resolution": options.resolution,
            "batch_size": options.batch_size,
            "decode": options.decode,
        }
        yield "scan and plan", len(source.catalog.facts) / ready, "files/s", conditions
        yield from compare(data.train_dataloader(), source, {**conditions, "runs": options.runs})
        data.close()


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield pictures to batches beside Pillow's decoding, resizing and cutting of the same."""
    del short
    folder = scratch / "pictures"
    make(folder, 32, "1024x768")  # two batches for each worker
    options = argparse.Namespace(resolution=512, batch_size=8, decode="fast")
    data = pixel_module(folder, scratch / "cache", options)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    keys = [key for batch in loader for key in batch.keys]
    pillow = PillowLoader(data.sources["pictures"], [keys]).loader.dataset
    yield Quick("images", in_turn(lambda: [pillow[key] for key in keys], lambda: rate(loader)))
    data.close()


def compare(ours: Any, source: Any, conditions: dict[str, Any]) -> Iterator[Line]:
    """Time our loader and Pillow's in turns; yield rates, their ratio and the difference."""
    theirs = PillowLoader(source, [batch.keys for batch in ours])
    next(iter(theirs.loader))  # its processes start, and stay
    rates, other = [], []
    for _ in range(conditions["runs"]):
        rates.append(rate(ours))
        other.append(rate(theirs.loader))
    yield "images to batches", statistics.median(rates), "images/s", conditions
    other_conditions = {**conditions, "workers": WORKERS, "their start": "not counted"}
    yield "Pillow in a DataLoader", statistics.median(other), "images/s", other_conditions
    ratio = statistics.median(one / two for one, two in zip(rates, other, strict=True))
    target = {**other_conditions, "target": ">= 2.0"}
    yield "images to batches / Pillow in a DataLoader", ratio, "ratio", target
    quality = [psnr for batch in ours for psnr in theirs.difference(batch)]
    target = {**conditions, "target": ">= 36", "least": round(min(quality), 2)}
    yield "mean PSNR against Pillow", statistics.mean(quality), "dB", target


def rate(loader: Any) -> float:
    """Return how many pictures a second an epoch of a loader gives."""
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return count / (time.perf_counter() - start)


class PillowLoader:
    """The same batches made by Pillow in worker processes; a map-style dataset by key."""

    def __init__(self, source: Any, batches: list[list[str]]) -> None:
        """Take each picture's cut from a source, and start a loader of batches of keys."""
        from torch.utils.data import DataLoader

        self.folder = Path(source.backend.storage.root)
        rows = source.catalog.decisions.order
        self.cuts = {picture.key: picture.crop for picture in source.pictures(rows)}
        self.loader = DataLoader(
            PillowPictures(self.folder, self.cuts),  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=WORKERS,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )

    def difference(self, batch: Any) -> list[float]:
        """Return the PSNR of each picture of one of our batches, dB; 100 where it is equal."""
        import torch

        theirs = torch.stack([self.loader.dataset[key] for key in batch.keys])
        error = (batch.pixels.float() - theirs.float()).square().flatten(1).mean(1)
        return (10 * (255**2 / error.clamp(min=255**2 / 1e10)).log10()).tolist()


class PillowPictures:
    """Pictures by key, as one would write it with Pillow: decoded whole, resized by Lanczos."""

    def __init__(self, folder: Path, cuts: dict[str, Any]) -> None:
        """Store where the pictures lie and how each is cut."""
        self.folder, self.cuts = folder, cuts

    def __getitem__(self, key: str) -> Any:
        """Return uint8 RGB [H, W, 3]."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        cut = self.cuts[key]
        (top, left), (wide, tall) = cut.offset, cut.target
        with Image.open(self.folder / key) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        image = image.resize(cut.intermediary, Image.Resampling.LANCZOS)
        image = image.crop((left, top, left + wide, top + tall))
        return torch.from_numpy(np.array(image))


def pixel_module(folder: Path, scratch: Path, options: argparse.Namespace) -> Any:
    """Return a data module that gives pixels of a folder, captions from file names."""
    from factory import FactoryDataModule, ImageBackend, Workspace
    from factory.catalog.captions.sources import FilenameCaptions
    from factory.storage.local import LocalStorage

    place = Workspace(LocalStorage(str(scratch)))
    backend = ImageBackend(
        name="pictures",
        storage=LocalStorage(str(folder)),
        caption=FilenameCaptions(),
        resolution=options.resolution,
        decode=options.decode,
    )
    return FactoryDataModule([backend], batch_size=options.batch_size, cache=place)


def make(folder: Path, count: int, size: str) -> None:
    """Write JPEGs of a size, tiled from the photographs that the demo's packages ship."""
    import numpy as np
    from PIL import Image

    from factory.demo.photographs import PHOTOGRAPHS

    folder.mkdir(parents=True, exist_ok=True)
    wide, tall = (int(edge) for edge in size.split("x"))
    rng = np.random.default_rng(0)
    whole = [np.asarray(photograph.read()) for photograph in PHOTOGRAPHS]
    for number in range(count):
        tile = whole[number % len(whole)]
        # Mirrored, so that no edge appears that is in no photograph.
        tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
        tile = np.concatenate([tile, tile[::-1]], axis=0)
        repeats = (tall // tile.shape[0] + 2, wide // tile.shape[1] + 2, 1)
        top, left = rng.integers(tile.shape[0]), rng.integers(tile.shape[1])
        picture = np.tile(tile, repeats)[top : top + tall, left : left + wide]
        Image.fromarray(picture).save(folder / f"{size}-{number:05}.jpg", quality=90)
