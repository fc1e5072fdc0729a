"""The tables of a dry run."""

import io
from pathlib import Path

from rich.console import Console

from factory.reports.preview.summary import RunLimits, Summary
from factory.reports.preview.terminal import WIDTH, bar, show
from factory.reports.wording import reads
from factory.sampling.active_window import ActiveWindow
from tests.reports.preview.building import dry_run, one_backend, write


def shown(summary: Summary, width: int = 140) -> str:
    stream = io.StringIO()
    show(summary, Console(file=stream, width=width))
    return stream.getvalue()


def line(text: str, *starts: str) -> str:
    """Return the first line that holds some words in this order, its blanks squeezed."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return next(line for line in lines if line.startswith(starts))


def test_the_whole_story_fits_in_a_hundred_columns(tmp_path: Path) -> None:
    write(tmp_path, {"a": 9, "b": 80})
    (tmp_path / "a/[bold]:smile:.png").write_text("no picture")
    brief = one_backend(tmp_path, folder="b", name="b", window=ActiveWindow(end_step=9))
    summary = dry_run(tmp_path, one_backend(tmp_path), brief, run=RunLimits(max_steps=6)).summary
    text = shown(summary)
    assert max(len(each) for each in text.splitlines()) <= WIDTH
    assert line(text, "a image").startswith("a image 10 9 1 ")
    assert "[bold]:smile:.png" in text
    assert line(text, "a 64x64").split() == [
        "a", "64x64", "9", bar(9 / 80).plain, "3", "3", "0"
    ]  # fmt: skip
    assert "epoch of 9 steps x 4 samples" in " ".join(text.split())
    assert line(text, "a 1 50.0%").split()[:4] == ["a", "1", "50.0%", "33.3%"]
    assert line(text, "1 to 5") == "1 to 5 60% (50%), 3 40% (50%), 2"
    assert line(text, "6 to 9") == "6 to 9 - 100% (100%), 4"
    assert "89 captions" in text
    assert "This can be trained" in text


def test_what_stops_a_run_is_said_last_and_in_full(tmp_path: Path) -> None:
    write(tmp_path, {"a": 8})
    summary = dry_run(tmp_path, one_backend(tmp_path), run=RunLimits(ranks=3)).summary
    text = shown(summary)
    assert "✗ stop" in text
    assert "→ data.batch_size=6" in " ".join(text.split())
    assert text.rstrip().splitlines()[-2].strip("│ ") == "This cannot be trained (1 stop)"


def test_a_run_without_a_plan_still_shows_its_problems(tmp_path: Path) -> None:
    summary = dry_run(tmp_path, one_backend(tmp_path)).summary
    assert "This cannot be trained (1 stop)" in shown(summary)


def test_bars_and_reads() -> None:
    assert bar(1, 4).plain == "████"
    assert bar(0.5, 4).plain == "██"
    assert bar(1e-9, 4).plain == "▏"
    assert bar(0, 4).plain == ""
    assert reads(0, 0) == "-"
    assert (
        reads(2, 2048, "\N{LESS-THAN OR EQUAL TO}") == "2 reads, \N{LESS-THAN OR EQUAL TO}2.0 KiB"
    )
    assert reads(1, None) == "1 read"
