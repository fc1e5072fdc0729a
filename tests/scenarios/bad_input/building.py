"""Data modules composed and built as `train.py` does, and what a user is told when they fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from factory import Batch, FactoryDataModule, build, compose
from factory.commands.cli import describe
from factory.errors import FactoryError


def built(root: Path, *overrides: str) -> FactoryDataModule:
    """Return a data module on a folder, with no backends but those of the overrides."""
    shared = [
        "data=picked",
        "data/dataset=[]",
        f"paths.data_dir={root}",
        f"paths.scratch_dir={root}/scratch",
        "data.resolution=64",
        "data.alignment=16",
        "data.batch_size=2",
        "prefetch=inline",
        "engine.workers=2",
    ]
    every = [*shared, *overrides]
    return build(compose(every), every)


def image(name: str = "pics", more: str = "") -> str:
    """Return the override that adds a backend of pictures in a folder of its name."""
    return f"+data.backends.{name}={{kind:image{',' if more else ''}{more}}}"


def pinned(name: str, **slots: str) -> tuple[str, ...]:
    """Return the overrides that add a backend with options of its own in some slots."""
    groups = {"caption": "data/caption"}
    options = (f"{groups.get(s, s)}@data.backends.{name}={o}" for s, o in slots.items())
    return (f"+data/backend@data.backends.{name}=image", *options)


def batches(data: FactoryDataModule) -> list[Batch]:
    """Prepare, plan and return the batches of the first epoch."""
    data.prepare_data()
    data.setup()
    return list(data.train_dataloader())


@contextmanager
def refused(kind: type[FactoryError], *parts: str) -> Iterator[None]:
    """Expect an error whose text, as the command line shows it, holds all the parts."""
    with pytest.raises(kind) as caught:
        yield
    text = describe(caught.value)
    for part in parts:
        assert part in text, text
