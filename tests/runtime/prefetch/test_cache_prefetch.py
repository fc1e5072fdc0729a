"""Are the rows of coming steps fetched before they are asked for, and no further than allowed?"""

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import recipe_keys
from factory.cache.gather.gather_plan import GatherPlan
from factory.cache.store import TensorStore
from factory.errors import StorageUnavailableError
from factory.runtime.prefetch.cache_prefetch import CachePrefetcher
from factory.storage import MemoryStorage

ROWS, BATCH = 256, 8
KEYS = recipe_keys({"kind": "test"}, {"row": range(ROWS)})
ROW_BYTES = 64 * 1024


@dataclass(frozen=True)
class Server(MemoryStorage):
    """A storage that notes what is read from it, and may be down."""

    reads: list[str] = field(default_factory=list, compare=False)
    down: threading.Event = field(default_factory=threading.Event, compare=False)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Note the key."""
        if "shards" in key:
            self.reads.append(key)
            if self.down.is_set():
                raise StorageUnavailableError("the server is down")
        return super().read(key, start, length)


@pytest.fixture(scope="module")
def name() -> str:
    """A cache of 16 shards with 16 rows each."""
    return fill()


def fill() -> str:
    """Write a cache into memory, and return its storage's name."""
    name = uuid.uuid4().hex
    store = TensorStore(MemoryStorage(name=name), "cache", shard_mb=1)
    with store.writer(recipe={"kind": "test"}) as writer:
        numbers = torch.arange(ROWS, dtype=torch.int32)[:, None]
        writer.add(KEYS, {"field": numbers.repeat(1, ROW_BYTES // 4)})
    return name


def ahead_of(store: TensorStore, megabytes: float) -> CachePrefetcher:
    """Return what fetches the rows of steps of 8 rows, in order."""

    def needs(request: SimpleNamespace) -> Iterator[GatherPlan]:
        first = request.step.global_step * BATCH
        yield GatherPlan(store, store.snapshot().index.find(KEYS[first : first + BATCH]))

    return CachePrefetcher(needs, [store], megabytes, plan=5)  # type: ignore[arg-type]


def steps() -> Iterator[SimpleNamespace]:
    for step in range(ROWS // BATCH):
        yield SimpleNamespace(step=SimpleNamespace(global_step=step))


def fetch_all(ahead: CachePrefetcher) -> Iterator[SimpleNamespace]:
    """Take the first part, and wait for the thread, which ends by itself once all is there."""
    requests = ahead.along(steps)  # type: ignore[arg-type]
    next(requests)
    thread = ahead._thread
    assert thread is not None
    thread.join()
    return requests  # type: ignore[return-value]


def taken(store: TensorStore, step: int) -> list[int]:
    got = store.gather(KEYS[step * BATCH : (step + 1) * BATCH])
    return np.asarray(got["field"][:, 0]).tolist()


def test_all_rows_are_fetched_before_they_are_asked_for(name: str, tmp_path: Path) -> None:
    server = Server(name=name)
    store = TensorStore(server, "cache", local_dir=str(tmp_path))
    requests = fetch_all(ahead_of(store, megabytes=100))
    count = len(server.reads)
    assert count == len(set(server.reads))
    assert taken(store, 0) == list(range(BATCH))
    assert [taken(store, request.step.global_step)[0] for request in requests] == list(
        range(8, ROWS, BATCH)
    )
    assert len(server.reads) == count


def test_rows_that_were_located_at_different_times_are_all_fetched(
    name: str, tmp_path: Path
) -> None:
    """As those of captions: one backend's were located at first, another's as batches come."""
    store = TensorStore(Server(name=name), "cache", local_dir=str(tmp_path))
    snapshots = [store.snapshot()]
    store.refresh()
    snapshots.append(store.snapshot())

    def needs(request: SimpleNamespace) -> Iterator[GatherPlan]:
        first = request.step.global_step * BATCH
        snapshot = snapshots[first // 16 % 2]  # every other shard
        yield GatherPlan(store, snapshot.index.find(KEYS[first : first + BATCH]))

    requests = fetch_all(CachePrefetcher(needs, [store], 100, plan=5))  # type: ignore[arg-type]
    assert store.is_local
    requests.close()  # type: ignore[attr-defined]


def test_no_more_is_fetched_than_the_limit(name: str, tmp_path: Path) -> None:
    server = Server(name=name)
    # No room for whole shards, so that rows are fetched alone.
    store = TensorStore(server, "cache", local_dir=str(tmp_path), disk_gb=8 / 1024)
    ahead = ahead_of(store, megabytes=2)
    requests = ahead.along(steps)  # type: ignore[arg-type]
    for request in requests:
        step = request.step.global_step
        assert taken(store, step) == list(range(step * BATCH, (step + 1) * BATCH))
        with ahead._moved:
            # A group is fetched whole: what is left may go beyond the limit by one group.
            assert ahead._left() <= 4 * 2**20
    assert ahead._thread is None


@dataclass(frozen=True)
class Paired(Server):
    """A storage that gives a shard only once another one is asked for, too."""

    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2), compare=False)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Wait for the other one."""
        if "shards" in key:
            self.both.wait()
        return super().read(key, start, length)


def test_the_next_rows_are_asked_for_while_the_last_are_on_their_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "factory.runtime.prefetch.cache_prefetch._GROUP_BYTES", 16 * ROW_BYTES
    )  # those of a shard
    store = TensorStore(Paired(name=name), "cache", local_dir=str(tmp_path))
    requests = fetch_all(ahead_of(store, megabytes=100))
    assert store.is_local
    requests.close()  # type: ignore[attr-defined]


def test_what_fails_ahead_is_noted_and_met_by_who_needs_it(name: str, tmp_path: Path) -> None:
    server = Server(name=name)
    store = TensorStore(server, "cache", local_dir=str(tmp_path))
    store.open()
    server.down.set()
    ahead = ahead_of(store, megabytes=1)
    requests = ahead.along(steps)  # type: ignore[arg-type]
    next(requests)
    with pytest.raises(StorageUnavailableError):
        taken(store, 0)
    thread = ahead._thread
    assert thread is not None
    while not ahead.problems:
        thread.join(0.01)
    assert "the server is down" in ahead.problems[0]
    server.down.clear()
    assert taken(store, 1) == list(range(8, 16))
    requests.close()  # type: ignore[attr-defined]


def test_closing_leaves_no_thread(name: str, tmp_path: Path) -> None:
    ahead = ahead_of(TensorStore(Server(name=name), "cache", local_dir=str(tmp_path)), 0.1)
    next(ahead.along(steps))  # type: ignore[arg-type]
    ahead.close()
    assert "fetch-ahead" not in [thread.name for thread in threading.enumerate()]


def test_a_fault_in_the_last_group_is_not_lost(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TensorStore(Server(name=name), "cache", local_dir=str(tmp_path))

    def fail(*_: object) -> bool:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(store, "prefetch", fail)
    with pytest.raises(KeyError, match="a fault of ours"):
        ahead_of(store, megabytes=100)._run(steps())  # type: ignore[arg-type]


_LEAVING = """
import threading
threading._register_atexit(lambda: thread.join())  # called after what is registered later

import concurrent.futures.thread as pools, sys, time
from factory.cache.store import TensorStore
from factory.runtime.prefetch import cache_prefetch as module
from tests.runtime.prefetch.test_cache_prefetch import Server, ahead_of, fill, steps

class Pool(pools.ThreadPoolExecutor):
    def submit(self, *given):
        try:
            return super().submit(*given)
        except RuntimeError:
            refused.set()
            raise

class Late(Server):
    def read(self, key, start=0, length=None):
        if "shards" in key:
            begun.release()
            if threading.current_thread().name.endswith("_0"):
                while not pools._shutdown:  # there is no event to wait for
                    time.sleep(0.001)
            else:
                refused.wait()
        return super().read(key, start, length)

refused, begun = threading.Event(), threading.Semaphore(0)
module.ThreadPoolExecutor, module._GROUP_BYTES = Pool, 2**20
ahead = ahead_of(TensorStore(Late(name=fill()), "cache", local_dir=sys.argv[1]), megabytes=100)
thread = threading.Thread(target=ahead._run, args=(steps(),), daemon=True)
thread.start()
begun.acquire(), begun.acquire()
"""


def test_a_process_that_ends_meanwhile_ends_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LEAVING, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
