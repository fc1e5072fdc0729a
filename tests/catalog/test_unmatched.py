"""Patterns and labels that mean no sample are told after the scan."""

import logging
from pathlib import Path

import pytest

from factory import ImageBackend
from factory.backends.prepared import PreparedBackend
from factory.catalog.scan.discovery import Discovery
from factory.registry.prepare import unmet_sizes
from factory.storage.local import LocalStorage
from tests.catalog.fakes import ENGINE
from tests.support.pictures import write_pictures


def scanned(root: Path, metadata: Discovery, **settings: object) -> PreparedBackend:
    backend = ImageBackend(
        name="photos", prefix="photos", storage=LocalStorage(str(root)), metadata=metadata,
        resolution=64, alignment=16, **settings,
    )  # fmt: skip
    return PreparedBackend(backend, backend.catalog(backend.scan(None, ENGINE), 0))


def test_patterns_that_mean_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path / "photos", 3)
    with caplog.at_level(logging.WARNING, logger="factory"):
        scanned(tmp_path, Discovery(include=["*.png", "*.jpg", "*.jpgg"], exclude=["raw/**"]))
    told = [record.getMessage() for record in caplog.records]
    assert any("'*.jpgg' of metadata.include matches none of" in line for line in told)
    assert any("'raw/**' of metadata.exclude matches none of" in line for line in told)


def test_labels_that_no_sample_has(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 3)
    source = scanned(tmp_path, Discovery())
    (bucket, *_) = source.catalog.decisions.buckets
    there = f"{bucket.width / bucket.height:.2f}"
    forced = scanned(tmp_path, Discovery(), aspect_sizes={there: [96, 80], "7.5": [480, 64]})
    (line,) = unmet_sizes([forced])
    assert "label 7.5, which no sample of photos has" in line
