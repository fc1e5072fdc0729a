"""What tests do with tensor stores: forget rows, and list what is damaged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys, as_keys
from factory.cache.format.segment import ShardStamp, new_segment
from factory.cache.maintenance.verify import inspect
from factory.cache.store import TensorStore
from factory.cache.writer import publish_segment


def drop(store: TensorStore, keys: Keys | NDArray[Any] | Sequence[bytes]) -> None:
    """Forget the rows of these keys; rows written afterwards count again."""
    store.refresh()  # so that this comes after every row that is there
    names = np.unique(as_keys(keys))
    zeros, stamp = np.zeros(len(names), np.uint64), store.next_stamp()
    segment = new_segment(stamp, [ShardStamp(stamp, None)], names, zeros, zeros, zeros)
    publish_segment(store.index_files, segment)
    store.refresh()


def verify(store: TensorStore) -> list[str]:
    """Return what is damaged, a sentence each."""
    return inspect(store).problems
