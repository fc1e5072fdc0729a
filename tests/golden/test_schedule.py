"""When a backend takes part, and which windows leave the start of training empty.

Values that are no whole number, or are below the first epoch or step, mean "not set" in the
golden files. Here they are refused by name, so for those cases the refusal is what is tested.
"""

import re
from typing import Any

import pytest

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow, check_windows

GOLDEN = "schedule.json"
BOUNDS = ("start_epoch", "start_step", "end_epoch", "end_step")
# The kinds of backend the mixture draws from; the others have no place in it.
TRAINED = ("image", "video", "audio")


def bounds_of(config: dict[str, Any]) -> dict[str, Any]:
    """The bounds of an entry, with digits read as a typed config reads them."""
    given = {key: config[key] for key in BOUNDS if config.get(key) is not None}
    return {
        key: int(value) if isinstance(value, str) and value.isdigit() else value
        for key, value in given.items()
    }


def refused(bounds: dict[str, Any]) -> str | None:
    """The first bound that cannot be meant."""
    least = {"start_epoch": 1, "start_step": 0, "end_epoch": 1, "end_step": 1}
    for key, value in bounds.items():
        if not isinstance(value, int) or value < least[key]:
            return key
    return None


def check_active(bounds: dict[str, Any], inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    window = ActiveWindow(**bounds)
    assert window.active(inputs["epoch"], inputs["step_hint"]) is expected["active"]
    assert {key: getattr(window, key) for key in BOUNDS} == {key: expected[key] for key in BOUNDS}


def check_entries(entries: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    def build() -> None:
        trained = [entry for entry in entries if entry.get("dataset_type", "image") in TRAINED]
        check_windows({entry["id"]: ActiveWindow(**bounds_of(entry)) for entry in trained})

    if expected["ok"]:
        build()
        return
    with pytest.raises(PlanError) as caught:
        build()
    if found := re.match(
        r"\(id=.*\) (\w+) \((\d+)\) must be >= (\w+) \((\d+)\)", expected["message"]
    ):
        end, end_value, start, start_value = found.groups()
        assert f"window.{end} {end_value} comes before {start} {start_value}" in str(caught.value)
    elif expected["message"].startswith("At least one"):
        assert "active at the start of training" in str(caught.value)


def test_schedule(case: dict[str, Any]) -> None:
    config, expected = case["inputs"]["config"], case["expected"]
    entries = config if isinstance(config, list) else [config]
    for bounds in map(bounds_of, entries):
        if wrong := refused(bounds):
            with pytest.raises(PlanError, match=rf"window\.{wrong} must be"):
                ActiveWindow(**bounds)
            return
    if case["kind"] == "active":
        check_active(bounds_of(config), case["inputs"], expected)
    else:
        assert case["kind"] == "windows"
        check_entries(config, expected)
