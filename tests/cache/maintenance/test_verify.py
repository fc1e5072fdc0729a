"""Is damage that matters told from damage of what nothing reads?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.format.segment import ShardStamp, new_segment
from factory.cache.maintenance.garbage import collect
from factory.cache.maintenance.verify import inspect
from factory.cache.store import TensorStore
from factory.cache.writer import publish_segment
from factory.reports.cache_usage import held, is_empty
from factory.storage.local import LocalStorage
from factory.workspace import Workspace
from tests.cache.conftest import RECIPE
from tests.support.stores import drop, verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]
ROWS = 20


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


@pytest.fixture
def damaged(store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path) -> TensorStore:
    """A store of one shard whose rows 7 and 9 are damaged."""
    write(store, keys_of(ROWS), rows_of(ROWS))
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    data = bytearray(path.read_bytes())
    for row in (7, 9):
        data[4096 + 256 * row] ^= 4
    path.write_bytes(data)
    return store


def test_a_piece_of_the_index_may_list_a_shard_and_no_row_of_it(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(store, keys_of(ROWS), rows_of(ROWS))
    (record,) = store.snapshot().records.values()
    stamp, none = store.next_stamp(), np.zeros(0, np.uint64)
    piece = new_segment(stamp, [ShardStamp(stamp, record)], keys_of(0), none, none, none)
    publish_segment(store.index_files, piece)
    found = inspect(store)
    assert (found.problems, found.leftovers) == ([], [])


def test_rows_that_count_are_problems(damaged: TensorStore) -> None:
    found = inspect(damaged)
    (problem,) = found.problems
    assert "2 rows of file://" in problem
    assert "are damaged, first row 7; delete" in problem
    assert "or set cache.damaged=rebuild" in problem
    assert found.leftovers == []


def test_rows_encoded_anew_are_no_problem_any_more(
    damaged: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(damaged, keys_of(1, start=7), rows_of(1, start=7))
    found = inspect(damaged)
    (problem,), (leftover,) = found.problems, found.leftovers
    assert "1 row of" in problem
    assert "first row 9" in problem
    assert "first row 7, and superseded or dropped" in leftover
    drop(damaged, keys_of(1, start=9))
    found = inspect(damaged)
    assert (found.problems, verify(damaged)) == ([], [])
    assert "2 rows of" in found.leftovers[0]


def test_a_shard_no_row_of_which_counts_is_left_to_gc(
    damaged: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    path.write_bytes(b"\0" * path.stat().st_size)
    (problem,) = verify(damaged)
    assert "delete" in problem
    write(damaged, keys_of(ROWS), rows_of(ROWS))
    found = inspect(damaged)
    assert found.problems == []
    assert "no row of it counts any more: `gc` removes it" in found.leftovers[0]
    collect(damaged, min_age_s=0)
    assert inspect(damaged).leftovers == []
    assert damaged.contains(keys_of(ROWS)).all()


def test_hidden_files_that_systems_write_into_any_folder_are_no_part_of_a_cache(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    for folder in ("index", "shards"):
        (tmp_path / "cache/images" / folder).mkdir(parents=True)
        (tmp_path / "cache/images" / folder / ".DS_Store").write_bytes(b"x")
    assert is_empty(store)
    write(store, keys_of(ROWS), rows_of(ROWS))
    found = inspect(store)
    assert (found.problems, found.leftovers) == ([], [])
    (tmp_path / "cache/tensors/images").mkdir(parents=True)
    for name in (".DS_Store", "images/x"):
        (tmp_path / "cache/tensors" / name).write_bytes(b"x")
    assert held(Workspace(LocalStorage(str(tmp_path)))) == {"images": 1}
