"""What settings and the environment make of requests, as a server sees them."""

import hashlib
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from factory.errors import AccessDeniedError, ContentMismatchError, StorageError
from factory.storage import AzureStorage, GcsStorage, S3Storage
from factory.storage.endpoint_limits import request_counts
from factory.storage.object_store import aws

DATA = b"0123456789" * 30_000


class Page(BaseHTTPRequestHandler):
    server: "Recording"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.send_header("Last-Modified", "Tue, 01 Dec 2026 12:00:00 GMT")
        for name, value in self.server.said.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(DATA)

    do_HEAD = do_GET  # noqa: N815 - the library's name


class Recording(ThreadingHTTPServer):
    """Has one object whatever is asked for, and keeps the headers of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.asked: list[dict[str, str]] = []
        self.said = {"ETag": f'"{hashlib.md5(DATA).hexdigest()}"'}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Recording]:
    with Recording() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def headers(server: Recording, storage: S3Storage | GcsStorage | AzureStorage) -> dict[str, str]:
    """Return the headers that a read sends."""
    assert storage.read("a") == DATA
    storage.close()
    return server.asked[-1]


def test_requester_pays_and_session_tokens(
    server: Recording, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    sent = headers(server, S3Storage("b", "", server.url, requester_pays=True))
    assert sent["x-amz-request-payer"] == "requester"
    assert sent["x-amz-security-token"] == "a-token"


def test_anonymous_requests_are_unsigned(server: Recording) -> None:
    for storage in (
        S3Storage("b", "", server.url, anonymous=True),
        GcsStorage("b", "", server.url, anonymous=True),
        AzureStorage("b", "", server.url, account="me", anonymous=True),
    ):
        assert "authorization" not in headers(server, storage)
    with pytest.raises(AccessDeniedError, match="no credentials found"):
        S3Storage("b", "", server.url).read("a")


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_profiles(
    server: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    file = tmp_path / "credentials"
    keys = "aws_access_key_id = of-research\naws_secret_access_key = secret-0123456789"
    file.write_text(f"[research]\n{keys}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    if by == "environment":
        monkeypatch.setenv("AWS_PROFILE", "research")
    profile = "research" if by == "setting" else None
    sent = headers(server, S3Storage("b", "", server.url, profile=profile))
    assert "Credential=of-research/" in sent["authorization"]
    with pytest.raises(AccessDeniedError, match=r"storage\.profile names no profile"):
        S3Storage("b", "", server.url, profile="typo").read("a")


def test_an_endpoint_that_is_set_wins_over_the_environments(
    server: Recording, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert headers(server, S3Storage("b", "", server.url))


def test_virtual_hosts(server: Recording, credentials: None) -> None:
    url = server.url.replace("127.0.0.1", "localhost")
    storage = S3Storage("b", "", url, virtual_host=True)
    try:
        assert headers(server, storage)["host"] == f"b.localhost:{server.server_port}"
    except StorageError as error:  # names below "localhost" are not known everywhere
        assert "cannot be reached" in str(error)


def test_projects_that_pay(server: Recording, gcs_credentials: None) -> None:
    sent = headers(server, GcsStorage("b", "", server.url, user_project="mine"))
    assert sent["x-goog-user-project"] == "mine"


def test_etags_of_encrypted_objects_are_no_hashes(server: Recording, credentials: None) -> None:
    server.said["ETag"] = '"' + "0" * 32 + '"'
    storage = S3Storage("b", "", server.url)
    with pytest.raises(ContentMismatchError, match=r"storage\.verify_checksum=false"):
        storage.read("a")
    server.said["x-amz-server-side-encryption"] = "aws:kms"
    assert storage.read("a") == DATA
    asked = len(server.asked)
    assert storage.read("a") == DATA  # what is known now is not asked for again
    assert len(server.asked) == asked + 1
    storage.close()


def test_certificates(server: Recording, credentials: None, tmp_path: Path) -> None:
    files = tmp_path / "key.pem", tmp_path / "ca.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", files[0], "-out", files[1]],
        check=False, capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(StorageError, match="cannot be reached"):
        S3Storage("b", "", url, max_attempts=1).read("a")
    assert headers(server, S3Storage("b", "", url, ca_certificate=str(files[1])))
    assert headers(server, S3Storage("b", "", url, verify_tls=False))
    with pytest.raises(StorageError, match=r"storage\.ca_certificate='/nowhere\.pem' cannot"):
        S3Storage("b", "", url, ca_certificate="/nowhere.pem").read("a")


def test_azure_wants_an_account() -> None:
    with pytest.raises(StorageError, match=r"storage\.account is not set"):
        AzureStorage("b").read("a")


def test_identities() -> None:
    assert GcsStorage("b", "/a/b/").identity == "gs://b/a/b"
    assert AzureStorage("c", "a", account="me").identity == "az://me/c/a"
    assert GcsStorage("b", "", "http://h:1").identity == "gs://b?endpoint=http://h:1"


def test_the_region_of_a_bucket_is_asked_for_once(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Answer:
        headers = {"x-amz-bucket-region": "eu-west-3"}  # noqa: RUF012 - never changed

    def request(method: str, url: str, **_: object) -> Answer:
        asked.append((method, url))
        return Answer()

    monkeypatch.setattr("urllib3.request", request)
    storage = S3Storage("b")
    assert storage._client.endpoint.name == "https://s3.eu-west-3.amazonaws.com:443"
    assert storage._client
    assert asked == [("HEAD", "https://s3.us-east-1.amazonaws.com/b")]
    assert aws.region_of("b") == "eu-west-3"
    storage.close()


def test_latencies_are_counted(server: Recording, credentials: None) -> None:
    headers(server, S3Storage("b", "", server.url))
    (found,) = [each for each in request_counts() if each.endpoint == server.url]
    assert (found.requests, found.bytes) == (1, len(DATA))
    assert found.busy_s > 0


@pytest.mark.parametrize("taken", ["some", "none", "all"])
def test_a_process_that_ends_in_the_midst_of_reads_ends_well(
    server: Recording, credentials: None, taken: str
) -> None:
    program = f"""
from factory.storage import S3Storage
reads = S3Storage("b", "", {server.url!r}).read_many([("a", 0, None)] * 40)
{"next(reads)" if taken == "some" else "list(reads)" if taken == "all" else ""}
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
