"""A bucket as a storage: settings, failures, pages, parts."""

import multiprocessing
import os
import pickle
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from factory.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UnsafeKeyError,
)
from factory.storage import S3Storage
from factory.storage.object_store import client, object_storage
from factory.testing.storage import keys
from tests.storage import proxy as faults
from tests.storage.conftest import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.storage.proxy import Script, proxied

# What the contract promises for a check, whatever the failure.
PROMISED_S = 10.0


@pytest.fixture
def weed(weed_endpoint: str, credentials: None) -> Iterator[S3Storage]:
    storage = S3Storage(BUCKET, uuid.uuid4().hex, weed_endpoint)
    yield storage
    storage.close()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bucket": "s3://photos"}, "storage.bucket"),
        ({"bucket": "photos/cats"}, "storage.prefix"),
        ({"bucket": "b", "prefix": "a/../b"}, "'..'"),
        ({"bucket": "b", "endpoint_url": "localhost:9000"}, "http://host:port"),
        ({"bucket": "b", "endpoint_url": "http://"}, "http://host:port"),
        ({"bucket": "b", "endpoint_url": "http://host:port"}, "http://host:port"),
        ({"bucket": "b", "endpoint_url": "http://host?x=y"}, "http://host:port"),
        ({"bucket": "b", "max_attempts": 0}, "storage.max_attempts"),
        ({"bucket": "b", "timeout_s": 0.0}, "storage.timeout_s"),
        ({"bucket": "b", "max_connections": 0}, "storage.max_connections"),
        ({"bucket": "b", "deadline_s": 0.0}, "storage.deadline_s"),
    ],
)
def test_impossible_settings(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        S3Storage(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["http://user:hunter2@host", "http://hunter2@host:99999999"])
def test_secret_in_the_address(url: str) -> None:
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID") as caught:
        S3Storage("b", endpoint_url=url)
    assert "hunter2" not in str(caught.value)


def test_identity() -> None:
    assert S3Storage("b").identity == "s3://b"
    assert S3Storage("b", "/a/b/").identity == S3Storage("b", "a/b").identity == "s3://b/a/b"
    assert S3Storage("b", "a", "http://h:1/").identity == "s3://b/a?endpoint=http://h:1"


def test_nothing_opens_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "open_client", pytest.fail)
    storage = S3Storage("b", endpoint_url="http://127.0.0.1:1")
    assert pickle.loads(pickle.dumps(storage)) == storage
    storage.close()


def failing(storage: S3Storage, kind: type[StorageError]) -> str:
    """Return what `check` says, after making sure of its kind and that it came in time."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        storage.check()
    assert time.monotonic() - start < PROMISED_S
    assert type(caught.value) is kind
    message = str(caught.value)
    for secret in (SECRET_KEY, os.environ.get("AWS_SECRET_ACCESS_KEY")):
        assert secret is None or secret not in message
    return message


def test_no_bucket_set() -> None:
    assert "storage.bucket is empty" in failing(S3Storage(""), StorageError)
    with pytest.raises(StorageError, match=r"storage\.bucket is empty"):
        S3Storage("").read("a")


def test_connection_refused(credentials: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    message = failing(S3Storage("b", endpoint_url=url), StorageUnavailableError)
    assert "storage.endpoint_url" in message
    assert url in message


def test_name_that_does_not_resolve(credentials: None) -> None:
    storage = S3Storage("b", endpoint_url="http://nowhere.invalid:9000")
    assert "storage.endpoint_url" in failing(storage, StorageUnavailableError)


def test_address_from_the_environment(monkeypatch: pytest.MonkeyPatch, credentials: None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:1")
    message = failing(S3Storage("b"), StorageUnavailableError)
    assert "127.0.0.1:1 cannot be reached" in message
    assert "hunter2" not in message


def test_black_hole(black_hole: str, credentials: None) -> None:
    storage = S3Storage("b", endpoint_url=black_hole, timeout_s=60)
    message = failing(storage, StorageUnavailableError)
    assert "did not answer in time" in message
    assert "storage.endpoint_url" in message


def test_reading_from_a_black_hole_ends(black_hole: str, credentials: None) -> None:
    storage = S3Storage("b", endpoint_url=black_hole, timeout_s=0.2, max_attempts=2)
    with pytest.raises(StorageUnavailableError, match="did not answer in time"):
        storage.read("a")
    storage.close()


def test_no_credentials(weed_endpoint: str) -> None:
    message = failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
    assert "no credentials found; set AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY" in message


def test_half_the_credentials(weed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "only-this")
    message = failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
    assert "AWS_SECRET_ACCESS_KEY" in message


def test_profile_that_is_not_there(weed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "typo")
    message = failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
    assert "AWS_PROFILE" in message


@pytest.mark.parametrize("setting", [None, "true", "false"])
def test_metadata_service_is_asked_only_where_it_may_be(
    weed_endpoint: str, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    """The service is played by a socket; who connects to it has asked."""
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))
        service.listen()
        service.settimeout(0)
        address = f"http://127.0.0.1:{service.getsockname()[1]}/"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
        if setting is not None:
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", setting)
        failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
        try:
            service.accept()[0].close()
            asked = True
        except BlockingIOError:
            asked = False
    assert asked == (setting == "false")


def test_unknown_access_key(weed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-0123456789")
    message = failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
    assert "AWS_ACCESS_KEY_ID" in message


def test_wrong_secret(
    weed_endpoint: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-0123456789")
    message = failing(S3Storage(BUCKET, endpoint_url=weed_endpoint), AccessDeniedError)
    assert "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID" in message


def test_forbidden_bucket(weed_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "weak-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "weak-secret-0123456789")
    storage = S3Storage(BUCKET, endpoint_url=weed_endpoint)
    message = failing(storage, AccessDeniedError)
    assert f"storage.bucket={BUCKET!r}" in message
    for call in (storage.read, storage.head, storage.exists, storage.delete):
        with pytest.raises(AccessDeniedError, match=r"storage\.bucket"):
            call("a")
    with pytest.raises(AccessDeniedError, match=r"storage\.bucket"):
        storage.write("a", b"x")
    with pytest.raises(AccessDeniedError, match=r"storage\.bucket"):
        list(storage.objects())
    storage.close()


@pytest.mark.parametrize("server", ["weed_endpoint", "moto_endpoint"])
def test_missing_bucket(request: pytest.FixtureRequest, credentials: None, server: str) -> None:
    storage = S3Storage("no-such-bucket", endpoint_url=request.getfixturevalue(server))
    message = failing(storage, ObjectNotFoundError)
    assert "no bucket 'no-such-bucket'" in message
    assert "storage.bucket" in message
    for call in (lambda: storage.read("a"), lambda: list(storage.objects())):
        with pytest.raises(ObjectNotFoundError, match=r"storage\.bucket"):
            call()
    storage.close()


def test_bucket_name_that_cannot_be(moto_endpoint: str, credentials: None) -> None:
    message = failing(S3Storage("No Such!", endpoint_url=moto_endpoint), StorageError)
    assert "storage.bucket" in message


class Answering(socketserver.ThreadingTCPServer):
    """Gives one answer to every request, counting them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer: bytes) -> None:
        self.answer, self.requests = answer, 0
        super().__init__(("127.0.0.1", 0), AnsweringRequest)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class AnsweringRequest(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.server.requests += 1  # type: ignore[attr-defined]
        self.wfile.write(self.server.answer)  # type: ignore[attr-defined]


def answer(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nETag: \"x\"\r\nConnection: close\r\n\r\n%s" % (
        status.encode(), size, body,
    )  # fmt: skip


def s3_error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said {SECRET_KEY}</Message></Error>".encode()


@pytest.mark.parametrize(
    ("said", "kind", "named"),
    [
        (answer("503 X", s3_error("SlowDown")), StorageUnavailableError, "overloaded"),
        (answer("500 X", b""), StorageUnavailableError, "overloaded"),
        (answer("200 OK", b"<html><p>no S3</p></html>"), StorageError, "does not speak S3"),
        (answer("200 OK", b"<!doctype html><p>no S3<br>"), StorageError, "does not speak S3"),
        (answer("400 X", s3_error("ExpiredToken")), AccessDeniedError, "AWS_SESSION_TOKEN"),
        (answer("403 X", s3_error("RequestTimeTooSkewed")), AccessDeniedError, "clock"),
        (answer("400 X", s3_error("AuthorizationHeaderMalformed")), StorageError, "storage.region"),
        (answer("507 X", s3_error("Whatever")), StorageError, "no space left"),
        (answer("418 X", s3_error("Teapot")), StorageError, "Teapot"),
        (answer("200 OK", b"short", 99), StorageUnavailableError, "storage.endpoint_url"),
        (b"garbage\r\n\r\n", StorageUnavailableError, "storage.endpoint_url"),
    ],
)
def test_odd_answers(credentials: None, said: bytes, kind: type[StorageError], named: str) -> None:
    with Answering(said) as server:
        assert named in failing(S3Storage("b", endpoint_url=server.url), kind)


@pytest.mark.parametrize("said", [answer("500 X", b""), answer("200 OK", b"short", 99)])
def test_attempts_are_counted(credentials: None, said: bytes) -> None:
    with Answering(said) as server:
        storage = S3Storage("b", endpoint_url=server.url, max_attempts=2)
        with pytest.raises(StorageUnavailableError):
            storage.read("a")
        assert server.requests == 2
        storage.close()


def test_check_write_says_what_it_may_not(weed: S3Storage, black_hole: str) -> None:
    weed.check(write=True)
    with pytest.raises(ObjectNotFoundError):
        list(weed.objects())


def test_listing_in_pages(weed: S3Storage) -> None:
    # One more than a page of 1000.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: weed.write(f"p/{number:04d}", b"x"), range(1001)))
    assert keys(weed, "p") == {f"p/{number:04d}" for number in range(1001)}


def test_listing_stays_below_its_prefix(weed: S3Storage) -> None:
    neighbour = S3Storage(BUCKET, weed.prefix + "-too", weed.endpoint_url)
    neighbour.write("a", b"x")
    weed.write("b", b"x")
    assert keys(weed) == {"b"}
    assert keys(neighbour) == {"a"}
    neighbour.close()


def boto(endpoint: str) -> Any:
    """Return the SDK's own client, which takes keys of every spelling."""
    import boto3

    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


def test_folder_marks_are_no_objects(weed: S3Storage, weed_endpoint: str) -> None:
    sdk = boto(weed_endpoint)
    for key in ("/a/", "/empty/", "/"):
        sdk.put_object(Bucket=BUCKET, Key=weed.prefix + key, Body=b"")
    weed.write("a/b", b"x")
    weed.write("a/nothing", b"")
    weed.write("a/nothing.txt", b"")
    assert keys(weed) == {"a/b", "a/nothing", "a/nothing.txt"}
    assert keys(weed, "a") == {"a/b", "a/nothing", "a/nothing.txt"}


def test_keys_that_would_be_taken_for_others_are_not_listed(
    moto_endpoint: str, credentials: None, caplog: pytest.LogCaptureFixture
) -> None:
    storage = S3Storage(BUCKET, uuid.uuid4().hex, moto_endpoint)
    sdk = boto(moto_endpoint)
    for key in ("a/b", "a//b", "./c", "a/../e", "f.", "..g/.h", "t\tb"):
        sdk.put_object(Bucket=BUCKET, Key=f"{storage.prefix}/{key}", Body=b"x")
    assert keys(storage) == {"a/b", "f.", "..g/.h", "t\tb"}
    assert storage.listing()["key"].to_pylist() == ["..g/.h", "a/b", "f.", "t\tb"]
    assert "3 keys such as './c' are no paths in normal form" in caplog.text
    with pytest.raises(UnsafeKeyError, match="control characters"):
        storage.read("t\tb")
    storage.close()


def test_a_listing_that_breaks_goes_on_where_it_was(
    weed: S3Storage, weed_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_PAGE", 3)
    names = [f"{n:02}" for n in range(20)]
    for name in names:
        weed.write(f"p/{name}", b"x" * (int(name) % 5))
    for proxy in proxied(weed_endpoint):
        behind = S3Storage(BUCKET, weed.prefix, proxy.url)
        pages = behind._pages("p")
        found = next(pages)["key"].to_pylist()
        proxy.script = Script(first=[faults.says(503), faults.reset])
        found += [key for page in pages for key in page["key"].to_pylist()]
        assert found == [f"p/{name}" for name in names]
        behind.close()


def test_large_objects_go_in_parts(weed: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    # 5 MiB: the smallest part that S3 takes.
    monkeypatch.setattr(object_storage, "ONE_PUT_BYTES", 10 * 2**20)
    data = os.urandom(11 * 2**20)
    weed.write("large", memoryview(data))
    assert weed.read("large") == data
    assert weed.head("large").size == len(data)
    assert weed.head("large").etag.endswith("-3")
    weed.write("large?versionId=1", data[: -(2**20) + 1])
    assert weed.head("large?versionId=1").size == len(data) - 2**20 + 1
    with pytest.raises(ObjectNotFoundError):
        weed.read("larg")


def test_large_object_refused(
    moto_endpoint: str, monkeypatch: pytest.MonkeyPatch, credentials: None
) -> None:
    monkeypatch.setattr(object_storage, "ONE_PUT_BYTES", 4)
    storage = S3Storage("no-such-bucket", endpoint_url=moto_endpoint)
    with pytest.raises(ObjectNotFoundError, match=r"storage\.bucket"):
        storage.write("a", b"large")
    storage.close()


def sockets(endpoint: str) -> set[int]:
    """Return the ports from which this process is connected to a server."""
    port = urlsplit(endpoint).port
    found = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in found if each.raddr and each.raddr.port == port}


def test_close_lets_go_of_the_sockets(weed: S3Storage, weed_endpoint: str) -> None:
    others = sockets(weed_endpoint)
    weed.write("a", b"x")
    mine = sockets(weed_endpoint) - others
    assert mine
    weed.close()
    waiting = threading.Event()
    while sockets(weed_endpoint) & mine:  # which the library's threads close
        waiting.wait(0.01)


@pytest.mark.parametrize("used", [True, False])
def test_a_forked_child_opens_its_own(weed: S3Storage, weed_endpoint: str, used: bool) -> None:
    weed.write("a", b"x")
    if not used:
        weed.close()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    mine = id(client._LIBRARIES.get("obstore"))

    def grandchild() -> None:
        answers.put((weed.read("a"), id(client._LIBRARIES.get("obstore")) == mine))
        weed.close()

    def child() -> None:
        grandchild()
        process = context.Process(target=grandchild)
        process.start()
        process.join(30)
        assert process.exitcode == 0

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [answers.get() for _ in range(2)] == [(b"x", False)] * 2
    assert weed.read("a") == b"x"
