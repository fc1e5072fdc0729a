"""Placeholders in a SimpleTuner config, filled in now and left to the start of a run."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from factory.config import schema
from factory.importers.simpletuner.variables import Variables, interpolate, substitute

GOLDEN = "variable_substitution.json"


def variables(case: dict[str, Any], entry: dict[str, Any]) -> Variables:
    environment = {name: text for name, text in case["inputs"]["env"].items() if text is not None}
    return Variables.of(entry, case["inputs"]["args"], environment)


def test_substitute(case: dict[str, Any]) -> None:
    config = case["inputs"]["config"]
    got = [substitute(entry, variables(case, entry)) for entry in config]
    assert got == case["expected"]["config"]


def test_interpolated_text_reads_the_same_in_a_run(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.register()
    for name, text in case["inputs"]["env"].items():
        monkeypatch.delenv(name, raising=False)
        if text is not None:
            monkeypatch.setenv(name, text)
    config = case["inputs"]["config"]
    written = [interpolate(entry, variables(case, entry)) for entry in config]
    read = OmegaConf.to_container(OmegaConf.create(written), resolve=True)
    assert read == case["expected"]["config"]
