"""Turns each case of a golden file into a test of its own.

A test module names its file in `GOLDEN`; its tests take the argument `case`.
"""

import json
from pathlib import Path

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that take `case` one case of the module's file each."""
    if "case" not in metafunc.fixturenames:
        return
    folder: Path = metafunc.config.getoption("golden_dir")
    file = folder / metafunc.module.GOLDEN
    if not file.exists():
        absent = pytest.mark.skip(reason=f"no {file.name} in the golden folder")
        metafunc.parametrize("case", [pytest.param(None, marks=absent, id=file.stem)])
        return
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    metafunc.parametrize("case", cases, ids=[case["id"] for case in cases])
