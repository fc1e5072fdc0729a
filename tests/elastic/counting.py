"""A run whose storage and encoders count what is asked of them, over all processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory import (
    CachePlace,
    EvalBackend,
    FactoryDataModule,
    ImageBackend,
    ImageEmbedBackend,
    TextEmbedBackend,
)
from factory.catalog.captions import TextFileCaptions
from factory.encoder.dct import BlockDCT
from factory.encoder.hashed_text import HashedText
from factory.records import ObjectInfo
from factory.storage.local import LocalStorage
from tests.datamodule.building import Recorder, trainer


def count(path: str, what: str) -> None:
    """Add a line; appending is atomic among processes for so few bytes."""
    with Path(path).open("a") as file:
        file.write(what + "\n")
