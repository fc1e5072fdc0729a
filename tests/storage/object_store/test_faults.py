"""What becomes of reads from a real S3 server behind a network that misbehaves."""

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from factory.errors import (
    ContentMismatchError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage import S3Storage, Storage, TarStorage, retry
from factory.storage.endpoint_limits import RequestCounts, request_counts
from tests.storage import proxy as faults
from tests.storage.conftest import BUCKET
from tests.storage.proxy import Fault, Proxy, Script, proxied
from tests.storage.tar.tars import archive

DATA = os.urandom(200_000)
PASSING = {**faults.PASSING, "wrong bytes": faults.wrong_bytes}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)


@pytest.fixture(scope="module")
def prefix(weed_endpoint: str) -> str:
    return uuid.uuid4().hex


@pytest.fixture
def objects(weed_endpoint: str, credentials: None, prefix: str) -> Iterator[S3Storage]:
    """The storage without a proxy, with some objects in it."""
    storage = S3Storage(BUCKET, prefix, weed_endpoint)
    if not storage.exists("whole.bin"):
        for number in range(40):
            storage.write(f"n/{number}.bin", b"%d" % number * 100)
        storage.write("shard.tar", archive({f"{n}.txt": b"%d" % n * 100 for n in range(20)}))
        storage.write("whole.bin", DATA)
    yield storage
    storage.close()


@pytest.fixture
def proxy(weed_endpoint: str, objects: S3Storage) -> Iterator[Proxy]:
    yield from proxied(weed_endpoint)


@pytest.fixture
def storage(proxy: Proxy, prefix: str) -> Iterator[S3Storage]:
    storage = S3Storage(BUCKET, prefix, proxy.url, timeout_s=10, max_attempts=3, deadline_s=60)
    yield storage
    storage.close()


def hurried(storage: S3Storage, name: str) -> S3Storage:
    """Return a storage that does not wait long for what hangs; the others have time enough."""
    return replace(storage, timeout_s=2) if "hang" in name else storage


def asked(proxy: Proxy) -> int:
    return proxy.requests.total()


def counts(proxy: Proxy) -> RequestCounts:
    (found,) = [each for each in request_counts() if each.endpoint == proxy.url]
    return found


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_read_again(storage: S3Storage, proxy: Proxy, name: str) -> None:
    proxy.script = Script(first=[PASSING[name]])
    with closing(hurried(storage, name)) as hurrying:
        assert hurrying.read("whole.bin") == DATA
    assert asked(proxy) == 2 + (name == "wrong bytes")  # whether ETags are hashes
    assert counts(proxy).retries == 1
    assert counts(proxy).failed == 0


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_handed_on_again(storage: S3Storage, proxy: Proxy, name: str) -> None:
    """Bytes of the first try are in their places already, and those of the second replace them."""
    proxy.script = Script(first=[PASSING[name]])
    got = bytearray(len(DATA))

    def put(number: int, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        data = b"".join(pieces)
        got[offset : offset + len(data)] = data

    with closing(hurried(storage, name)) as hurrying:
        assert list(hurrying.read_to([("whole.bin", 0, None)], put)) == [len(DATA)]
    assert bytes(got) == DATA
    assert asked(proxy) == 2 + (name == "wrong bytes")
    assert counts(proxy).failed == 0


def test_a_place_that_takes_no_bytes_is_not_the_servers_fault(
    storage: S3Storage, proxy: Proxy
) -> None:
    full = StorageError("no room")

    def put(number: int, *_: object) -> None:
        if number == 0:
            raise full

    found = list(storage.read_to([("whole.bin", 0, None), ("n/1.bin", 0, 50)], put))
    assert found == [full, 50]
    assert asked(proxy) == 2


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_is_one_clear_error(storage: S3Storage, proxy: Proxy, name: str) -> None:
    proxy.script = Script(always=PASSING[name])
    with closing(hurried(storage, name)) as hurrying:
        (found,) = hurrying.read_many([("whole.bin", 0, None)])
    damaged = name == "wrong bytes"
    assert type(found) is (ContentMismatchError if damaged else StorageUnavailableError)
    assert asked(proxy) == (4 if damaged else 3)
    if damaged:
        wanted = ["tried 2 times", "a second copy was wrong too", "storage.verify_checksum=false"]
    else:
        wanted = ["tried 3 times", "storage.max_attempts=3 allows", "storage.endpoint_url"]
    for part in ("whole.bin", *wanted):
        assert part in str(found)
    assert counts(proxy).failed == 1


@pytest.mark.parametrize("fault", [faults.trickling, faults.hang, faults.hang_in_body])
def test_the_deadline_holds_over_all_tries(proxy: Proxy, prefix: str, fault: Fault) -> None:
    slow = S3Storage(BUCKET, prefix, proxy.url, timeout_s=60, deadline_s=0.3)
    proxy.script = Script(always=fault)
    with pytest.raises(StorageUnavailableError, match=r"storage\.deadline_s=0\.3"):
        slow.read("whole.bin")
    (found,) = slow.read_many([("whole.bin", 0, None)])
    assert type(found) is StorageUnavailableError
    slow.close()


def test_one_in_four_failing_is_not_noticed(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, max_attempts=8, max_connections=8)
    proxy.script = Script(share=0.25, faulty=faults.says(503))
    spans = [(f"n/{number}.bin", 0, None) for number in range(40)]
    assert list(storage.read_many(spans)) == [b"%d" % n * 100 for n in range(40)]
    told = counts(proxy)
    assert 0 < told.retries == told.throttled == told.requests - 40
    assert told.bytes == sum(len(b"%d" % n) * 100 for n in range(40))
    storage.close()


def test_a_storage_that_always_fails_is_not_stormed(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, max_attempts=10)
    proxy.script = Script(always=faults.says(500))
    spans = [(f"n/{number}.bin", 0, None) for number in range(40)]
    found = list(storage.read_many(spans))
    assert {type(each) for each in found} == {StorageUnavailableError}
    assert asked(proxy) == 40 + retry.QUOTA // 5
    assert "so many requests to this server fail" in str(found[-1])
    storage.close()


def test_what_is_absent_is_asked_for_once(storage: S3Storage, proxy: Proxy) -> None:
    (found,) = storage.read_many([("absent", 0, None)])
    assert isinstance(found, ObjectNotFoundError)
    assert asked(proxy) == 1


@pytest.mark.parametrize("fault", [faults.says(503), faults.reset])
def test_other_requests_are_sent_again_too(
    storage: S3Storage, proxy: Proxy, objects: S3Storage, fault: Fault
) -> None:
    methods = ("GET", "HEAD", "PUT", "DELETE")
    for call in (
        lambda: storage.write("w/a", b"abc"),
        lambda: storage.head("w/a"),
        lambda: list(storage.objects("w")),
        lambda: storage.delete("w/a"),
    ):
        proxy.script = Script(first=[fault], methods=methods)
        call()
        assert not proxy.script.first
    assert counts(proxy).retries == 4
    assert not objects.exists("w/a")


def test_checksums_may_be_left_alone(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, verify_checksum=False)
    proxy.script = Script(always=faults.wrong_bytes)
    found = storage.read("whole.bin")
    assert len(found) == len(DATA)
    assert found != DATA
    storage.close()


def test_results_come_in_order_as_they_complete(storage: S3Storage, proxy: Proxy) -> None:
    """The last one is held back: all before it are delivered all the same."""
    patient = S3Storage(BUCKET, storage.prefix, proxy.url, timeout_s=60)
    free = threading.Event()
    proxy.script = Script(always=faults.held(free), key="n/39.bin")
    spans = [(f"n/{number}.bin", 0, None) for number in range(40)]
    with closing(patient.read_many(spans)) as found:
        assert [next(found) for _ in range(39)] == [b"%d" % n * 100 for n in range(39)]
        free.set()
        assert next(found) == b"39" * 100
    patient.close()


def test_reads_are_a_bounded_number_ahead(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, max_connections=2)
    with closing(storage.read_many([(f"n/{n}.bin", 0, None) for n in range(40)])) as found:
        next(found)
        assert storage.read("whole.bin") == DATA  # stands in the queue behind what is ahead
        assert asked(proxy) <= 1 + 4 + 1
    storage.close()


def test_of_large_spans_few_are_ahead(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, timeout_s=60)
    free = threading.Event()
    proxy.script = Script(always=faults.held(free), key="n/")
    spans = [(f"n/{n}.bin", 0, 16 * 2**20) for n in range(40)]
    threading.Thread(target=_when_full, args=(proxy, 4, free)).start()
    found = storage.read_to(spans, lambda *_: None)
    assert next(found) == 100
    assert proxy.most == 4
    assert list(found) == [len(b"%d" % n) * 100 for n in range(1, 40)]
    storage.close()


def test_closing_ends_what_is_under_way(proxy: Proxy, prefix: str) -> None:
    storage = S3Storage(BUCKET, prefix, proxy.url, timeout_s=60, max_connections=2)
    proxy.script = Script(always=faults.hang, key="n/")
    reads = storage.read_many([(f"n/{n}.bin", 0, None) for n in range(40)])
    reads.close()
    assert list(reads) == []
    assert storage.read("whole.bin") == DATA  # which both connections would have kept from it
    del reads
    storage.read_many([(f"n/{n}.bin", 0, None) for n in range(40)])  # let go of at once
    assert storage.read("whole.bin") == DATA
    storage.close()


def test_storages_on_one_server_share_its_budget(proxy: Proxy, prefix: str) -> None:
    storages = [
        S3Storage(BUCKET, prefix, proxy.url, max_connections=3, timeout_s=timeout_s)
        for timeout_s in (7.0, 8.0)
    ]
    free = threading.Event()
    proxy.script = Script(always=faults.held(free), key="n/")
    spans = [(f"n/{n}.bin", 0, None) for n in range(6)]
    reads = [each.read_many(spans) for each in storages]
    threading.Thread(target=_when_full, args=(proxy, 3, free)).start()
    for found in reads:
        assert list(found) == [b"%d" % n * 100 for n in range(6)]
    assert proxy.most == 3
    for storage in storages:
        storage.close()


def _when_full(proxy: Proxy, number: int, then: threading.Event) -> None:
    """Set an event once so many requests are under way at the proxy."""
    pause = threading.Event()
    while proxy.now < number and not pause.wait(0.01):
        pass
    then.set()


@pytest.mark.parametrize("name", ["503", "truncated"])
def test_members_of_tar_shards(
    storage: S3Storage, proxy: Proxy, name: str, objects: S3Storage
) -> None:
    tar: Storage = TarStorage(storage)
    assert tar.remote
    spans = [(f"shard.tar/{n}.txt", 0, None) for n in range(20)]
    assert list(tar.read_many(spans)) == [b"%d" % n * 100 for n in range(20)]
    before = asked(proxy)
    proxy.script = Script(first=[PASSING[name]] * 2)
    spans[3:3] = [("shard.tar/absent", 0, None), ("../x", 0, None), ("shard.tar/1.txt", 5, 3)]
    found = list(tar.read_many(spans))
    assert isinstance(found[3], ObjectNotFoundError)
    assert isinstance(found[4], StorageError)
    assert found[5] == (b"1" * 100)[5:8]
    assert found[:3] + found[6:] == [b"%d" % n * 100 for n in range(20)]
    # One for each member, two that failed, and looks at the shard for what is absent.
    assert 23 <= asked(proxy) - before <= 26
    proxy.script = Script(always=PASSING[name])
    (failed,) = tar.read_many([("shard.tar/1.txt", 0, None)])
    assert isinstance(failed, StorageUnavailableError)
