"""Dry runs of small folders, and a browser to look at their pages with."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from factory import FactoryDataModule, ImageBackend, Workspace
from factory.catalog.captions.sources import FilenameCaptions
from factory.reports.preview.dry_run import DryRun, preview_run
from factory.reports.preview.summary import Problem, RunLimits, Summary
from factory.storage.local import LocalStorage
from tests.support.pictures import write_pictures

CHROMIUM = shutil.which("chromium")


def one_backend(root: Path, *, folder: str = "a", **settings: Any) -> ImageBackend:
    """Return a backend on a folder below `root`, of targets of 64x64 px in area."""
    given = {
        "name": "a", "prefix": folder, "storage": LocalStorage(str(root)), "resolution": 64,
        "alignment": 16, "caption": FilenameCaptions(),
    }  # fmt: skip
    return ImageBackend(**{**given, **settings})


def module(root: Path, *backends: Any, **settings: Any) -> FactoryDataModule:
    """Return a data module that keeps its cache below `root`."""
    settings.setdefault("cache", Workspace(LocalStorage(str(root))))
    settings.setdefault("batch_size", 4)
    return FactoryDataModule(backends, **settings)


def dry_run(root: Path, *backends: Any, run: RunLimits | None = None, **settings: Any) -> DryRun:
    """Rehearse a run of some backends."""
    return preview_run(module(root, *backends, **settings), run)


def write(root: Path, counts: dict[str, int]) -> None:
    """Write a folder of square pictures for each name."""
    for place, (name, count) in enumerate(counts.items()):
        write_pictures(root / name, count, sizes=[(80, 80)], first=100 * place)


def problems(summary: Summary, words: str) -> list[Problem]:
    """Return the problems whose text holds some words."""
    return [problem for problem in summary.problems if words in problem.text]


def browse(page: Path, fragment: str, profile: Path) -> tuple[str, str]:
    """Open a page in a browser; return its document, and what it says on the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}",
            "--dump-dom", f"{page.as_uri()}{fragment}",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, "\n".join(console)
