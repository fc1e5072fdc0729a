"""The demo's S3 server: real answers, keys that matter, and nothing left when it ends."""

import contextlib
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from factory.demo import s3server
from factory.demo.s3server import GRPC_OFFSET, S3Server
from factory.errors import (
    ConfigError,
    MissingExtraError,
    ObjectNotFoundError,
    StorageUnavailableError,
)

EVERY_PORT = {str(port): port for port in range(s3server.FIRST_PORT, s3server.LAST_PORT + 1)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3"), ("training-data", "second")) as running:
        yield running


def connect(server: S3Server, **changes: str) -> Any:
    keys = {
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
    } | changes
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, proxies={}),
        **keys,
    )


def process_of(server: S3Server) -> psutil.Process:
    assert server._process is not None
    return psutil.Process(server._process.pid)


def sockets_at(ports: dict[str, int]) -> set[tuple[Path, int, int]]:
    """Return the sockets at any of some ports, such that a newer one at its place is another.

    Servers of other programs, killed at any time, may have left theirs in the common folder.
    """
    numbers = {str(port + offset) for port in ports.values() for offset in (0, GRPC_OFFSET)}
    found = set()
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if path.stem.rpartition("-")[2] in numbers:
                found.add((path, status.st_ino, status.st_mtime_ns))
    return found


def test_put_and_get(server: S3Server) -> None:
    client = connect(server)
    names = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    assert names >= {"training-data", "second"}
    client.put_object(Bucket="second", Key="a/ünï 写.txt", Body=b"0123456789")
    answer = client.get_object(Bucket="second", Key="a/ünï 写.txt", Range="bytes=2-4")
    assert answer["Body"].read() == b"234"


@pytest.mark.parametrize(
    "changes",
    [{"aws_secret_access_key": "wrong"}, {"aws_access_key_id": "wrong"}],
)
def test_a_wrong_key_is_refused(server: S3Server, changes: dict[str, str]) -> None:
    with pytest.raises(ClientError) as caught:
        connect(server, **changes).list_objects_v2(Bucket="training-data")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_the_environment_is_enough_to_connect(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = server.environment()
    assert set(environment) == {
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL", "DATA_BUCKET",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_ENDPOINT_URL"],
        region_name="us-east-1",
        config=Config(proxies={}),
    )
    client.head_bucket(Bucket=os.environ["DATA_BUCKET"])


def test_upload_puts_every_file_below_the_prefix(server: S3Server, tmp_path: Path) -> None:
    names = ["a.txt", "sub/ünïcode 写.jpg", "sub/deep/empty"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"" if name.endswith("empty") else name.encode())
    assert server.upload(tmp_path, "training-data", "demo/") == 3
    client = connect(server)
    listed = client.list_objects_v2(Bucket="training-data", Prefix="demo/")["Contents"]
    assert {item["Key"] for item in listed} == {f"demo/{name}" for name in names}
    body = client.get_object(Bucket="training-data", Key=f"demo/{names[1]}")["Body"].read()
    assert body == names[1].encode()
    assert server.upload(tmp_path, "second") == 3
    assert client.get_object(Bucket="second", Key="a.txt")["Body"].read() == b"a.txt"


def test_upload_names_what_is_absent(server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match="absent"):
        server.upload(tmp_path / "absent", "training-data")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ObjectNotFoundError, match=r"no bucket 'other'.*training-data, second"):
        server.upload(tmp_path, "other")
    server_of_one = S3Server(server.directory)
    with pytest.raises(StorageUnavailableError, match="not running"):
        server_of_one.upload(tmp_path, "training-data")


def test_repr_and_folder_keep_the_secret(server: S3Server) -> None:
    assert server.endpoint_url in repr(server)
    assert server.secret_key not in repr(server)
    assert server.access_key not in repr(server)
    settings = server.directory / "s3.json"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert json.loads(settings.read_text())["identities"][0]["credentials"]
    assert server.secret_key not in (server.directory / "server.log").read_text(errors="replace")


def test_its_command_line_and_environment_hold_no_secret(server: S3Server) -> None:
    process = process_of(server)
    shown = " ".join(process.cmdline()) + str(process.environ())
    assert server.secret_key not in shown
    assert "-master.telemetry=false" in process.cmdline()


def test_it_listens_on_loopback_only(server: S3Server) -> None:
    connections = process_of(server).net_connections(kind="inet")
    listening = {item.laddr for item in connections if item.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    own = set(server._ports.values())
    own |= {port + GRPC_OFFSET for port in own}
    assert {address.port for address in listening} <= own


def test_a_second_server_runs_beside_it_and_leaves_nothing(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a user's shell may hold must bend neither the server nor its client.
    monkeypatch.setenv("AWS_PROFILE", "absent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    folder = tmp_path / "s3"
    before = sockets_at(EVERY_PORT)
    with S3Server(folder) as second:
        monkeypatch.delenv("AWS_PROFILE")
        assert second.start() is second
        assert second.endpoint_url != server.endpoint_url
        with pytest.raises(ClientError):
            connect(second, aws_secret_access_key=server.secret_key).list_buckets()
        connect(second).put_object(Bucket="training-data", Key="k", Body=b"kept")
        process = process_of(second)
        assert "mine" not in process.environ().values()
    assert not process.is_running()
    assert sockets_at(second._ports) <= before
    assert not [*folder.glob("*.json"), *folder.glob("*.sock")]
    second.close()
    connect(server).head_bucket(Bucket="training-data")
    with pytest.raises(StorageUnavailableError, match="start"):
        _ = second.endpoint_url
    # A later server on the same folder, at other ports and with other keys, has the objects.
    with S3Server(folder) as third:
        body = connect(third).get_object(Bucket="training-data", Key="k")["Body"].read()
    assert body == b"kept"


PARENT = """
import os, sys
from pathlib import Path
from factory.demo.s3server import S3Server
server = S3Server(Path(sys.argv[1])).start()
print(server._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ends with its parent on Linux only")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "s3")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        try:
            process.wait(15)
        finally:
            if process.is_running():
                process.kill()
    # What it left in the folder of all programs is removed by the next one on its own folder.
    ports = json.loads((tmp_path / "s3" / "ports.json").read_text())
    left = [
        Path("/tmp") / f"seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock"
        for service, port in ports.items()
    ]
    for path in left:
        path.touch()
    with S3Server(tmp_path / "s3"):
        assert not any(path.exists() for path in left)


def test_sockets_that_another_server_uses_by_now_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not the test's own folder: the path of a socket may hold no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="s3") as folder:
        monkeypatch.setattr(s3server, "_SOCKETS", Path(folder))
        ports = {"s3": 1, "volume": 2, "filer": 3}
        used, ended, _ = (
            Path(folder) / f"seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock"
            for service, port in ports.items()
        )
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(ended))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(used))
            server.listen(0)
            for _ in range(3):  # more than wait in line
                s3server._remove_sockets(ports)
                assert [path.exists() for path in (used, ended)] == [True, False]


@pytest.mark.parametrize("said", ["", "[1]", '{"s3": 1}', '{"s3": "../x", "master": 1}'])
def test_a_damaged_list_of_ports_is_no_hindrance(tmp_path: Path, said: str) -> None:
    folder = tmp_path / "s3"
    folder.mkdir()
    (folder / "ports.json").write_text(said)
    assert S3Server(folder)._ports_of_killed() == {}


def test_it_can_be_started_from_another_thread(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s3")
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        connect(server).head_bucket(Bucket="training-data")
    finally:
        server.close()


def test_ports_stay_clear_of_each_other_and_of_clients() -> None:
    for _ in range(20):
        ports = s3server._free_ports()
        both = [*ports.values(), *(port + GRPC_OFFSET for port in ports.values())]
        assert len(set(both)) == 2 * len(s3server.SERVICES)
        assert max(both) < 32768


def test_a_port_lost_to_another_program_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = s3server._free_ports
    draws: list[dict[str, int]] = []

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def draw() -> dict[str, int]:
            ports = free()
            if not draws:
                ports["master"] = taken.getsockname()[1]
            draws.append(ports)
            return ports

        monkeypatch.setattr(s3server, "_free_ports", draw)
        with S3Server(tmp_path / "s3") as server:
            assert server.endpoint_url.endswith(str(draws[1]["s3"]))
    assert len(draws) == 2


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\ncat s3.json\necho no disk >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(s3server, "_server_program", lambda: str(broken))
    server = S3Server(tmp_path / "s3")
    with pytest.raises(StorageUnavailableError, match="no disk") as caught:
        server.start()
    assert server.secret_key not in str(caught.value)
    assert "***" in str(caught.value)
    assert not (tmp_path / "s3" / "s3.json").exists()


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho still thinking\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr(s3server, "_server_program", lambda: str(silent))
    monkeypatch.setattr(s3server, "START_SECONDS", 0.2)
    with pytest.raises(StorageUnavailableError, match="did not answer within"):
        S3Server(tmp_path / "s3").start()


def test_a_program_that_cannot_run_leaves_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not executable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(StorageUnavailableError, match="not executable"):
        S3Server(tmp_path / "s3").start()
    assert not (tmp_path / "s3" / "s3.json").exists()


def test_a_bucket_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower-case"):
        S3Server(tmp_path / "s3", ["No Bucket"]).start()
    for buckets in ((), "training-data"):
        with pytest.raises(ConfigError, match="list of one or more"):
            S3Server(tmp_path / "s3", buckets)


def test_an_absent_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(MissingExtraError, match=r"\[s3server\]"):
        s3server._server_program()


@pytest.mark.parametrize(
    ("service", "path"),
    [
        ("filer", "/buckets/"),
        ("filer", "/buckets/training-data/a.txt"),
        ("master", "/dir/assign"),
        ("master", "/dir/lookup?volumeId=1"),
        ("master", "/vol/grow?count=1"),
        ("volume", "/ui/index.html"),
        ("volume", "/1,0100000000"),
    ],
)
def test_the_services_behind_it_tell_nobody_anything(
    server: S3Server, service: str, path: str
) -> None:
    for method in ("GET", "PUT"):
        connection = http.client.HTTPConnection("127.0.0.1", server._ports[service], timeout=10)
        connection.request(method, path, body=b"x" if method == "PUT" else None)
        assert connection.getresponse().status in (400, 401, 403, 404, 405)
        connection.close()


def test_the_keys_of_the_services_are_this_users_and_go_with_it(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "s")
    server.directory.mkdir()
    server._write_settings()
    for name in ("s3.json", "security.toml"):
        assert (server.directory / name).stat().st_mode & 0o777 == 0o600
    server._tidy()
    assert not [*server.directory.glob("*.json"), *server.directory.glob("*.toml")]
