"""Do processes that write side by side, or are killed, leave a cache that opens clean?"""

import multiprocessing
import random
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from factory.cache.format.recipe import recipe_keys
from factory.cache.maintenance.compaction import compact
from factory.cache.maintenance.garbage import collect
from factory.cache.store import TensorStore
from factory.storage import LocalStorage
from tests.cache.writing_process import RECIPE, SHARD_ROWS, compact_forever, write_missing
from tests.support.stores import verify

ROWS = 400
KEYS = recipe_keys(RECIPE, {"row": range(ROWS)})
Start = Callable[[Path, int, int], tuple[BaseProcess, "Synchronized[int]"]]


@pytest.fixture
def start() -> Start:
    """Start a process that writes; return it with its count of rows added."""
    # Forked from a server that has imported all and runs no threads: real processes, quickly.
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([write_missing.__module__, "torch"])

    def begin(root: Path, first: int, rows: int) -> "tuple[BaseProcess, Synchronized[int]]":
        added = context.Value("i", 0, lock=False)
        process = context.Process(target=write_missing, args=(str(root), first, rows, added))
        process.start()
        return process, added

    return begin


def opened(root: Path) -> TensorStore:
    """Return the store as another process finds it."""
    return TensorStore(LocalStorage(root=str(root)), "cache")


def check_rows(store: TensorStore, present: NDArray[np.int64]) -> None:
    """Compare every row that is there with what it must be."""
    got = store.gather(recipe_keys(RECIPE, {"row": present}))
    if len(present):
        assert (got["field"].numpy() == present[:, None]).all()


def test_processes_write_side_by_side(tmp_path: Path, start: Start) -> None:
    processes = [start(tmp_path, first, 150)[0] for first in (0, 100, 200)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = opened(tmp_path)
    check_rows(store, np.arange(350))
    assert verify(store) == []


def kill_and_look(root: Path, start: Start, kills: int, seed: int) -> None:
    """Kill a writer again and again; after each, look at what is left and go on from there."""
    chance = random.Random(seed)
    folder, before = root / "0", np.zeros(ROWS, np.bool_)
    for kill in range(kills):
        added = kill_one(folder, start, chance)
        store = opened(folder)
        after = store.contains(KEYS)
        assert store.problems == []
        assert (after >= before).all()
        check_rows(store, np.flatnonzero(after))
        # Lost is at most the open shard, or the one being published at that moment.
        assert added - (int(after.sum()) - int(before.sum())) <= SHARD_ROWS
        assert all("is in no index" in problem for problem in verify(store))
        before = after
        if after.all():
            folder, before = root / str(kill + 1), np.zeros(ROWS, np.bool_)


def kill_one(folder: Path, start: Start, chance: random.Random) -> int:
    """Start a writer, kill it at a random moment; return how many rows it had added."""
    process, added = start(folder, 0, ROWS)
    rows = chance.randrange(-1, ROWS // 2)
    while added.value <= rows and process.is_alive():
        pass
    # On to a moment within a batch or a publication, which take up to some milliseconds.
    process.join(chance.random() * 0.01)
    process.kill()
    process.join()
    process.close()
    return added.value


def test_a_killed_writer_loses_at_most_its_open_shard(tmp_path: Path, start: Start) -> None:
    kill_and_look(tmp_path, start, kills=15, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)  # seconds; 200 starts on a busy machine
def test_two_hundred_killed_writers_lose_at_most_their_open_shards(
    tmp_path: Path, start: Start
) -> None:
    kill_and_look(tmp_path, start, kills=200, seed=2)


def kill_all_and_look(root: Path, start: Start, kills: int, seed: int) -> None:
    """Kill two writers and a compaction at a time, again and again; look at what is left."""
    chance = random.Random(seed)
    folder, before = root / "0", np.zeros(ROWS, np.bool_)
    for kill in range(kills):
        added = kill_three(folder, start, chance)
        assert added <= int((~before).sum())  # a run goes on, and encodes nothing twice
        store = opened(folder)
        after = store.contains(KEYS)
        assert store.problems == []
        assert (after >= before).all()
        check_rows(store, np.flatnonzero(after))
        assert added - (int(after.sum()) - int(before.sum())) <= 2 * SHARD_ROWS
        assert all("is in no index" in problem for problem in verify(store))
        before = after
        if after.all():
            tidy(store)
            folder, before = root / str(kill + 1), np.zeros(ROWS, np.bool_)
    tidy(store)


def kill_three(folder: Path, start: Start, chance: random.Random) -> int:
    """Start two writers and a compaction, kill them at random moments; return rows added."""
    half = ROWS // 2
    writers = [start(folder, first, half) for first in (0, half)]
    context = multiprocessing.get_context("forkserver")
    compaction = context.Process(target=compact_forever, args=(str(folder),))
    compaction.start()
    rows = chance.randrange(-1, ROWS // 2)
    while sum(added.value for _, added in writers) <= rows and any(
        process.is_alive() for process, _ in writers
    ):
        pass
    processes = [compaction, *(process for process, _ in writers)]
    chance.shuffle(processes)
    for process in processes:
        process.join(chance.random() * 0.01)
        process.kill()
    for process in processes:
        process.join()
        process.close()
    return sum(added.value for _, added in writers)


def tidy(store: TensorStore) -> None:
    """Compact, collect, and see that every row is there once and nothing else is."""
    there = store.contains(KEYS)
    compact(store)
    collect(store, min_age_s=0)
    assert (store.contains(KEYS) == there).all()
    check_rows(store, np.flatnonzero(there))
    assert verify(store) == []
    assert sum(shard.rows for shard in store.snapshot().index.shards) == there.sum()
    assert store.shard_files.listed().keys() == store.snapshot().records.keys()


def test_killed_writers_and_compactions_lose_and_double_nothing(
    tmp_path: Path, start: Start
) -> None:
    kill_all_and_look(tmp_path, start, kills=6, seed=3)


@pytest.mark.long
@pytest.mark.timeout(3600)  # seconds; 600 starts on a busy machine
def test_two_hundred_kills_of_writers_and_compactions_lose_and_double_nothing(
    tmp_path: Path, start: Start
) -> None:
    kill_all_and_look(tmp_path, start, kills=200, seed=4)
