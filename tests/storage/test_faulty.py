"""The storage that other tests break things with keeps the contract, and breaks as told."""

import threading
import uuid

import pytest

from factory.errors import ObjectNotFoundError, StorageUnavailableError
from factory.storage import MemoryStorage, Storage
from factory.testing.storage import StorageContract
from tests.support.faulty_storage import FaultyStorage


class TestFaulty(StorageContract):
    crosses_processes = False

    @pytest.fixture
    def storage(self) -> Storage:
        return FaultyStorage(MemoryStorage(uuid.uuid4().hex))

    def test_is_a_value(self, storage: Storage) -> None:
        """Its script holds locks, and stays in this process."""


@pytest.fixture
def storage() -> FaultyStorage:
    inner = MemoryStorage(uuid.uuid4().hex)
    for number in range(50):
        inner.write(f"{number}", b"0123456789")
    return FaultyStorage(inner)


def test_breaks_as_told(storage: FaultyStorage) -> None:
    storage.script.failing["1"] = ObjectNotFoundError("gone")
    storage.script.times["1"] = 1
    storage.script.cut["2"] = 3
    storage.script.flipped.add("3")
    found = list(storage.read_many([(f"{n}", 0, None) for n in range(4)]))
    assert found[0] == b"0123456789"
    assert isinstance(found[1], ObjectNotFoundError)
    assert found[2:] == [b"012", b"0123446789"]
    assert storage.read("1") == b"0123456789"


def test_a_share_fails_the_same_ones_each_time(storage: FaultyStorage) -> None:
    def failed() -> list[int]:
        storage.script.reads.clear()
        found = storage.read_many([(f"{n}", 0, None) for n in range(50)])
        return [n for n, each in enumerate(found) if isinstance(each, StorageUnavailableError)]

    storage.script.share = 0.3
    assert 5 < len(failed()) < 25
    assert failed() == failed()


def test_hangs_until_released(storage: FaultyStorage) -> None:
    storage.script.hanging.add("7")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(storage.read("7")))
    thread.start()
    assert storage.script.waiting.wait(10)
    assert not found
    storage.script.release.set()
    thread.join()
    assert found == [b"0123456789"]


def test_scripts_are_not_shared(storage: FaultyStorage) -> None:
    assert FaultyStorage(storage.inner).script is not storage.script
