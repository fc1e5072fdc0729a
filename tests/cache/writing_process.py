"""What a writing process of the tests does."""

from multiprocessing.sharedctypes import Synchronized

import torch

from factory.cache.format.recipe import recipe_keys
from factory.cache.maintenance.compaction import compact
from factory.cache.store import TensorStore
from factory.storage import LocalStorage

RECIPE = {"kind": "latents", "encoder": "test"}
# 16 rows of 4 KiB fill a shard, so that a run publishes often.
WIDTH, SHARD_MB, SHARD_ROWS = 1024, 1 / 16, 16
BATCH = 4


def write_missing(root: str, first: int, rows: int, added: "Synchronized[int]") -> None:
    """Write what is missing of the rows from `first` on; count those added."""
    store = TensorStore(LocalStorage(root=root), "cache", shard_mb=SHARD_MB)
    keys = recipe_keys(RECIPE, {"row": range(first, first + rows)})
    missing = (~store.contains(keys)).nonzero()[0]
    with store.writer(recipe=RECIPE) as writer:
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            numbers = torch.from_numpy(part).to(torch.int32)[:, None] + first
            writer.add(keys[part], {"field": numbers.repeat(1, WIDTH)})
            added.value += len(part)


def compact_forever(root: str) -> None:
    """Compact again and again, until killed."""
    store = TensorStore(LocalStorage(root=root), "cache", shard_mb=4 * SHARD_MB)
    while True:
        compact(store)
