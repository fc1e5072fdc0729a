"""Scans of several backends side by side: what they share, their errors, and interrupts."""

import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from factory.backends.image import ImageBackend
from factory.engine.local_engine import LocalEngine
from factory.errors import ObjectNotFoundError, StorageError
from factory.metrics import stages
from factory.metrics.stages import progress
from factory.registry.prepare import prepare, survey
from factory.registry.registry import Registry
from factory.registry.scan import SCANS, scan_all
from factory.storage import LocalStorage
from factory.storage.base import Span
from factory.storage.per_process import PerProcess
from factory.workspace import Workspace
from tests.support.pictures import write_pictures


@dataclass(frozen=True)
class Meeting(LocalStorage):
    """Reads only once every storage of the barrier is read."""

    barrier: Any = field(default=None, compare=False)

    def listing(self, prefix: str = "") -> pa.Table:
        self.barrier.wait(20)
        return super().listing(prefix)


def backends(root: Path, names: Sequence[str], **more: Any) -> Iterator[ImageBackend]:
    for name in names:
        write_pictures(root / name, 3)
        yield ImageBackend(name=name, prefix=name, storage=Meeting(str(root), **more))


def registry(root: Path, given: Any) -> Registry:
    place = Workspace(LocalStorage(str(root)), scratch_dir=str(root / "scratch"))
    return Registry(given, cache=place, engine=LocalEngine())


def test_backends_are_scanned_side_by_side_and_told_of_in_their_order(tmp_path: Path) -> None:
    names = [f"b{n}" for n in range(SCANS)]
    together = threading.Barrier(SCANS)
    made = registry(tmp_path, backends(tmp_path, names, barrier=together))
    facts, errors = scan_all(made)
    assert list(facts) == names
    assert not errors
    assert all(len(found) == 3 for found in facts.values())
    assert [stage.name for stage in made.telemetry.stages] == [f"scan {name}" for name in names]
    assert all(stage.counts["samples"] == 3 for stage in made.telemetry.stages)


def test_no_more_are_under_way_than_memory_is_meant_for(tmp_path: Path) -> None:
    names = [f"b{n}" for n in range(2 * SCANS)]
    two_rounds = threading.Barrier(SCANS)  # would break if more, or fewer, came at once
    made = registry(tmp_path, backends(tmp_path, names, barrier=two_rounds))
    facts, _ = scan_all(made)
    assert list(facts) == names


def test_errors_of_all_backends_are_told_together(tmp_path: Path) -> None:
    write_pictures(tmp_path / "good", 3)
    here = LocalStorage(str(tmp_path))
    given = [
        ImageBackend(name=name, prefix=name, storage=here) for name in ("gone", "good", "absent")
    ]
    with pytest.raises(ObjectNotFoundError) as caught:
        prepare(registry(tmp_path, given), seed=0)
    assert "gone" in str(caught.value)
    notes = "\n".join(caught.value.__notes__)
    assert "backend 'absent' fails, too: ObjectNotFound error: " in notes
    assert "'~data.backends.absent'" in notes
    sources, errors = survey(registry(tmp_path, given), seed=0)
    assert list(sources) == ["good"]
    assert list(errors) == ["gone", "absent"]


@dataclass(frozen=True)
class Stuck(LocalStorage):
    """Begins to read, and does not end before it is let go."""

    begun: Any = field(default=None, compare=False)
    end: Any = field(default=None, compare=False)

    def read_many(self, spans: Sequence[Span]) -> Any:
        self.begun()
        self.end.wait(60)
        yield from super().read_many(spans)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.begun()
        self.end.wait(60)
        return super().read(key, start, length)


def test_an_interrupt_waits_for_no_server(tmp_path: Path) -> None:
    end, threads = threading.Event(), set(threading.enumerate())
    interrupted, main = threading.Event(), threading.get_ident()

    def interrupt() -> None:
        if not interrupted.is_set():
            interrupted.set()
            # To the thread that waits: one raised here would wait for that thread to wake.
            signal.pthread_kill(main, signal.SIGINT)

    given = []
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 3)
        storage = Stuck(str(tmp_path), begun=interrupt, end=end)
        given.append(ImageBackend(name=name, prefix=name, storage=storage))
    try:
        with pytest.raises(KeyboardInterrupt):
            scan_all(registry(tmp_path, given))
    finally:
        end.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
        assert not thread.is_alive()


@dataclass(frozen=True)
class Failing(LocalStorage):
    """Fails as a whole, once others are under way."""

    barrier: Any = field(default=None, compare=False)

    def listing(self, prefix: str = "") -> pa.Table:
        self.barrier.wait(20)
        raise StorageError("the server is down")


def test_an_error_of_one_ends_the_others_and_keeps_what_they_found(tmp_path: Path) -> None:
    end, together = threading.Event(), threading.Barrier(2)
    first = threading.Lock()
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 3)
    stuck = Stuck(
        str(tmp_path), begun=lambda: first.acquire(blocking=False) and together.wait(20), end=end
    )
    down = Failing(str(tmp_path), barrier=together)
    made = registry(
        tmp_path,
        [
            ImageBackend(name="a", prefix="a", storage=stuck),
            ImageBackend(name="b", prefix="b", storage=down),
        ],
    )
    end.set()
    with pytest.raises(StorageError, match="the server is down"):
        prepare(made, seed=0)


def test_opening_one_thing_waits_for_no_other() -> None:
    together = threading.Barrier(2)
    opened = PerProcess[str, str](lambda key: f"{key}{together.wait(20)}"[0])
    found: list[str] = []
    threads = [threading.Thread(target=lambda k=k: found.append(opened.get(k))) for k in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == ["a", "b"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_bars_of_several_jobs_share_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("measure a", 10, "files") as one, progress("captions [b]", 5, "texts") as two:
        one(4)
        two(3)
        shown = stages._BARS._shown
        assert shown is not None
        assert [(task.completed, task.fields["unit"]) for task in shown.tasks] == [
            (4, "files"),
            (3, "texts"),
        ]
        shown.refresh()
    assert stages._BARS._shown is None
    assert "4/10" in stream.getvalue()
    assert "captions [b]" in stream.getvalue()
