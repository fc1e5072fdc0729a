"""Stages say what they took, once and in one line; bars are drawn for people only."""

import io
import json
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from factory.metrics import stages
from factory.metrics.stages import Stage, Telemetry, progress


def test_a_stage_records_time_memory_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    record = Telemetry()
    with caplog.at_level(logging.INFO, logger="factory"), record.stage("scan a") as stage:
        stage.counts["samples"] = 3
        assert record.stages == []  # listed once it is over
    assert record.stages == [stage]
    assert stage.seconds > 0
    assert stage.peak_rss_mb >= stage.rss_mb > 1
    (line,) = caplog.messages
    assert line.startswith("scan a: 0.")
    assert line.endswith(" MiB samples=3")
    assert " s, rss " in line
    assert ", peak " in line


def test_a_peak_that_is_over_before_the_end_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, looked_again = threading.Event(), threading.Event()
    real = stages._PeakSampler.now

    def now(self: stages._PeakSampler) -> float:
        mebibytes = real(self)
        if threading.current_thread().name == "factory-rss":
            (looked if held else looked_again).set()
        return mebibytes

    monkeypatch.setattr(stages._PeakSampler, "now", now)
    held: list[np.ndarray] = []
    record = Telemetry()
    with record.stage("work") as stage:
        held.append(np.ones(2**24, dtype=np.float64))  # 128 MiB
        assert looked.wait(30)
        held.clear()
        looked_again.clear()
        assert looked_again.wait(30)
    # Less than was held: parts of the process may be swapped out or given back meanwhile.
    assert stage.peak_rss_mb - stage.rss_mb > 64


def test_a_stage_that_fails_is_recorded_too_and_leaves_no_thread() -> None:
    record = Telemetry()
    with pytest.raises(ZeroDivisionError), record.stage("bad"):
        raise ZeroDivisionError
    assert [stage.name for stage in record.stages] == ["bad"]
    assert "factory-rss" not in {thread.name for thread in threading.enumerate()}


def test_two_records_know_nothing_of_each_other() -> None:
    one, other = Telemetry(), Telemetry()
    with one.stage("a"), other.stage("b"):
        pass
    assert [stage.name for stage in one.stages] == ["a"]
    assert [stage.name for stage in other.stages] == ["b"]


def test_metrics_are_json_whatever_was_counted(tmp_path: Path) -> None:
    record = Telemetry()
    record.stages.append(Stage("a", 1.5, 2, 3, {"where": Path("x"), "n": 1}))
    record.write(tmp_path / "deep/metrics.json")
    assert json.loads((tmp_path / "deep/metrics.json").read_text()) == {
        "stages": [
            {
                "name": "a",
                "seconds": 1.5,
                "rss_mb": 2,
                "peak_rss_mb": 3,
                "counts": {"where": "x", "n": 1},
            }
        ]
    }


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_nothing_is_drawn_away_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("measure a", 10, "files") as advance:
        advance(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("total", "said"),
    [
        (10_000, "encode a: 1,200 of 10,000 pictures, 20.0 pictures/s, 0:07:20 left"),
        (None, "encode a: 1,200 pictures, 20.0 pictures/s"),
    ],
)
def test_away_from_a_terminal_a_line_tells_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    total: int | None,
    said: str,
) -> None:
    seconds = iter([0.0, 1.0, 60.0, 61.0, 2000.0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(seconds))
    with (
        caplog.at_level(logging.INFO, logger="factory"),
        progress("encode a", total, "pictures") as advance,
    ):
        for count in (1, 1199, 5):  # too soon, due, too soon
            advance(count)
        assert caplog.messages == [said]
        if total is not None:
            advance(total - 1205)  # the end: the stage's own line tells
    assert caplog.messages == [said]


@pytest.mark.parametrize("total", [0, 10, None])
def test_a_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("measure a", total, "files") as advance:
        threads = [threading.Thread(target=advance, args=(1,)) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert "measure a" in stream.getvalue()
    assert "files/s" in stream.getvalue()
    assert total != 10 or "7/10" in stream.getvalue()
