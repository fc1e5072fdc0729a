"""A bucket that is missing or forbidden names the setting at fault, before anything is done."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from factory.commands.cli import describe
from factory.errors import (
    AccessDeniedError,
    ConfigError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from tests.scenarios.bad_input.building import built, image, refused


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the machine's own settings, and give keys of our own."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-0123456789")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Forbidding(BaseHTTPRequestHandler):
    """An S3 server that lets nobody in."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>No</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = refuse  # noqa: N815 - names that the library looks for


@pytest.fixture
def forbidding() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def on_s3(root: Path, endpoint: str, *more: str) -> None:
    """Prepare a run whose storage is a bucket."""
    data = built(
        root, image(), "storage=s3", "storage.bucket=nowhere", f"storage.endpoint_url={endpoint}",
        *more,
    )  # fmt: skip
    try:
        data.prepare_data()
    finally:
        data.close()


def test_a_missing_bucket(tmp_path: Path, moto: str) -> None:
    with refused(
        ObjectNotFoundError,
        f"there is no bucket 'nowhere' on {moto}",
        "correct storage.bucket (or storage.endpoint_url), or create the bucket",
    ):
        on_s3(tmp_path, moto)


def test_a_missing_bucket_of_one_backend(tmp_path: Path, moto: str) -> None:
    with refused(
        ObjectNotFoundError,
        "there is no bucket 'nowhere'",
        "while checking the storage of backend 'pics'",
    ):
        on_s3(tmp_path, moto, "storage@cache=local", f"cache.storage.root={tmp_path}")


def test_a_forbidden_bucket(tmp_path: Path, forbidding: str) -> None:
    with refused(
        AccessDeniedError,
        "s3://nowhere/",
        "check storage.bucket='nowhere' and that AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY are "
        "right and may use that bucket",
    ):
        on_s3(tmp_path, forbidding)


def test_no_credentials(tmp_path: Path, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with refused(AccessDeniedError, "set AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY"):
        on_s3(tmp_path, moto)


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with refused(StorageUnavailableError, "check storage.endpoint_url, and that the server runs"):
        on_s3(tmp_path, "http://127.0.0.1:1")


def test_no_bucket_at_all(tmp_path: Path) -> None:
    with refused(ConfigError, "bucket is not set; set DATA_BUCKET in the environment"):
        built(tmp_path, image(), "storage=s3")


def test_no_secret_is_shown(tmp_path: Path, forbidding: str) -> None:
    with pytest.raises(StorageError) as caught:
        on_s3(tmp_path, forbidding)
    assert "0123456789" not in describe(caught.value) + repr(caught.value)
