"""Do copies stay within their limit, is nothing fetched twice, and is what is in use left alone?"""

import errno
import fcntl
import logging
import multiprocessing
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import recipe_keys
from factory.cache.store import TensorStore
from factory.cache.tiers.local_copy import BLOCK, blocks_of
from factory.errors import CacheError
from factory.storage import LocalStorage
from tests.cache.fetching_process import RECIPE, FarStorage, read_all, store_of

GIB = 2**30
WIDTH = BLOCK // 4  # numbers of a row, which is a block long
ROWS = 128
KEYS = recipe_keys(RECIPE, {"row": range(ROWS)})
Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 4 shards with 31 rows or so of 64 KiB each."""
    root = tmp_path_factory.mktemp("published")
    store = store_of(LocalStorage(str(root)), str(root / "unused"))
    with store.writer(recipe=RECIPE) as writer:
        numbers = torch.arange(ROWS, dtype=torch.int32)[:, None]
        writer.add(KEYS, {"field": numbers.repeat(1, WIDTH)})
    return root


@pytest.fixture
def far(published: Path, tmp_path: Path) -> FarStorage:
    """The cache as if it were on a server; what is read of it is noted."""
    return FarStorage(str(published), log=str(tmp_path / "log"))


def reads(far: FarStorage) -> list[str]:
    """Return what was read of shards so far."""
    log = Path(far.log)
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if "/shards/" in line]


def bytes_read(far: FarStorage) -> int:
    return sum(int(line.split()[2]) for line in reads(far))


def taken(folder: Path) -> int:
    """Return what the copies in a folder take up on the disk."""
    copies = (path for path in folder.glob("*/*.safetensors*") if path.parent.name != "index")
    return sum(path.stat().st_blocks * 512 for path in copies)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Let nobody change a tier while it is looked at."""
    with suppress(FileNotFoundError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        return
    yield


def values(store: TensorStore, rows: "range | list[int]") -> list[int]:
    return store.gather(KEYS[np.array(rows)])["field"][:, 0].tolist()


@pytest.fixture
def start() -> Start:
    """Start a process that reads all rows."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([read_all.__module__, "torch"])

    def begin(far: FarStorage, local: Path, **limits: float) -> BaseProcess:
        process = context.Process(target=read_all, args=(far, str(local), ROWS, limits))
        process.start()
        return process

    return begin


def test_blocks_cover_their_ranges() -> None:
    ranges = np.array([[0, 1], [BLOCK - 1, 2], [5 * BLOCK, BLOCK], [9 * BLOCK, 0]])
    assert blocks_of(ranges).tolist() == [0, 1, 5]


def test_with_room_for_all_each_shard_is_fetched_whole_and_once(
    far: FarStorage, tmp_path: Path
) -> None:
    store = store_of(far, str(tmp_path))
    assert values(store, range(0, ROWS, 20)) == list(range(0, ROWS, 20))
    assert len(reads(far)) == len(list(far.objects("cache/shards")))
    store.close()
    assert values(store_of(far, str(tmp_path)), range(ROWS)) == list(range(ROWS))
    assert len(reads(far)) == len(list(far.objects("cache/shards")))


@pytest.mark.parametrize("disk_mb", [0.2, 1, 3])
def test_with_less_room_rows_are_fetched_alone_and_the_limit_holds(
    far: FarStorage, tmp_path: Path, disk_mb: float
) -> None:
    store = store_of(far, str(tmp_path), disk_gb=disk_mb / 1024)
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    for start in range(0, ROWS, 4):
        assert values(store, order[start : start + 4]) == order[start : start + 4]
        assert taken(tmp_path) <= disk_mb * 2**20
    # Of a row that is fetched alone two blocks come, as rows begin a page after a block.
    assert bytes_read(far) < 3 * ROWS * BLOCK


def test_no_room_at_all_reads_past_the_disk(far: FarStorage, tmp_path: Path) -> None:
    store = store_of(far, str(tmp_path), disk_gb=0)
    assert values(store, range(ROWS)) == list(range(ROWS))
    assert not list(tmp_path.glob("shards/*"))


def test_what_the_plan_needs_last_is_removed_first(far: FarStorage, tmp_path: Path) -> None:
    store = store_of(far, str(tmp_path), disk_gb=4.5 / 1024)  # two shards of four
    index = store.snapshot().index
    found = index.find(KEYS)
    rows = [np.flatnonzero(found.shard == number) for number in range(4)]
    store.shard_files.expect(plan=7, now=10)
    for number, step in ((0, 30), (1, 11)):
        assert store.prefetch(index.find(KEYS[rows[number]]), 7, step)
    # Needed at step 20: later than shard 1, and sooner than shard 0, though that is used now.
    assert values(store, rows[0].tolist()) == rows[0].tolist()
    assert store.prefetch(index.find(KEYS[rows[2]]), 7, 20)
    there = {path.name for path in tmp_path.glob("shards/*.safetensors")}
    assert there == {index.shards[1].name, index.shards[2].name}
    # What is needed later than all that is there does not push anything out.
    assert not store.prefetch(index.find(KEYS[rows[3]]), 7, 40)
    assert there <= {path.name for path in tmp_path.glob("shards/*.safetensors")}


def test_copies_mapped_by_another_user_are_never_removed(far: FarStorage, tmp_path: Path) -> None:
    first = store_of(far, str(tmp_path), disk_gb=2.5 / 1024)
    shard = first._shard(0, first.snapshot().index.find(KEYS[:1]))
    second = store_of(far, str(tmp_path), disk_gb=2.5 / 1024)
    assert values(second, range(ROWS)) == list(range(ROWS))
    assert (tmp_path / "shards" / first.snapshot().index.shards[0].name).exists()
    assert taken(tmp_path) <= 2.5 * 2**20
    del shard


def test_processes_and_threads_fetch_everything_once(
    far: FarStorage, tmp_path: Path, start: Start
) -> None:
    processes = [start(far, tmp_path) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert max(Counter(reads(far)).values()) == 1


def test_the_limit_holds_for_several_processes(
    far: FarStorage, tmp_path: Path, start: Start
) -> None:
    processes = [start(far, tmp_path, disk_gb=3 / 1024) for _ in range(2)]
    most = 0
    while any(process.is_alive() for process in processes):
        with held(tmp_path / "shards" / "lock"):
            most = max(most, taken(tmp_path))
        processes[0].join(0.01)
    assert [process.exitcode for process in processes] == [0, 0]
    assert 0 < most <= 3 * 2**20


def test_a_fetch_that_was_killed_is_done_again(
    published: Path, tmp_path: Path, start: Start
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # Rows alone are fetched, and all after the first of a shard hang.
    slow = FarStorage(str(published), log=str(tmp_path / "log"), gate=str(gate))
    process = start(slow, tmp_path, disk_gb=2 / 1024)
    while not any(line.split()[1] != "0" for line in reads(slow)):
        assert process.is_alive()
        process.join(0.01)
    process.kill()
    process.join()
    store = store_of(FarStorage(str(published)), str(tmp_path), disk_gb=2 / 1024)
    assert values(store, range(ROWS)) == list(range(ROWS))


def test_a_full_disk_is_read_past(
    far: FarStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    store = store_of(far, str(tmp_path))
    values(store, range(40))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.WARNING):
        assert values(store, range(ROWS)) == list(range(ROWS))
    assert caplog.text.count("lower cache.disk_gb") == 1


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB of its own, of which somebody else has taken all but 3."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        commands = [["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]]
    else:
        with image.open("wb") as file:
            file.truncate(16 * 2**20)
        make = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)]
        commands = [make, ["mount", "-o", "loop", str(image), str(folder)]]
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"nothing can be mounted here: {error.stderr.strip()}")
    try:
        found = os.statvfs(folder)
        with (folder / "of-others").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - 3 * 2**20)
        yield folder
    finally:
        # Copies that are still mapped keep it until they are let go of.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_runs_full_is_read_past(
    far: FarStorage, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(far, str(small_disk))
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    for start in [*range(0, ROWS, 8)] * 2:
        assert values(store, order[start : start + 8]) == order[start : start + 8]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no room for copies in" in caplog.text
    assert "No space left on device" in caplog.text
    free = os.statvfs(small_disk)
    assert free.f_bavail * free.f_frsize < 2**20  # some copies found room
    assert taken(small_disk) > 2**20
    # Who frees some space has the rest copied.
    (small_disk / "of-others").unlink()
    assert values(store, order) == order
    count = len(reads(far))
    assert values(store, order) == order
    assert len(reads(far)) == count
    store.close()


def test_memory_comes_before_the_disk_and_goes_with_its_last_user(
    far: FarStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory" / "cache"
    limits = {"ram_dir": str(memory), "ram_gb": 1}
    first, second = (store_of(far, str(tmp_path / "disk"), **limits) for _ in range(2))
    assert values(first, range(ROWS)) == list(range(ROWS))
    count = len(reads(far))
    assert values(second, range(ROWS)) == list(range(ROWS))
    assert len(reads(far)) == count
    assert taken(memory.parent) > ROWS * BLOCK
    first.close()
    assert memory.exists()
    second.close()
    assert not memory.exists()


def test_memory_in_front_of_a_local_folder_is_filled_ahead(published: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory" / "cache"
    limits = {"ram_dir": str(memory), "ram_gb": 5 / 1024}
    store = store_of(LocalStorage(str(published)), str(tmp_path), **limits)
    assert not store.preload()
    assert 2 * 2**20 < taken(memory.parent) <= 5 * 2**20
    assert values(store, range(ROWS)) == list(range(ROWS))
    store.close()


def test_memory_of_killed_processes_is_cleared_at_the_next_start(
    far: FarStorage, tmp_path: Path
) -> None:
    stale = tmp_path / "memory" / "stale"
    (stale / "users").mkdir(parents=True)
    (stale / "users" / "1-of-the-dead").write_text("+a.safetensors\n")
    (stale / "a.safetensors").write_bytes(b"1")
    store = store_of(far, str(tmp_path), ram_dir=str(tmp_path / "memory" / "new"), ram_gb=1)
    values(store, range(2))
    assert not stale.exists()
    store.close()


def test_a_limit_beyond_the_memory_file_system_is_refused(far: FarStorage, tmp_path: Path) -> None:
    store = store_of(far, str(tmp_path), ram_dir=str(tmp_path / "m" / "c"), ram_gb=1e9)
    with pytest.raises(CacheError, match=r"cache.ram_gb=1e\+09 is more than the .* GiB"):
        values(store, range(2))


def test_a_small_disk_is_full_at_its_first_block(far: FarStorage, tmp_path: Path) -> None:
    store = store_of(far, str(tmp_path), disk_gb=1 / 2**20)  # 1 KiB
    assert values(store, range(ROWS)) == list(range(ROWS))
    assert taken(tmp_path) == 0
