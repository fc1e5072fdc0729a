"""A hub of datasets on loopback: what the file protocol of the public one answers."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

REPOSITORY = "acme/set"


class Hub:
    """One dataset with several revisions, each a flat folder.

    Attributes:
        endpoint: Its URL.
        asked: Every request so far, as "METHOD /path".
        sent: Bytes of files sent so far.
    """

    def __init__(self, revisions: dict[str, Path]) -> None:
        """Serve on a free port; `close` ends it."""
        commits = {commit(name): folder for name, folder in revisions.items()}
        self.folders = {**revisions, **commits}
        self.asked: list[str] = []
        self.sent = 0
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fetched(self, suffix: str = ".parquet") -> set[str]:
        """Return the names of the files of which something was asked for by GET."""
        paths = [line.split()[1] for line in self.asked if line.startswith("GET /datasets/")]
        return {path.rpartition("/")[2] for path in paths if path.endswith(suffix)}

    def run(self, script: str, home: Path, **more: str) -> dict[str, Any]:
        """Run a script in a process that knows this hub; return the JSON object it prints."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        own = {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=kept | own | more,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


@contextmanager
def hub(revisions: dict[str, Path]) -> Iterator[Hub]:
    """Serve a dataset for the length of a block."""
    server = Hub(revisions)
    try:
        yield server
    finally:
        server.close()


def commit(revision: str) -> str:
    """Return the 40 hex digits a revision stands for."""
    return hashlib.sha1(revision.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        api = f"/api/datasets/{REPOSITORY}/"
        if path.startswith(f"{api}revision/"):
            self.about(path.removeprefix(f"{api}revision/"))
        elif path.startswith(f"{api}tree/"):
            self.tree(*f"{path.removeprefix(f'{api}tree/')}/".split("/", 1))
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self.file(*path.split("/resolve/")[1].split("/", 1))
        elif path == api.rstrip("/"):
            self.about("main")
        else:
            self.refuse("RepoNotFound")

    def about(self, revision: str) -> None:
        if revision not in self.hub.folders:
            self.refuse("RevisionNotFound")
            return
        names = sorted(file.name for file in self.hub.folders[revision].iterdir())
        sha = revision if len(revision) == 40 else commit(revision)
        self.say({
            "id": REPOSITORY, "sha": sha, "private": False, "gated": False, "tags": [],
            "disabled": False, "siblings": [{"rfilename": name} for name in names],
        })  # fmt: skip

    def tree(self, revision: str, below: str) -> None:
        if below.strip("/"):
            self.refuse("EntryNotFound")
            return
        self.say([
            {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": tag(f)}
            for f in sorted(self.hub.folders[revision].iterdir())
        ])  # fmt: skip

    def file(self, revision: str, name: str) -> None:
        file = self.hub.folders.get(revision, Path("/nowhere")) / name
        if not file.is_file():
            self.refuse("EntryNotFound")
            return
        data, first = file.read_bytes(), 0
        headers = {"ETag": f'"{tag(file)}"', "X-Repo-Commit": revision}
        wanted = self.headers.get("Range")
        if wanted:
            start, _, end = wanted.partition("=")[2].partition("-")
            first, whole = int(start), len(data)
            data = data[first : int(end) + 1 if end else None]
            headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{whole}"
        self.hub.sent += len(data) if self.command == "GET" else 0
        self.send(206 if wanted else 200, data, headers)

    def say(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.send(404, b"", {"X-Error-Code": code})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def tag(file: Path) -> str:
    """Return a hash of a file's bytes."""
    return hashlib.sha1(file.read_bytes()).hexdigest()
