"""Processes that start at once: a parent that has loaded torch and Lightning forks them.

A test asks its nursery for processes, each with its own environment and output file; the
children are as real as any and can be killed. The parent uses nothing it loaded, so that no
thread and no lock is forked along.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread each: pools of threads would be forked along, and cores are few.
CALM = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


@dataclass
class Child:
    """One process.

    Attributes:
        pid: Its id.
        output: What it writes to stdout and stderr.
    """

    pid: int
    output: Path
    nursery: "Nursery"

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit status, negative for a signal; None if it runs on after so long."""
        status: int | None = self.nursery.ask({"wait": self.pid, "timeout": timeout_s})
        return status

    @property
    def text(self) -> str:
        """What it wrote so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")


class Nursery:
    """The parent, seen from the test."""

    def __init__(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.scenarios.ranks.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **CALM}, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        self.children: list[int] = []

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, call: str, output: Path, *args: Any, **env: str) -> Child:
        """Run `module:function` in a new process, with arguments that JSON can hold."""
        pid = self.ask({"call": call, "args": args, "env": env, "output": str(output)})
        self.children.append(pid)
        return Child(pid, output, self)

    def start_ranks(self, call: str, folder: Path, ranks: int, *args: Any) -> list[Child]:
        """Run it in processes that find each other as torchrun's do."""
        port = self.ask({"port": True})
        children = []
        for rank in range(ranks):
            env = {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
                "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
                "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests",
            }  # fmt: skip
            children.append(self.start(call, folder / f"rank{rank}.txt", *args, **env))
        return children

    def close(self) -> None:
        """End the parent, and what was left of the children."""
        self.ask({"kill": self.children})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


@contextlib.contextmanager
def opened() -> Iterator[Nursery]:
    """Yield a nursery, and close it."""
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


def _serve() -> None:
    import lightning.pytorch  # noqa: F401
    import torch.distributed  # noqa: F401

    import factory.lightning.datamodule  # noqa: F401

    ended: dict[int, int] = {}
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line), ended)) + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any], ended: dict[int, int]) -> Any:
    if "call" in request:
        return _fork(request)
    if "port" in request:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            return server.getsockname()[1]
    if "kill" in request:
        for pid in set(request["kill"]) - ended.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        return None
    pid, until = request["wait"], time.monotonic() + request["timeout"]
    while pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > until:
            return None
        else:
            time.sleep(0.01)
    return ended[pid]


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    file = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    os.environ.update(request["env"])
    module, _, function = request["call"].partition(":")
    status = 1
    try:
        getattr(importlib.import_module(module), function)(*request["args"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - a process ends with it, whatever it is
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by `sys.exit`, which would unwind into the parent's loop.
        os._exit(status)


if __name__ == "__main__":
    _serve()
