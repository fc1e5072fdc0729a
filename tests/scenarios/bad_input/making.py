"""Backends over files made for a test: scanned, decided and read as a run does it."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from factory import Batch, FactoryDataModule, ImageBackend, ImageEmbedBackend, Workspace
from factory.catalog.captions.sources import FilenameCaptions
from factory.encoder.dct import BlockDCT
from factory.engine.local_engine import LocalEngine
from factory.reports.run_report import dropped_lines
from factory.storage.local import LocalStorage
from tests.media.pictures import encode, gradient
from tests.support.pixels import pixels_of

# Linux' numbers of the capabilities by which root reads what is forbidden, and of their format.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH, _CAP_VERSION = 1, 2, 0x20080522


def png(width: int = 96, height: int = 64) -> bytes:
    """Return a picture of some size."""
    from PIL import Image

    return encode(Image.fromarray(gradient(width, height)), "PNG")


def place(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a root, by their keys."""
    for key, data in files.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return root


def backend(root: Path, **settings: Any) -> ImageBackend:
    """Return a backend "pics" over the folder "pics" of a root."""
    shared = {
        "name": "pics", "prefix": "pics", "storage": LocalStorage(str(root)),
        "caption": FilenameCaptions(), "resolution": 64, "alignment": 16,
    }  # fmt: skip
    return ImageBackend(**{**shared, **settings})


def module(
    root: Path, *others: ImageBackend, encoded: bool = False, **settings: Any
) -> FactoryDataModule:
    """Return a data module over `backend`, with its latents in a cache if `encoded`."""
    cache = Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"))
    store = ImageEmbedBackend(name="latents", cache=cache, encoder=BlockDCT())
    parts = [backend(root, **settings), *others, *([store] if encoded else [])]
    return FactoryDataModule(parts, batch_size=2, seed=7, cache=cache, engine=LocalEngine(2))


@contextmanager
def prepared(
    root: Path, *others: ImageBackend, encoded: bool = False, **settings: Any
) -> Iterator[FactoryDataModule]:
    """Prepare and plan a data module whose samples are all accounted for; close it at the end."""
    data = module(root, *others, encoded=encoded, **settings)
    try:
        data.prepare_data()
        data.setup()
        for source in data.sources.values():
            made = source.catalog.decisions
            assert len(source.catalog.facts) == made.kept + sum(made.dropped().values())
            assert len(source.catalog) == made.kept == len(made.order)
        yield data
    finally:
        data.close()


def batches(data: FactoryDataModule) -> list[Batch]:
    """Return the batches of the first epoch."""
    return list(data.train_dataloader())


def kept(data: FactoryDataModule, name: str = "pics") -> list[str]:
    """Return the keys of what was kept, sorted."""
    catalog = data.sources[name].catalog
    return sorted(catalog.facts.texts("key", catalog.decisions.order))


def dropped(data: FactoryDataModule) -> list[str]:
    """Return what the report says was dropped."""
    return list(dropped_lines(data.sources.values()))


def details(data: FactoryDataModule, name: str = "pics") -> dict[str, str]:
    """Return what is wrong with each sample that something is wrong with, by key."""
    rows = data.sources[name].catalog.facts.rows()
    return {row.key: row.error or row.text_error or "" for row in rows
            if row.error or row.text_error}  # fmt: skip


def pixels(data: FactoryDataModule, name: str = "pics") -> dict[str, NDArray[np.uint8]]:
    """Return the pixels of everything kept, by key; those of one bucket are read together."""
    source = data.sources[name]
    found = {}
    for bucket in source.catalog.decisions.buckets:
        rows = np.asarray(bucket.rows, dtype=np.int64)
        read = pixels_of(source, rows, data.registry.engine).numpy()
        found.update(zip(source.catalog.facts.texts("key", rows), read, strict=True))
    return found


@contextmanager
def forbidding() -> Iterator[None]:
    """Let this thread be refused what files' modes forbid, also where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION, 0)
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before):
        pytest.skip("root's powers cannot be asked for here")
    less[:] = before[:]
    less[0] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    if libc.capset(header, less):
        pytest.skip("root's powers cannot be laid down here")
    try:
        yield
    finally:
        libc.capset(header, before)
