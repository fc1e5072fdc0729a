"""What the tests of whole runs share: a nursery of processes, and pictures made ready."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.ranks.nursery import Nursery, opened
from tests.scenarios.ranks.running import STEPS, run, steps
from tests.scenarios.training.building import data_module, write_folders


@pytest.fixture(scope="package")
def nursery() -> Iterator[Nursery]:
    with opened() as nursery:
        yield nursery


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders that are scanned and encoded."""
    folder = tmp_path_factory.mktemp("elastic")
    write_folders(folder)
    data = data_module(folder)
    data.prepare_data()
    data.close()
    return folder


@pytest.fixture(scope="package")
def straight(nursery: Nursery, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the steps of a run that is never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    ((status, child),) = run(nursery, root, folder, 1)
    assert status == 0, child.text
    found = steps(folder)
    assert sorted(found) == list(range(STEPS))
    return found
