"""Telling plans apart."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from factory.sampling.active_window import ActiveWindow
from factory.sampling.fingerprint import describe_strategy, difference, hash_rows
from factory.sampling.mixture import Mixture
from factory.sampling.plan import Plan
from factory.sampling.selection import Balanced, Random
from factory.sampling.strategies import AutoWeighting
from tests.sampling.cases import backend

TWO = [backend("a", (10, 6)), backend("b", (8,), repeats=1)]
WEIGHTS, SELECTION = "factory.sampling.weights", "factory.sampling.selection"
BATCH_SIZES = ("backends.a.batch_size", "backends.b.batch_size", "batch_size")
BASE = Plan(TWO, batch_size=4, seed=1)


def changed(**settings) -> Plan:
    return Plan(TWO, **({"batch_size": 4, "seed": 1} | settings))


def swapped(**fields) -> Plan:
    return Plan([TWO[0], replace(TWO[1], **fields)], batch_size=4, seed=1)


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (changed(seed=2), ["seed: 1 -> 2"]),
        (changed(short_batch="drop"), ["short_batch: 'fill' -> 'drop'"]),
        (
            changed(batch_size=2),
            [f"{key}: 4 -> 2" for key in BATCH_SIZES],
        ),
        (
            changed(weighting=AutoWeighting()),
            [f"weighting.class: '{WEIGHTS}.UniformWeighting' -> '{WEIGHTS}.AutoWeighting'"],
        ),
        (
            changed(selection=Random()),
            [f"selection.class: '{SELECTION}.Balanced' -> '{SELECTION}.Random'"],
        ),
        (swapped(probability=0.5), ["backends.b.probability: 1.0 -> 0.5"]),
        (swapped(repeats=2), ["backends.b.repeats: 1 -> 2"]),
        (swapped(batch_size=3), ["backends.b.batch_size: 4 -> 3"]),
        (swapped(identity="scan 2"), ["backends.b.identity: '' -> 'scan 2'"]),
        (swapped(window=ActiveWindow(end_step=9)), ["backends.b.window.end_step: None -> 9"]),
        (swapped(buckets=("96x96",)), ["backends.b.buckets.64x64: 8 -> (removed)",
                                       "backends.b.buckets.96x96: (absent) -> 8"]),
    ],
)  # fmt: skip
def test_every_setting_shows_in_fingerprint_and_difference(other: Plan, lines: list[str]) -> None:
    assert other.fingerprint != BASE.fingerprint
    assert difference(BASE.describe(), other.describe()) == lines


def test_the_order_of_rows_and_of_backends_counts() -> None:
    rows = swapped(order=TWO[1].order[::-1])
    assert [line.split(":")[0] for line in difference(BASE.describe(), rows.describe())] == [
        "backends.b.rows"
    ]
    turned = Plan(TWO[::-1], batch_size=4, seed=1)
    assert difference(BASE.describe(), turned.describe()) == [
        "backend_order: ['a', 'b'] -> ['b', 'a']"
    ]


def test_equal_plans_have_equal_fingerprints_also_through_json() -> None:
    again = Plan([replace(each) for each in TWO], batch_size=4, seed=1)
    assert again.fingerprint == BASE.fingerprint
    stored = json.loads(json.dumps(BASE.describe()))
    assert difference(stored, BASE.describe()) == []
    assert Mixture().plan(TWO, batch_size=4, seed=1).fingerprint == BASE.fingerprint


def test_rows_are_hashed_by_value_not_by_layout() -> None:
    rows = np.arange(3_000_000)
    assert hash_rows(rows) == hash_rows(np.repeat(rows, 2)[::2])
    assert hash_rows(rows[:100]) == hash_rows(rows[:100].astype(np.int32))
    assert hash_rows(rows) != hash_rows(rows[:-1])


def test_settings_of_a_strategy_are_described() -> None:
    @dataclass(frozen=True)
    class Tempered(Balanced):
        temperature: float = 0.5

    assert describe_strategy(Tempered())["temperature"] == 0.5
    assert describe_strategy(Balanced()) == {"class": "factory.sampling.selection.Balanced"}


def test_settings_of_a_strategy_that_is_no_dataclass_are_described() -> None:
    class Tempered:
        def __init__(self, temperature: float) -> None:
            self.temperature, self._memo = temperature, {}

    assert describe_strategy(Tempered(0.5))["temperature"] == 0.5
    assert describe_strategy(Tempered(0.5)) != describe_strategy(Tempered(0.7))
    assert "_memo" not in describe_strategy(Tempered(0.5))


def test_windows_that_mean_the_same_have_one_fingerprint() -> None:
    one, two = (
        swapped(window=ActiveWindow(start_step=first, fade_from_step=first, fade_to_step=9))
        for first in (0, 1)
    )
    assert one.fingerprint == two.fingerprint
    assert swapped(window=ActiveWindow(start_step=2)).fingerprint != BASE.fingerprint


def test_only_fixed_epochs_are_of_another_order() -> None:
    assert changed().describe()["order_version"] == 1
    assert changed(epoch_steps=9).describe()["order_version"] == 2


def test_a_mixture_carries_its_settings_into_the_plan() -> None:
    mixture = Mixture(AutoWeighting(), Random(), "short")
    plan = mixture.plan(TWO, batch_size=4, seed=3)
    assert (plan.weighting, plan.selection, plan.short_batch) == (
        AutoWeighting(),
        Random(),
        "short",
    )
    assert mixture == Mixture(AutoWeighting(), Random(), "short")
