"""A damaged picture is read or refused with an error of ours; no process ends of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.pictures import FORMATS

NAMES = [f"tests.fuzz.pictures:{name}" for name in FORMATS]


def test_some_damaged_pictures_of_every_format(tmp_path: Path) -> None:
    reports = fuzz(NAMES, 20, tmp_path)
    assert {name: report.failures for name, report in reports.items() if report.failures} == {}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_pictures(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = fuzz([name], 3000, tmp_path)[name]
    record_property("counts", dict(report.counts))
    assert report.failures == []
