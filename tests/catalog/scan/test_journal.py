"""A scan that is killed goes on where it was, and never with what belongs to another."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.scan import Scan
from factory.engine.local_engine import LocalEngine
from factory.errors import StorageError
from factory.storage.local import LocalStorage
from tests.catalog.fakes import Watched
from tests.support.pictures import write_pictures

ROOT = Path(__file__).parents[3]


def journal(folder: Path, every_s: float = 0.0, **origin: Any) -> Journal:
    return Journal(LocalStorage(str(folder)), "scan", origin, every_s=every_s)


def rows(*keys: str) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.large_string())})


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    first = journal(tmp_path, of="a")
    assert first.read() is None
    first.add(rows("1", "2"))
    first.add(rows("3"))
    again = journal(tmp_path, of="a")
    left = again.read()
    assert left is not None
    assert left["key"].to_pylist() == ["1", "2", "3"]
    again.add(rows("4"))
    assert len(list((tmp_path / "scan").iterdir())) == 3
    again.clear()
    assert journal(tmp_path, of="a").read() is None


def test_rows_of_another_origin_are_left_out(tmp_path: Path) -> None:
    journal(tmp_path, of="a").add(rows("1"))
    other = journal(tmp_path, of="b")
    assert other.read() is None
    other.add(rows("2"))
    found = journal(tmp_path, of="b").read()
    assert found is not None
    assert found["key"].to_pylist() == ["2"]


def test_parts_are_written_only_so_often(tmp_path: Path) -> None:
    slow = journal(tmp_path, every_s=3600)
    for number in range(100):
        slow.add(rows(str(number)))
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize("length", [0, 5, -20])
def test_a_damaged_part_is_measured_again(tmp_path: Path, length: int) -> None:
    first = journal(tmp_path)
    first.add(rows("1"))
    first.add(rows("2"))
    part = min((tmp_path / "scan").iterdir())
    part.write_bytes(part.read_bytes()[:length])
    left = journal(tmp_path).read()
    assert left is not None
    assert left["key"].to_pylist() == ["2"]


def test_a_full_disk_does_not_stop_the_scan(tmp_path: Path) -> None:
    class Full(LocalStorage):
        def write(self, key: str, data: bytes | memoryview) -> None:
            raise StorageError("no space left")

    full = Journal(Full(str(tmp_path)), "scan", {}, every_s=0)
    full.add(rows("1"))
    assert full.read() is None


# Scans a folder and kills itself, as a machine would, when so many pictures are measured.
KILLED = """
import os, signal, sys
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.scan import Scan
from factory.engine.local_engine import LocalEngine
from factory.storage.local import LocalStorage

class Slow(LocalStorage):
    spans_at_once = 1

folder, last = sys.argv[1], int(sys.argv[2])
journal = Journal(LocalStorage(folder), "scan", {}, every_s=0)
add = journal.add
count = 0
def add_or_die(rows):
    global count
    add(rows)
    count += len(rows)
    if count >= last:
        os.kill(os.getpid(), signal.SIGKILL)
journal.add = add_or_die
scan = Scan("pics", Slow(folder), "p", FilenameCaptions(), journal=journal)
Discovery().scan(scan, LocalEngine(1))
"""


def test_a_killed_scan_measures_only_what_is_missing(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 9)
    for last in (2, 3):  # killed twice, the second time after going on
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(last)], check=False, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL
    storage = Watched(str(tmp_path))
    kept = Journal(LocalStorage(str(tmp_path)), "scan", {}, every_s=0)
    scan = Scan("pics", storage, "p", FilenameCaptions(), journal=kept)
    facts = Discovery().scan(scan, LocalEngine(1))
    assert storage.taken() == [f"p/{n:04d}.png" for n in range(5, 9)]
    fresh = Scan("pics", Watched(str(tmp_path)), "p", FilenameCaptions())
    assert facts.table.equals(Discovery().scan(fresh, LocalEngine(1)).table)


def test_a_file_that_changed_since_the_kill_is_measured_again(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", 3)
    storage = Watched(str(tmp_path))
    left = Journal(LocalStorage(str(tmp_path)), "scan", {}, every_s=0)
    Discovery().scan(Scan("pics", storage, "p", FilenameCaptions(), journal=left), LocalEngine(1))
    storage.taken()
    write_pictures(tmp_path / "p", 1, first=1)
    os.utime(tmp_path / "p/0001.png", ns=(5, 5))
    again = Journal(LocalStorage(str(tmp_path)), "scan", {}, every_s=0)
    Discovery().scan(Scan("pics", storage, "p", FilenameCaptions(), journal=again), LocalEngine(1))
    assert storage.taken() == ["p/0001.png"]
