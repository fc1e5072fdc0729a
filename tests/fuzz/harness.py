"""Reads thousands of damaged files in processes that may die of them, and says what came of each.

A `Format` says how a folder of sound files is made, which of them is damaged, and how it is read.
A reader must give what it gives for the sound file, refuse with an error of ours, or, where nothing
in the file tells damage from data, give something else. One process reads many files in a row; one
that dies or hangs has its last file to blame, and another goes on with the next.
"""

import json
import random
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.media.mutations import damaged

ROOT = Path(__file__).parents[2]
# Seconds that one file may take, and what a process may ask of memory beyond its imports.
PATIENCE_S = 10.0
MEMORY = 2 * 2**30
# A process has its imports to do first.
START_S = 60.0
# Where formats keep what counts: half of the damage is done there.
EDGE = 400


@dataclass(frozen=True)
class Format:
    """A kind of file, and what reads it.

    Attributes:
        write: Writes sound files into an empty folder.
        target: The file to damage, as a pattern that `Path.glob` takes; of several the first.
        read: Returns what is read from the folder, comparable with ==; raises what the reader does.
        exact: Whether any other value than the sound one is wrong, since the file has a checksum.
        allowed: Tells whether a value may be read for a sound one; what `exact` says if None.
    """

    write: Callable[[Path], None]
    target: str
    read: Callable[[Path], Any]
    exact: bool = False
    allowed: Callable[[Any, Any], bool] | None = None


@dataclass
class Report:
    """What came of the damaged files of one format.

    Attributes:
        counts: How many were read "same", read as something "else", or "refused".
        failures: What must not happen: number of the file, and what came of it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, text: str) -> None:
        """Count one outcome; one that must not be is kept whole."""
        self.counts[outcome] += 1
        if outcome not in ("same", "else", "refused"):
            self.failures.append((number, f"{outcome}: {text}"))


def damaged_file(data: bytes, name: str, number: int) -> bytes:
    """Return the file of some number, the same whenever it is asked for.

    Args:
        data: The sound file.
        name: Its format, so that each has damage of its own.
        number: The file's number, from 0.
    """
    rng = random.Random(f"{name}/{number}")
    if data[:1] == b"{" and data.count(b"\n{") == 0 and rng.random() < 0.5:
        return _other_json(data, rng)
    first, last = rng.choice([(0, len(data)), (0, len(data)), (0, EDGE), (-EDGE, len(data))])
    first, last = first % len(data) if first >= -len(data) else 0, min(last, len(data))
    part = rng.choice([_damaged, _numbers, _zeroed])(data[first:last], rng)
    return data[:first] + part + data[last:]


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert and splice."""
    return damaged(data, rng)


def _numbers(data: bytes, rng: random.Random) -> bytes:
    """Put numbers of 2, 4 or 8 bytes where lengths and offsets may stand."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
        at = rng.randrange(max(1, len(made) - size)) // size * size
        old = int.from_bytes(made[at : at + size], order)
        near = [old + 1, old - 1, old * 2, old ^ 2 ** rng.randrange(8 * size), len(data)]
        new = rng.choice([*near, 2 ** (8 * size - 1), -1, rng.getrandbits(8 * size)])
        made[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, order)[: len(made) - at]
    return bytes(made)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    """Zero a block, as a disk that lost power leaves it, or one that was never written."""
    size = rng.choice([1, 16, 64, 512, 4096])
    at = rng.randrange(max(1, len(data))) // size * size
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def _other_json(data: bytes, rng: random.Random) -> bytes:
    """Put values of another kind in some places of a JSON file, which stays one."""
    made = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        odd = [None, True, -1, 0, 2**63, 1e300, "", "x", "../../x", "/x", [], [[]], {}, {"x": 1}]
        place, key = made, rng.choice(list(made))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
            break
        place[key] = rng.choice([*odd, [place[key]], {"x": place[key]}])
    return json.dumps(made).encode()


def fuzz(formats: Sequence[str], count: int, folder: Path, first: int = 0) -> dict[str, Report]:
    """Read damaged files of some formats, and report on each.

    Args:
        formats: Names of formats, each as "tests.fuzz.formats:NAME", a key of the module's FORMATS.
        count: How many files of each.
        folder: An empty folder to work in.
        first: Number of the first one, from 0.
    """
    reports = {name: Report() for name in formats}
    tasks = [(name, number) for name in formats for number in range(first, first + count)]
    while tasks:
        done = _work(tasks, reports, folder)
        assert done, "a process ended before it read anything"
        tasks = tasks[done:]
    return reports


def _work(tasks: list[tuple[str, int]], reports: dict[str, Report], folder: Path) -> int:
    """Give one process all tasks; return how many of them are done with when it has ended."""
    command = [sys.executable, "-m", "tests.fuzz.worker", str(folder), str(MEMORY)]
    errors = folder / "stderr.txt"
    with errors.open("wb") as stderr, subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for done, (name, number) in enumerate(tasks):
            try:
                process.stdin.write(json.dumps([name, number]) + "\n")
            except BrokenPipeError:
                line = ""
            else:
                patience = PATIENCE_S if done else START_S
                ready = select.select([process.stdout], [], [], patience)[0]
                if not ready:
                    process.kill()
                    reports[name].add(number, "slow", f"more than {patience:.0f} s")
                    return done + 1
                line = process.stdout.readline()
            if not line:
                said = errors.read_text(errors="replace")[:2000]
                reports[name].add(number, "died", f"status {process.wait()}: {said}")
                return done + 1
            reports[name].add(number, *json.loads(line))
        process.stdin.close()
    return len(tasks)
