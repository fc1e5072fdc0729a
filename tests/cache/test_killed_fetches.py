"""Does what a killed process has fetched from a server never pass for what was published?"""

import fcntl
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from factory.cache.format.recipe import recipe_keys
from factory.cache.format.safetensors_file import Bytes
from factory.cache.store import TensorStore
from factory.cache.tiers.local_copy import BLOCK, beside, record_size
from factory.demo.s3server import S3Server
from factory.storage import S3Storage
from tests.cache.fetching_process import RECIPE, read_all_from_server

ROWS = 480
# Those of two shards; the header of each lies in the first of them, and pushes its rows on.
BLOCKS = ROWS + 2
KEYS = recipe_keys(RECIPE, {"row": range(ROWS)})
# Files as they were published, by name.
Published: TypeAlias = dict[str, Bytes]
# Starts a process that reads all rows with copies in a folder; returns it once it begins.
Start = Callable[[Path, dict[str, float]], BaseProcess]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def published(server: S3Server) -> Published:
    """Two shards of two parts each, with rows of 64 KiB, on a real server."""
    with patch.dict(os.environ, server.environment()):
        storage = S3Storage(server.buckets[0], endpoint_url=server.endpoint_url)
        with TensorStore(storage, "cache", shard_mb=16).writer(recipe=RECIPE) as writer:
            numbers = torch.arange(ROWS, dtype=torch.int32)[:, None]
            writer.add(KEYS, {"field": numbers.repeat(1, BLOCK // 4)})
        found = {
            info.key.rpartition("/")[2]: np.frombuffer(storage.read(info.key), np.uint8)
            for info in storage.objects("cache/shards")
        }
        storage.close()
    assert len(found) == 2
    return found


@pytest.fixture
def start(server: S3Server, published: Published) -> Start:
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([read_all_from_server.__module__, "torch", "s3fs"])

    def begin(folder: Path, limits: dict[str, float]) -> BaseProcess:
        begun = context.Event()
        given = (server.endpoint_url, server.environment(), str(folder), ROWS, limits, begun)
        process = context.Process(target=read_all_from_server, args=given)
        process.start()
        while not begun.wait(0.1):
            assert process.is_alive()
        return process

    return begin


def blocks_noted(folder: Path, name: str, size: int) -> NDArray[np.int64]:
    """Return which blocks of a copy are noted."""
    try:
        record = np.fromfile(beside(folder / "shards" / name), np.uint8)
    except FileNotFoundError:
        return np.empty(0, np.int64)
    # A record that is cut short counts as none.
    whole = record.size == record_size(size)
    return np.flatnonzero(record[record_size(0) :]) if whole else np.empty(0, np.int64)


def count_noted(folder: Path, published: Published) -> int:
    return sum(blocks_noted(folder, name, data.size).size for name, data in published.items())


def check_noted(folder: Path, published: Published) -> int:
    """Return how many blocks are noted, and see that each holds what was published."""
    path = folder / "shards" / "lock"
    if not path.exists():
        return 0  # killed before its first copy
    count = 0
    with path.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody removes a copy meanwhile
        for name, data in published.items():
            blocks = blocks_noted(folder, name, data.size)
            found = np.fromfile(folder / "shards" / name, np.uint8) if blocks.size else data
            for block in blocks.tolist():
                place = slice(block * BLOCK, (block + 1) * BLOCK)
                assert (found[place] == data[place]).all(), (name, block)
            count += blocks.size
    return count


def kill(process: BaseProcess, folder: Path, published: Published, chance: random.Random) -> None:
    """Kill a process at a random moment of its fetch."""
    blocks = chance.randrange(-ROWS, ROWS)  # half of them before any is noted
    while count_noted(folder, published) <= blocks and process.is_alive():
        pass
    # On to a moment within a part, which takes up to some milliseconds.
    process.join(chance.random() * 0.01)
    process.kill()
    process.join()


def kill_and_look(folder: Path, published: Published, start: Start, kills: int, seed: int) -> None:
    """Kill processes; another, which is there already or comes later, must read every row."""
    chance = random.Random(seed)
    left = []
    for number in range(kills):
        local = folder / str(number)
        # Mostly with room for whole shards, else for some rows, which takes ten times as long.
        limits = {} if number % 5 else {"disk_gb": 8 / 1024}
        first = start(local, limits)
        beside_it = start(local, limits) if number % 3 == 0 else None
        kill(first, local, published, chance)
        left.append(check_noted(local, published))
        after = beside_it or start(local, limits)
        after.join()
        assert after.exitcode == 0
        everything = check_noted(local, published)
        assert limits or everything == BLOCKS
    # Neither before all fetches, nor after them.
    assert min(left) < max(left)
    assert any(0 < count < ROWS for count in left)


@pytest.mark.long
def test_what_a_killed_process_fetched_is_right_or_fetched_again(
    tmp_path: Path, published: Published, start: Start
) -> None:
    kill_and_look(tmp_path, published, start, kills=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(3600)  # seconds; 400 starts on a busy machine
def test_what_two_hundred_killed_processes_fetched_is_right_or_fetched_again(
    tmp_path: Path, published: Published, start: Start
) -> None:
    kill_and_look(tmp_path, published, start, kills=200, seed=2)
