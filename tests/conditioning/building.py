"""Data modules of pictures and, beside them, conditioning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from factory import ConditioningBackend, FactoryDataModule, ImageBackend, Workspace
from factory.backends.embeddings import ImageEmbedBackend
from factory.catalog.captions.sources import FilenameCaptions
from factory.conditioning import BatchGenerator
from factory.conditioning.generator import Pixels
from factory.encoder.dct import BlockDCT
from factory.engine.local_engine import LocalEngine
from factory.registry.registry import Backend
from factory.storage.local import LocalStorage
from tests.support.pictures import write_pictures


def beside(root: Path, name: str = "cond", **settings: Any) -> ConditioningBackend:
    """Return a conditioning backend of the source "pics", read from a folder of its name."""
    storage = LocalStorage(str(root))
    return ConditioningBackend(
        **{"name": name, "source": "pics", "prefix": name, "storage": storage, **settings}
    )


def ready(root: Path, *sets: Backend, encoded: bool = False, **settings: Any) -> FactoryDataModule:
    """Return a data module of the folder "src" and its conditioning, made ready.

    Settings are those of the source.
    """
    storage = LocalStorage(str(root))
    place = Workspace(storage, scratch_dir=str(root / "scratch"))
    source = ImageBackend(
        **{
            "name": "pics", "prefix": "src", "storage": storage, "resolution": 64,
            "alignment": 16, "caption": FilenameCaptions(), **settings,
        }
    )  # fmt: skip
    backends: list[Any] = [source, *sets]
    if encoded:
        backends.append(ImageEmbedBackend(name="latents", cache=place, encoder=BlockDCT()))
    data = FactoryDataModule(
        backends, cache=place, batch_size=4, seed=7, engine=LocalEngine(workers=1)
    )
    data.prepare_data()
    data.setup()
    return data


def write_sources(root: Path, count: int = 8) -> None:
    """Write pictures of one size to "src"."""
    write_pictures(root / "src", count, sizes=((96, 64),), captions=False)


@dataclass(frozen=True)
class Negative(BatchGenerator):
    """A stand-in for a model: the negative, and how many pictures it was given at once."""

    calls: ClassVar[list[int]] = []

    strength: int = 255

    @property
    def random(self) -> bool:
        """Nothing is drawn."""
        return False

    def generate_batch(self, pixels: Pixels, draws: Sequence[np.random.Generator]) -> Pixels:
        """Return the negatives."""
        assert len(draws) == len(pixels)
        Negative.calls.append(len(pixels))
        return np.clip(self.strength - pixels.astype(int), 0, 255).astype(np.uint8)
