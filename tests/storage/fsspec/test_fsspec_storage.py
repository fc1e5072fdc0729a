"""URLs, options, errors and closing of storages over fsspec."""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from factory.storage import FsspecStorage, S3Storage, retry
from factory.storage.fsspec_files import missing_package, protocol_of
from tests.storage import proxy as faults
from tests.storage.conftest import BUCKET
from tests.storage.proxy import PASSING, Fault, Proxy, Script, proxied
from tests.storage.served import PASSWORD, USER, serving

DATA = os.urandom(200_000)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BACKOFF_S", 0.001)


@pytest.fixture(scope="module")
def bucket(weed_endpoint: str) -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(weed_endpoint: str, credentials: None, bucket: str) -> Iterator[Proxy]:
    direct = FsspecStorage(bucket, {"endpoint_url": weed_endpoint})
    if not direct.exists("whole.bin"):
        direct.write("whole.bin", DATA)
    direct.close()
    yield from proxied(weed_endpoint)


def through(proxy: Proxy, bucket: str, **settings: float) -> FsspecStorage:
    return FsspecStorage(bucket, {"endpoint_url": proxy.url}, max_attempts=3, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PASSING)
def test_s3fs_reads_again_what_passes(proxy: Proxy, bucket: str, name: str) -> None:
    storage = through(proxy, bucket, timeout_s=2 if "hang" in name else 10)
    proxy.script = Script(first=[PASSING[name]])
    assert storage.read("whole.bin") == DATA
    assert proxy.requests.total() == 2
    storage.close()


@pytest.mark.parametrize("name", PASSING)
def test_s3fs_gives_one_clear_error(proxy: Proxy, bucket: str, name: str) -> None:
    storage = through(proxy, bucket, timeout_s=1 if "hang" in name else 10)
    proxy.script = Script(always=PASSING[name])
    (found,) = storage.read_many([("whole.bin", 0, None)])
    assert type(found) is StorageUnavailableError
    for part in ("whole.bin", "tried 3 times", "storage.max_attempts=3", "storage.url"):
        assert part in str(found)
    assert proxy.requests.total() == 3
    storage.close()


@pytest.mark.parametrize("fault", [faults.trickling, faults.hang, faults.hang_in_body])
def test_the_deadline_holds_over_all_tries(proxy: Proxy, bucket: str, fault: Fault) -> None:
    storage = through(proxy, bucket, timeout_s=60, deadline_s=0.3)
    proxy.script = Script(always=fault)
    with pytest.raises(StorageUnavailableError, match=r"storage\.deadline_s=0\.3"):
        storage.read("whole.bin", 0, 1000)
    storage.close()


def test_the_clients_of_s3_agree_on_what_a_bucket_holds(
    weed_endpoint: str, credentials: None, bucket: str
) -> None:
    first = S3Storage(BUCKET, bucket.rpartition("/")[2], weed_endpoint)
    second = FsspecStorage(bucket, {"endpoint_url": weed_endpoint})
    first.write("of/both.bin", b"123")
    assert first.identity == second.identity
    assert sorted(map(str, first.objects())) == sorted(map(str, second.objects()))
    first.close()
    second.close()


def test_an_archive_is_read_and_not_written_to(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "cats.zip", "w") as archive:
        archive.writestr("a/1.jpg", b"0123456789")
        archive.writestr("b c/ü.jpg", b"x")
    storage = FsspecStorage(f"zip::{tmp_path}/cats.zip")
    assert {info.key: info.size for info in storage.objects()} == {"a/1.jpg": 10, "b c/ü.jpg": 1}
    assert storage.read("a/1.jpg", 2, 3) == b"234"
    assert list(storage.read_many([("a/1.jpg", 8, None), ("b c/ü.jpg", 0, 9)])) == [b"89", b"x"]
    assert storage.head("a/1.jpg") in list(storage.objects("a"))
    with pytest.raises(ObjectNotFoundError):
        storage.read("a")
    with pytest.raises(StorageError, match="zip cannot store an object whole or not at all"):
        storage.write("c.jpg", b"")
    storage.close()


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path) -> None:
    with serving("sftp", tmp_path) as server:
        options = {"password": "wrong-but-secret", "allow_agent": False, "look_for_keys": False}
        storage = FsspecStorage(f"sftp://{USER}@127.0.0.1:{server.port}/x", options)
        with pytest.raises(AccessDeniedError, match=r"storage\.options") as error:
            storage.read("a")
        assert "wrong-but-secret" not in f"{error.value}{storage!r}{storage.identity}"
        right = FsspecStorage(storage.url, options | {"password": PASSWORD})
        assert right.identity == storage.identity
        right.write("a", b"1")
        threads = threading.active_count()
        right.close()
        storage.close()
        assert threading.active_count() < threads


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = FsspecStorage(f"sftp://{USER}@127.0.0.1:{port}/x", max_attempts=2)
    with pytest.raises(StorageUnavailableError, match=r"storage\.url"):
        storage.read("a")
    storage.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "storage.url is empty"),
        ("sftpp://host/x", "did you mean 'sftp'"),
        ("http://host/x", "storage=http storage.url=http://host/x"),
        ("zip::https://host/x.zip", "storage=http"),
        ("sftp://me:secret@host/x", "holds a password"),
    ],
)
def test_refuses_urls_with_what_to_write_instead(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"storage\.url") as error:
        FsspecStorage(url)
    assert told in str(error.value)
    assert "secret" not in str(error.value)


def test_a_missing_package_is_named_as_pip_spells_it() -> None:
    assert missing_package("oss") == "ossfs"
    assert missing_package("box") == "boxfs"
    assert missing_package("s3") is None
    assert missing_package("zip") is None
    with pytest.raises(StorageError, match="pip install 'ossfs'"):
        FsspecStorage("oss://bucket/x").read("a")


def test_tells_protocols_of_urls() -> None:
    urls = {"s3://a/b": "s3", "zip::s3://a/b.zip": "zip", "/a/b": "file", "zip://x::/a.zip": "zip"}
    assert {url: protocol_of(url) for url in urls} == urls
