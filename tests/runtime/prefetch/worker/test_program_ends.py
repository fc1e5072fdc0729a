"""However a program ends, its worker process ends with it, and says nothing."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.traces import traces

ROOT = Path(__file__).parent.parent.parent.parent.parent
# Until which a process must be gone; only a failure takes this long.
PATIENCE_S = 200
Start = Callable[[str], "tuple[subprocess.Popen[str], int]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the program in a process group of its own; return it and a pidfd of its worker."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def begin(ending: str) -> tuple[subprocess.Popen[str], int]:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.trainer_script", ending, str(gate)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert program.stdout is not None
        return program, os.pidfd_open(int(program.stdout.readline()))

    return begin


def gone(worker: int) -> bool:
    """Wait for a process to be gone."""
    poll = select.poll()
    poll.register(worker, select.POLLIN)
    found = bool(poll.poll(PATIENCE_S * 1000))
    os.close(worker)
    return found


def test_a_program_that_leaves_its_fetcher_open(start: Start) -> None:
    program, worker = start("leave")
    assert program.communicate(timeout=PATIENCE_S) == ("", "")
    assert program.returncode == 0
    assert gone(worker)


def test_a_program_that_is_killed_while_a_fork_of_it_lives(start: Start) -> None:
    before = traces()["shared memory"]
    program, worker = start("fork")
    assert program.stdout is not None
    fork = int(program.stdout.readline())
    program.kill()
    assert gone(worker)
    os.kill(fork, signal.SIGKILL)
    assert program.communicate(timeout=PATIENCE_S) == ("", "")
    assert not traces()["shared memory"] - before


def test_a_program_that_is_interrupted_with_all_of_its_group(start: Start) -> None:
    program, worker = start("wait")
    os.killpg(program.pid, signal.SIGINT)
    assert program.communicate(timeout=PATIENCE_S) == ("interrupted\n", "")
    assert program.returncode == 0
    assert gone(worker)
