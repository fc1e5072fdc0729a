"""Do the pieces of a copy land in their places, and is nothing noted that did not?"""

import errno
import os
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest

from factory.cache.tiers.local_copy import (
    BLOCK,
    PART,
    ByteRange,
    FileCopy,
    MemoryCopy,
    ReadRanges,
    TierCopy,
    beside,
)
from factory.cache.tiers.tier import Tier
from factory.errors import StorageError
from factory.storage.base import Put

BLOCKS = 3 * PART // BLOCK + 1
DATA = np.random.default_rng(0).integers(0, 256, BLOCKS * BLOCK - 100, np.uint8)
ALL = np.array([[0, DATA.size]], np.int64)


def pieces_of(start: int, length: int) -> list[bytes]:
    """Return a range in pieces that no block begins with."""
    end = start + length
    return [DATA[at : min(at + 99_999, end)].tobytes() for at in range(start, end, 99_999)]


def read(ranges: Sequence[ByteRange], put: Put) -> Generator[int | StorageError, None, None]:
    """Put the last range first, and each of them in two goes, the second one first."""
    for number, (start, length) in reversed(list(enumerate(ranges))):
        half = length // 2
        put(number, half, pieces_of(start + half, length - half))
        put(number, 0, pieces_of(start, half))
    yield from (length for _, length in ranges)


def stored(folder: Path, read: ReadRanges) -> TierCopy:
    copy = Tier(folder, None, "cache.disk_gb").open("a.safetensors", DATA.size, read, "a")
    assert copy is not None
    return copy


def noted(copy: TierCopy) -> int:
    """Return how many blocks are noted."""
    return int(np.fromfile(beside(copy.path), np.uint8)[-BLOCKS:].sum())


@pytest.fixture(params=["disk", "memory"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where a copy lies."""
    return str(request.param)


def copy_of(kind: str, folder: Path, read: ReadRanges) -> FileCopy:
    return stored(folder, read) if kind == "disk" else MemoryCopy(DATA.size, read, "a", kept=True)


def test_pieces_land_in_their_places(kind: str, tmp_path: Path) -> None:
    copy = copy_of(kind, tmp_path, read)
    assert copy.fetch(np.array([[PART + 5, 1]], np.int64))  # the part in the middle alone
    assert (copy.data[PART : 2 * PART] == DATA[PART : 2 * PART]).all()
    assert copy.fetch(ALL)
    assert copy.complete
    assert (copy.data == DATA).all()


def test_nothing_is_removed_for_more_than_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = Tier(tmp_path, (BLOCKS + 2) * BLOCK, "cache.disk_gb")
    first, second = (tier.open(f"{name}.safetensors", DATA.size, read, name) for name in "ab")
    assert first is not None
    assert second is not None
    has_room, left = tier.has_room, [second]
    del second

    def race(size: int) -> bool:
        found = has_room(size)
        while left:  # another thread takes the room that there was for all of the first copy
            assert found
            assert left.pop().fetch(ALL)
        return found

    monkeypatch.setattr(tier, "has_room", race)
    assert first.fetch(np.array([[5, 1]], np.int64))
    assert first.data[5] == DATA[5]
    assert noted(first) == 1
    assert (tmp_path / "b.safetensors").exists()


def test_a_short_end_comes_with_the_part_before_it(kind: str, tmp_path: Path) -> None:
    asked: list[ByteRange] = []

    def noting(ranges: Sequence[ByteRange], put: Put) -> Generator[int | StorageError, None, None]:
        asked.extend(ranges)
        return read(ranges, put)

    copy = copy_of(kind, tmp_path, noting)
    assert copy.fetch(ALL)
    assert asked == [(0, PART), (PART, PART), (2 * PART, DATA.size - 2 * PART)]


def test_more_bytes_than_asked_for_touch_no_neighbour(kind: str, tmp_path: Path) -> None:
    def beyond(ranges: Sequence[ByteRange], put: Put) -> Generator[int | StorageError, None, None]:
        for number, (_, length) in enumerate(ranges):
            put(number, 0, [bytes(length), b"!"])
            yield length + 1

    copy = copy_of(kind, tmp_path, read)
    assert copy.fetch(np.array([[PART, PART]], np.int64))
    copy._read = beyond  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match=f"a gave more bytes than {PART} from 0"):
        copy.fetch(np.array([[0, 1]], np.int64))
    assert (copy.data[PART : 2 * PART] == DATA[PART : 2 * PART]).all()
    assert not copy.has(np.array([[0, 1]], np.int64))


def test_what_came_before_an_error_is_noted_and_the_rest_is_not(tmp_path: Path) -> None:
    def breaking(
        ranges: Sequence[ByteRange], put: Put
    ) -> Generator[int | StorageError, None, None]:
        found = read(ranges, put)
        yield next(found)
        yield StorageError("the line broke")

    copy = stored(tmp_path, breaking)
    with pytest.raises(StorageError, match="the line broke"):
        copy.fetch(ALL)
    assert noted(copy) == PART // BLOCK
    copy._read = read
    assert copy.fetch(ALL)
    assert (copy.data == DATA).all()


def test_a_disk_that_fails_is_an_error_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = stored(tmp_path, read)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(StorageError, match=r"cannot write .*a\.safetensors: Input/output error"):
        copy.fetch(ALL)
    assert noted(copy) == 0


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev

    def short(fd: int, pieces: Sequence[memoryview], at: int) -> int:
        return write(fd, [pieces[0][: -(-len(pieces[0]) // 2)]], at)

    monkeypatch.setattr(os, "pwritev", short)
    copy = stored(tmp_path, read)
    assert copy.fetch(ALL)
    assert (copy.data == DATA).all()


def test_many_small_pieces_are_written(tmp_path: Path) -> None:
    def crumbling(
        ranges: Sequence[ByteRange], put: Put
    ) -> Generator[int | StorageError, None, None]:
        for number, (start, length) in enumerate(ranges):
            end = start + length
            put(
                number,
                0,
                [DATA[at : min(at + 500, end)].tobytes() for at in range(start, end, 500)],
            )
            yield length

    copy = stored(tmp_path, crumbling)
    assert copy.fetch(ALL)
    assert (copy.data == DATA).all()


def test_nothing_is_written_once_a_fetch_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that is being written is waited for; those that follow are not written."""
    begun, go_on = threading.Event(), threading.Event()
    write = os.pwritev
    late: list[threading.Thread] = []
    puts: list[Put] = []

    def slow(fd: int, pieces: Sequence[memoryview], at: int) -> int:
        begun.set()
        go_on.wait()
        return write(fd, pieces, at)

    def failing(ranges: Sequence[ByteRange], put: Put) -> Generator[int | StorageError, None, None]:
        puts.append(put)
        late.append(threading.Thread(target=put, args=(0, 0, [b"\1" * BLOCK])))
        late[0].start()
        begun.wait()
        threading.Thread(target=go_on.set).start()
        yield StorageError("the line broke")

    monkeypatch.setattr(os, "pwritev", slow)
    copy = stored(tmp_path, failing)
    with pytest.raises(StorageError, match="the line broke"):
        copy.fetch(ALL)
    assert (copy.data[:BLOCK] == 1).all()  # its write had ended when the fetch had
    late[0].join()
    puts[0](0, 0, [b"\2" * BLOCK])
    assert (copy.data[:BLOCK] == 1).all()
    assert noted(copy) == 0


def test_nothing_comes_once_a_fetch_has_failed(kind: str, tmp_path: Path) -> None:
    puts: list[Put] = []

    def failing(ranges: Sequence[ByteRange], put: Put) -> Generator[int | StorageError, None, None]:
        puts.append(put)
        yield StorageError("the line broke")

    copy = copy_of(kind, tmp_path, failing)
    with pytest.raises(StorageError, match="the line broke"):
        copy.fetch(ALL)
    copy._read = read  # type: ignore[attr-defined]
    assert copy.fetch(ALL)
    puts[0](0, 0, [b"\2" * BLOCK])
    assert (copy.data == DATA).all()
