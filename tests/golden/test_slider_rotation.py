"""Which backend serves each step where sliders take turns: positive, negative, neutral."""

from typing import Any

import pytest

from factory.errors import PlanError
from factory.sampling.plan import Plan
from factory.sampling.slider_groups import slider_groups
from tests.sampling.cases import backend, walk

GOLDEN = "slider_rotation.json"


def strength_of(value: Any) -> float | None:
    """A strength as a typed config reads it; junk, which is neutral there, is refused here."""
    try:
        return None if value is None else float(value)
    except ValueError:
        with pytest.raises(PlanError, match="slider_strength must be a number"):
            backend("junk", slider_strength=value)
        return None


def test_slider_rotation(case: dict[str, Any]) -> None:
    given, expected = case["inputs"]["backends"], case["expected"]
    strengths = {name: strength_of(each.get("slider_strength")) for name, each in given.items()}
    rotates = slider_groups(list(strengths.values())) is not None
    assert rotates is expected["rotation_active"]
    sources = [
        backend(name, (case["inputs"]["draws"],), slider_strength=strength)
        for name, strength in strengths.items()
    ]
    steps = walk(Plan(sources, batch_size=1, seed=1), 0)[: case["inputs"]["draws"]]
    assert [step.slider_strength for step in steps] == [strengths[step.backend] for step in steps]
    if expected["sequence"] is not None:
        assert [step.backend for step in steps] == expected["sequence"]
