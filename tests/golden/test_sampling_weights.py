"""The weight of each backend when the next batch's backend is chosen."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.selection import Balanced, Random
from factory.sampling.strategies import AutoWeighting, MixtureEntry, UniformWeighting, Weighting

GOLDEN = "sampling_weights.json"
WEIGHTINGS: dict[str, Weighting] = {
    "uniform": UniformWeighting(),
    "auto-weighting": AutoWeighting(),
}
BOUNDS = ("start_epoch", "start_step", "end_epoch", "end_step")


def fade_of(values: dict[str, Any], sampling: str) -> int | None:
    """The last step of a fade; the golden files know none without auto-weighting."""
    fade = values.get("disable_after_epoch_step")
    if fade is None or sampling != "auto-weighting":
        return None
    if not isinstance(fade, int):
        with pytest.raises(PlanError, match=r"window\.fade_to_step must be a whole number"):
            ActiveWindow(fade_to_step=fade)
        return None  # junk means "not set" there, and is refused by name here
    return fade


def weights_of(case: dict[str, Any]) -> dict[str, float]:
    """The weight of every backend, 0 outside its window, as the plan makes it."""
    inputs = case["inputs"]
    entries, factors = [], []
    for name, values in inputs["datasets"].items():
        entries.append(MixtureEntry(name, values.get("probability", 1.0), values["size"]))
        bounds = {key: values[key] for key in BOUNDS if values.get(key) is not None}
        window = ActiveWindow(
            **bounds, fade_to_step=fade_of(values, inputs["data_backend_sampling"])
        )
        active = window.active(inputs["epoch"], inputs["step"])
        factors.append(window.factor(inputs["step"]) if active else 0.0)
    weights = WEIGHTINGS[inputs["data_backend_sampling"]].weights(entries) * factors
    return {entry.name: weight for entry, weight in zip(entries, weights.tolist(), strict=True)}


def test_sampling_weights(case: dict[str, Any]) -> None:
    inputs, expected = case["inputs"], case["expected"]
    if inputs["data_backend_sampling"] not in WEIGHTINGS:
        pytest.skip("sampling=roundrobin is no option, which Hydra refuses; nothing is weighed")
    weights = weights_of(case)
    assert weights == pytest.approx(expected["weights"])
    if "selection_probabilities" not in expected:
        assert not any(weights.values())
        return
    check_selection(weights, expected["selection_probabilities"])


def check_selection(weights: dict[str, float], probabilities: dict[str, float]) -> None:
    """Both selections must draw the active backends in the expected proportions."""
    drawn = [name for name, weight in weights.items() if weight > 0]
    assert set(drawn) == {name for name, probability in probabilities.items() if probability > 0}
    asked = np.array([probabilities[name] for name in drawn])
    active = np.array([weights[name] for name in drawn])
    nothing = np.zeros(len(drawn), dtype=np.int64)
    length = 10_000
    balanced = Balanced().choices(active, nothing, 0, length, 1)
    assert np.abs(np.bincount(balanced, minlength=len(drawn)) - asked * length).max() < 1
    draws = np.bincount(Random().choices(active, nothing, 0, length, 1), minlength=len(drawn))
    statistic = ((draws - asked * length) ** 2 / (asked * length)).sum()
    # One case in a million would be this far off by chance.
    assert len(drawn) == 1 or chi2.sf(statistic, len(drawn) - 1) > 1e-6
