"""Configs that SimpleTuner accepts or refuses, with the reason.

Where upstream accepts what it cannot use, the case says what a better system does.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from factory.importers.simpletuner.convert import convert
from factory.importers.simpletuner.problem import CATEGORIES, ImportRefusedError

GOLDEN = "config_validation.json"


def placed(inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    text = json.dumps(inputs)
    for mark in ("{EXISTING_DIR}", "<dir>"):
        text = text.replace(mark, str(folder))
    result: dict[str, Any] = json.loads(text)
    return result


def test_verdict(case: dict[str, Any], tmp_path: Path) -> None:
    inputs = placed(case["inputs"], tmp_path)
    expected = case.get("recommended", case["expected"])
    if expected["accept"]:
        assert convert(inputs["config"], inputs.get("args")).datasets
        return
    assert expected["reason_category"] in CATEGORIES
    with pytest.raises(ImportRefusedError) as caught:
        convert(inputs["config"], inputs.get("args"))
    assert {problem.category for problem in caught.value.found} == {expected["reason_category"]}
