"""Whole plans, by example."""

import pickle
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.mixture import Mixture
from factory.sampling.plan import Plan
from factory.sampling.selection import Random
from factory.sampling.strategies import AutoWeighting
from tests.sampling.cases import backend, facts, walk


def names(plan: Plan, epoch: int = 0) -> str:
    return "".join(step.backend for step in walk(plan, epoch))


def test_equal_weights_take_turns_until_one_runs_out() -> None:
    plan = Plan([backend("a", (4,)), backend("b", (8,))], batch_size=2, seed=1)
    assert names(plan) == "ababbb"
    assert [(s.first, s.active.tolist()) for s in plan.stretches(0)] == [(0, [0, 1]), (3, [1])]


def test_auto_weights_run_out_together() -> None:
    sources = [backend("a", (20,)), backend("b", (60,)), backend("c", (20,), repeats=1)]
    plan = Plan(sources, batch_size=2, seed=1, weighting=AutoWeighting())
    order = names(plan)
    assert Counter(order) == {"a": 10, "b": 30, "c": 20}
    assert {"a", "b", "c"} == set(order[-6:])


def test_probabilities_set_the_shares() -> None:
    sources = [backend("a", (1000,), probability=3), backend("b", (1000,), probability=1)]
    assert Counter(names(Plan(sources, batch_size=1, seed=1))[:1200]) == {"a": 900, "b": 300}


def test_probability_zero_never_serves_and_does_not_hold_the_epoch() -> None:
    sources = [backend("a", (8,)), backend("z", (8,), probability=0)]
    plan = Plan(sources, batch_size=2, seed=1)
    assert names(plan) == "aaaa"
    assert [account.batches for account in plan.accounting(0)] == [4, 0]


def test_steps_count_on_over_epochs() -> None:
    plan = Plan([backend("a", (8,))], batch_size=2, seed=1)
    assert [plan.at(2, step).global_step for step in range(4)] == [8, 9, 10, 11]
    assert [plan.position(step) for step in (0, 3, 4, 11)] == [(0, 0), (0, 3), (1, 0), (2, 3)]
    assert plan.steps(10**9) == 4
    assert plan.at(10**9, 3).global_step == 4 * 10**9 + 3


def test_a_window_by_step_opens_and_closes_at_the_optimizer_step() -> None:
    sources = [
        backend("a", (20,)),
        backend("b", (20,), window=ActiveWindow(start_step=4, end_step=7)),
    ]
    plan = Plan(sources, batch_size=2, seed=1)
    # Steps 4 to 7, counted from 1; b has given 2 of its 10 batches when its window closes.
    assert names(plan) == "aaaababaaaaa"
    assert [account.batches for account in plan.accounting(0)] == [10, 2]
    assert names(plan, 1) == "a" * 10


def test_a_window_by_epoch_lets_a_backend_in_and_out() -> None:
    sources = [
        backend("a", (4,)),
        backend("b", (4,), window=ActiveWindow(start_epoch=2, end_epoch=3)),
    ]
    plan = Plan(sources, batch_size=2, seed=1)
    assert [names(plan, epoch) for epoch in range(5)] == ["aa", "abab", "abab", "aa", "aa"]
    assert [plan.at(epoch, 0).global_step for epoch in range(5)] == [0, 2, 6, 10, 12]
    assert plan.position(9) == (2, 3)
    assert plan.position(10**6 + 10) == (3 + 5 * 10**5, 0)


def test_a_far_window_is_reached_without_walking_there() -> None:
    late = ActiveWindow(start_step=10**9 + 2, end_step=10**9 + 3)
    plan = Plan([backend("a", (4,)), backend("b", (4,), window=late)], batch_size=2, seed=1)
    epoch = 10**9 // 2
    assert names(plan, epoch - 1) == "aa"
    # b may serve steps 1000000002 and 1000000003, the second and third of this epoch.
    assert names(plan, epoch) == "aab"
    assert names(plan, epoch + 1) == "aa"


def test_a_window_that_opens_just_as_an_epoch_ends_makes_it_longer() -> None:
    sources = [backend("a", (4,)), backend("b", (4,), window=ActiveWindow(start_step=5))]
    plan = Plan(sources, batch_size=2, seed=1)
    assert [names(plan, epoch) for epoch in range(3)] == ["aa", "aabb", "abab"]


def test_an_epoch_without_anybody_is_an_error_that_names_the_windows() -> None:
    sources = [
        backend("a", (20,), window=ActiveWindow(end_step=15)),
        backend("b", (20,), window=ActiveWindow(start_step=100)),
    ]
    plan = Plan(sources, batch_size=2, seed=1)
    assert [plan.steps(0), plan.steps(1)] == [10, 5]
    with pytest.raises(PlanError, match=r"no backend is active in epoch 3.* step 16") as caught:
        plan.steps(2)
    assert "a: end_step=15; b: start_step=100" in str(caught.value)
    with pytest.raises(PlanError, match="no backend is active"):
        plan.position(15)
    assert plan.position(14) == (1, 4)


def test_steps_outside_the_epoch_are_refused() -> None:
    plan = Plan([backend("a", (8,))], batch_size=2, seed=1)
    for step in (-1, 4):
        with pytest.raises(PlanError, match=rf"epoch 1 has the steps 0 to 3, got {step}"):
            plan.at(1, step)
    with pytest.raises(PlanError, match="epochs count from 0"):
        plan.steps(-1)
    with pytest.raises(PlanError, match="global steps count from 0"):
        plan.position(-1)


def test_accounts_tell_rows_duplicates_and_shares() -> None:
    sources = [backend("a", (10, 3), repeats=1), backend("b", (7,))]
    (fill,) = [Plan(sources, batch_size=4, seed=1).accounting(0)]
    assert [(x.backend, x.batches, x.rows, x.duplicates, x.dropped) for x in fill] == [
        ("a", 8, 32, 6, 0), ("b", 2, 8, 1, 0),
    ]  # fmt: skip
    assert [x.achieved for x in fill] == [0.8, 0.2]
    # Half of the first 4 steps each, then a alone.
    assert [x.requested for x in fill] == [0.8, 0.2]
    drop = Plan(sources, batch_size=4, seed=1, short_batch="drop").accounting(0)
    assert [(x.rows, x.duplicates, x.dropped) for x in drop] == [(16, 0, 10), (4, 0, 3)]
    short = Plan(sources, batch_size=4, seed=1, short_batch="short").accounting(0)
    assert [(x.rows, x.duplicates, x.dropped) for x in short] == [(26, 0, 0), (7, 0, 0)]


def test_explain_says_why() -> None:
    sources = [
        backend("a", (8,), probability=3), backend("b", (8,)),
        backend("c", (8,), window=ActiveWindow(start_epoch=2)),
    ]  # fmt: skip
    plan = Plan(sources, batch_size=2, seed=1)
    why = plan.explain(0, 1)
    step = plan.at(0, 1)
    assert why["backend"] == step.backend == "a"
    assert why["rows"] == step.rows.tolist()
    assert why["bucket"] == "64x64"
    assert why["weights"] == {"a": 3.0, "b": 1.0, "c": 0.0}
    assert why["shares"] == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert why["counts"] == {"a": 1, "b": 0, "c": 0}
    assert why["owed"] == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert why["left"] == {"a": 3, "b": 4, "c": 4}
    assert why["windows"] == {"a": "always", "b": "always", "c": "start_epoch=2"}
    assert why["stretch_start"] == 0
    last = plan.explain(0, plan.steps(0) - 1)
    assert last["shares"] == {"a": 0.0, "b": 1.0, "c": 0.0}


def test_explaining_every_step_agrees_with_walking() -> None:
    sources = [backend("a", (40,), probability=0.7), backend("b", (25,)), backend("c", (9,))]
    plan = Plan(sources, batch_size=2, seed=1)
    given = Counter()
    for step in range(plan.steps(0)):
        why = plan.explain(0, step)
        first = plan.stretches(0)[[s.first for s in plan.stretches(0)].index(why["stretch_start"])]
        before = dict(zip("abc", first.counts.tolist(), strict=True))
        assert {name: given[name] - before[name] for name in "abc"} == why["counts"]
        assert all(-1 < debt < 2 for debt in why["owed"].values())
        given[why["backend"]] += 1


def test_random_selection_differs_by_epoch_and_is_repeatable() -> None:
    sources = [backend("a", (100,)), backend("b", (100,))]
    plan = Plan(sources, batch_size=2, seed=1, selection=Random())
    assert names(plan, 0) != names(plan, 1)
    assert names(plan, 0) == names(Plan(sources, batch_size=2, seed=1, selection=Random()), 0)
    assert names(plan, 0) != names(Plan(sources, batch_size=2, seed=2, selection=Random()), 0)
    assert Counter(names(plan, 0)) == {"a": 50, "b": 50}


@dataclass(frozen=True)
class LastFirst:
    """A selection from outside: the last active backend serves first."""

    seeded = False

    def choices(self, weights, counts, step, length, key):
        return np.full(length, len(weights) - 1)


@dataclass(frozen=True)
class Constant:
    """A weighting from outside."""

    value: tuple[float, ...]

    def weights(self, entries):
        return np.array(self.value)


def test_strategies_are_plugins() -> None:
    sources = [backend("a", (4,)), backend("b", (4,)), backend("c", (4,))]
    assert names(Plan(sources, batch_size=2, seed=1, selection=LastFirst())) == "ccbbaa"
    plan = Plan(sources, batch_size=2, seed=1, weighting=Constant((0, 1, 1)))
    assert names(plan) == "bcbc"


@pytest.mark.parametrize("value", [(1.0,), (1.0, -1.0), (1.0, float("nan"))])
def test_a_weighting_that_gives_nonsense_is_refused(value: tuple[float, ...]) -> None:
    with pytest.raises(PlanError, match="must give 2 weights of 0 or more"):
        Plan([backend("a"), backend("b")], batch_size=2, seed=1, weighting=Constant(value))


@dataclass(frozen=True)
class Chosen:
    """A selection from outside that gives what it is told to."""

    value: object
    seeded = False

    def choices(self, weights, counts, step, length, key):
        return np.full(length, self.value)


@pytest.mark.parametrize("value", [2, -1, 0.5])
@pytest.mark.parametrize("window", [ActiveWindow(), ActiveWindow(fade_to_step=9)])
def test_a_selection_that_gives_nonsense_is_refused(value: object, window: ActiveWindow) -> None:
    sources = [backend("a", window=window), backend("b")]
    plan = Plan(sources, batch_size=2, seed=1, selection=Chosen(value))
    with pytest.raises(PlanError, match=r"Chosen\(value=.*\) must choose one of 2 backends"):
        plan.at(0, 0)


@pytest.mark.parametrize("strategies", [{"selection": AutoWeighting()}, {"weighting": Random()},
                                        {"selection": Random}, {"weighting": "auto"}])  # fmt: skip
def test_a_strategy_of_the_wrong_kind_is_named(strategies: dict) -> None:
    [name] = strategies
    with pytest.raises(PlanError, match=rf"sampling.{name} must be an object with .*_target_ to"):
        Mixture(**strategies)


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ([], {}, "no backend to train on"),
        ([backend("a"), backend("b"), backend("a")], {}, "used twice: a"),
        (
            [backend("a", probability=0), backend("b", probability=0)],
            {},
            "all weights are zero.*a, b",
        ),
        ([backend("a")], {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ([backend("a", (3,))], {"short_batch": "drop"}, "'a': short_batch=drop leaves nothing"),
        ([backend("a", window=ActiveWindow(start_step=2))], {}, "active at the start"),
        (
            [backend("a", window=ActiveWindow(start_step=2)), backend("b", probability=0)],
            {},
            "active at the start.*a: start_step=2",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(sources: list, settings: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(sources, **({"batch_size": 4, "seed": 1} | settings))


def test_a_pickled_plan_goes_on_alike() -> None:
    sources = [backend("a", (40, 9)), backend("b", (30,), probability=0.3)]
    plan = Plan(sources, batch_size=4, seed=1, weighting=AutoWeighting(), short_batch="short")
    walked = [facts(step) for step in walk(plan, 1)]
    copy = pickle.loads(pickle.dumps(plan))
    assert [facts(step) for step in walk(copy, 1)] == walked
    assert copy.fingerprint == plan.fingerprint


def test_threads_may_ask_at_once() -> None:
    sources = [backend("a", (60_000,), probability=0.517), backend("b", (90_000,), batch_size=3)]
    sources.append(replace(backend("c", (500,)), window=ActiveWindow(end_step=30_000)))
    reference = Plan(sources, batch_size=1, seed=1)
    asked = [(epoch, step) for epoch in (2, 0, 1) for step in (70_000, 3, 40_000, 20_001, 89_000)]
    expected = [facts(reference.at(*place)) for place in asked]
    plan = Plan(sources, batch_size=1, seed=1)
    found: dict[int, list] = {}

    def ask(number: int) -> None:
        turned = asked[number:] + asked[:number]
        answers = [facts(plan.at(*place)) for place in turned]
        cut = len(asked) - number
        found[number] = answers[cut:] + answers[:cut]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == expected for number in range(6))


def test_the_floor_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys, factory.sampling.mixture, factory.sampling.evaluation; "
        "print(sorted({'torch', 'hydra', 'omegaconf', 'pandas', 'lightning'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
