"""Stores and rows that the cache tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.store import TensorStore
from factory.storage import LocalStorage

RECIPE = {"kind": "latents", "encoder": "test"}


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    """A store in a local folder whose shards hold 64 KiB."""
    return TensorStore(LocalStorage(root=str(tmp_path)), "cache/images", shard_mb=1 / 16)


@pytest.fixture
def keys_of() -> Callable[..., Keys]:
    """Return the keys of rows 0 to n."""

    def make(count: int, start: int = 0) -> Keys:
        return recipe_keys(RECIPE, {"row": range(start, start + count)})

    return make


@pytest.fixture
def rows_of() -> Callable[..., torch.Tensor]:
    """Return rows that tell their number: int32 [n, width], all numbers of row n are n."""

    def make(count: int, start: int = 0, width: int = 64) -> torch.Tensor:
        numbers = torch.arange(start, start + count, dtype=torch.int32)
        return numbers[:, None].repeat(1, width)

    return make
