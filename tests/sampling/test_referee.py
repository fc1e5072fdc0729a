"""Every rule at once, against a referee who plays step by step and keeps everything."""

import pickle
import threading
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.exclusion import Excluded
from factory.sampling.passes import PlanBackend
from factory.sampling.permutation import Permutation, derive_key
from factory.sampling.plan import Plan, PlanStep
from factory.sampling.selection import Balanced, Random, whole_shares
from factory.sampling.strategies import AutoWeighting, UniformWeighting
from tests.sampling.cases import backend, backends, facts, walk
from tests.sampling.test_plan import LastFirst
from tests.support.examples import examples

EPOCHS = 4
RULES = st.sampled_from(
    [{}, {"epoch": "first_exhausted"}, {"epoch": "cycle"}]
) | st.integers(1, 40).map(lambda steps: {"epoch_steps": steps})  # fmt: skip


@st.composite
def mixtures(draw) -> tuple[list[PlanBackend], dict[str, Excluded]]:
    """Backends of every kind, and what is excluded of them; some of each bucket is spared."""
    listed, excluded = [], {}
    for number, each in enumerate(draw(backends(with_windows=True))):
        window = each.window
        if number and draw(st.booleans()):
            fade = max(window.start_step, 1) + draw(st.integers(0, 12))
            window = ActiveWindow(
                window.start_epoch, window.start_step, window.end_epoch, window.end_step,
                fade, fade + draw(st.integers(0, 25)),
            )  # fmt: skip
        strength = draw(st.sampled_from([None, None, None, 0.0, 1.0, -2.0]))
        listed.append(PlanBackend(**vars(each) | {"window": window, "slider_strength": strength}))
        spared = {int(each.order[at]) for at in each.offsets[:-1] if at < len(each.order)}
        rows = sorted(set(each.order.tolist()) - spared)
        if rows and draw(st.booleans()):
            chosen = draw(st.lists(st.sampled_from(rows), unique=True, max_size=6))
            excluded[each.name] = Excluded({row: draw(st.integers(0, 30)) for row in chosen})
    return listed, {name: each for name, each in excluded.items() if each.steps}


def batches_of_a_pass(each: PlanBackend, size: int, short: str, seed: int, epoch: int, at: int):
    """All batches of a pass in order, as (bucket, rows, duplicates), by lists alone."""
    made = []
    for number, bucket in enumerate(each.buckets):
        rows = each.order[each.offsets[number] : each.offsets[number + 1]].tolist()
        key = derive_key(seed, epoch, each.name, at, "rows", bucket)
        shuffled = [rows[Permutation(len(rows), key)[index]] for index in range(len(rows))]
        for first in range(0, len(rows), size):
            part = shuffled[first : first + size]
            missing = size - len(part)
            if missing and short == "drop":
                continue
            if missing and short == "fill":
                part += (shuffled * size)[:missing]
            made.append((bucket, part, missing if short == "fill" else 0))
    key = derive_key(seed, epoch, each.name, at, "batches")
    return [made[Permutation(len(made), key)[index]] for index in range(len(made))]


class Referee:
    """Checks the steps of a plan in order; knows its settings, and nothing of how it works."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sources = plan, plan.backends
        self.fixed = plan.ending.steps
        self.sizes = [each.batch_size or plan.batch_size for each in self.sources]
        self.passes: dict[tuple[int, int, int], list] = {}
        self.quotas = [
            (each.repeats + 1) * len(self.batches(index, 0, 0))
            for index, each in enumerate(self.sources)
        ]
        signs = [np.sign(each.slider_strength or 0) for each in self.sources]
        self.groups = [{1: 0, -1: 1, 0: 2}[int(sign)] if any(signs) else 0 for sign in signs]
        self.ever, self.clock = Counter(), 0
        self.active: list[int] = []
        self.since: Counter = Counter()

    def batches(self, index: int, epoch: int, at: int) -> list:
        key = (index, epoch, at)
        if key not in self.passes:
            self.passes[key] = batches_of_a_pass(
                self.sources[index], self.sizes[index], self.plan.short_batch, self.plan.seed,
                epoch, at,
            )  # fmt: skip
        return self.passes[key]

    def serving(self, epoch: int, step: int, counts: Counter) -> list[int]:
        able = [
            index for index, each in enumerate(self.sources)
            if self.plan.weights[index] > 0 and each.window.active(epoch + 1, self.clock)
        ]  # fmt: skip
        done = [index for index, quota in enumerate(self.quotas) if counts[index] >= quota]
        if self.fixed is not None:
            return able if step < self.fixed else []
        if self.plan.ending.rule == "first_exhausted":
            return [] if done else able
        left = [index for index in able if index not in done]
        return able if self.plan.ending.rule == "cycle" and left else left

    def fades(self, index: int) -> bool:
        fade = self.sources[index].window.fade
        return fade is not None and fade[0] <= self.clock

    def choice(self, serving: list[int], turn: int) -> list[int]:
        """Who may serve: whom Tijdeman's rule names of the group whose turn it is."""
        present = sorted({self.groups[index] for index in serving})
        group = present[turn % len(present)]
        members = [index for index in serving if self.groups[index] == group]
        falls = any(map(self.fades, serving))
        if falls or self.active != serving:
            # A fade is judged by what it sums to, in tests of its own.
            self.active, self.since = [] if falls else serving, Counter()
        if falls or not isinstance(self.plan.selection, Balanced) or len(members) == 1:
            return members
        shares = whole_shares([float(self.plan.weights[index]) for index in members])
        done = sum(self.since[index] for index in members) + 1
        least = Fraction(1, 2 * len(members) - 2)
        best = []
        for index, share in zip(members, shares, strict=True):
            asked = Fraction(share, sum(shares))
            owed = asked * done - self.since[index]
            if owed >= least:
                best.append(((1 - least - owed) / asked, index))
        return [min(best)[1]]

    def epoch(self, epoch: int) -> list[PlanStep]:
        """Check an epoch; returns its steps."""
        counts: Counter = Counter()
        found, step = [], 0
        if self.fixed is None:
            self.active = []  # a balance of its own
        while serving := self.serving(epoch, step, counts):
            planned = self.plan.at(epoch, step)
            index = next(i for i, s in enumerate(self.sources) if s.name == planned.backend)
            assert index in self.choice(serving, step if self.fixed is None else self.clock)
            assert (planned.global_step, planned.number) == (self.clock, counts[index])
            self.rows(planned, index, counts)
            self.since[index] += 1
            counts[index] += 1
            self.ever[index] += 1
            self.clock += 1
            step += 1
            found.append(planned)
        return found

    def rows(self, planned: PlanStep, index: int, counts: Counter) -> None:
        per_pass = len(self.batches(index, 0, 0))
        first, number = planned.epoch, counts[index]
        if self.fixed is not None:  # passes go on over the ends of epochs
            first, number = 0, self.ever[index]
        at, place = divmod(number, per_pass)
        bucket, rows, duplicates = self.batches(index, first, at)[place]
        known = self.plan.exclude.get(planned.backend, Excluded({})).steps
        barred = {row for row, since in known.items() if since <= self.clock}
        assert (planned.bucket, planned.duplicates, planned.pass_index) == (bucket, duplicates, at)
        assert planned.barred == barred
        mine = set(self.sources[index].order.tolist()) - barred
        for now, before in zip(planned.rows.tolist(), rows, strict=True):
            assert now in mine if before in barred else now == before
        assert [(s.place, s.row) for s in planned.excluded] == [
            (place, row) for place, row in enumerate(rows) if row in barred
        ]


@settings(max_examples=examples(100), deadline=None)
@given(
    mixtures(), RULES, st.integers(1, 6), st.integers(0, 2**66),
    st.sampled_from(["fill", "short", "drop"]), st.sampled_from([Balanced(), Random()]),
    st.sampled_from([UniformWeighting(), AutoWeighting()]), st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_step_is_as_the_rules_say(
    mixture, rule, batch_size, seed, short, selection, weighting, shuffler
) -> None:
    sources, excluded = mixture
    given_ = {
        "batch_size": batch_size, "seed": seed, "short_batch": short, "selection": selection,
        "weighting": weighting, "exclude": excluded, **rule,
    }  # fmt: skip
    try:
        plan = Plan(sources, **given_)
    except PlanError as error:
        assert "short_batch=drop leaves nothing" in str(error)
        return
    referee, played = Referee(plan), []
    for epoch in range(EPOCHS):
        steps = referee.epoch(epoch)
        if not steps:
            with pytest.raises(PlanError, match=f"no backend is active in epoch {epoch + 1}"):
                plan.steps(epoch)
            break
        assert plan.steps(epoch) == len(steps)
        played += steps
    asked = list(played)
    shuffler.shuffle(asked)
    other = pickle.loads(pickle.dumps(Plan(sources, **given_)))
    for step in asked:
        assert other.position(step.global_step) == (step.epoch, step.step)
        assert facts(other.at(step.epoch, step.step)) == facts(step)


@settings(max_examples=examples(50), deadline=None)
@given(
    backends(), st.integers(1, 30), st.sampled_from([UniformWeighting(), AutoWeighting()]),
    st.integers(0, 3),
)  # fmt: skip
def test_shares_hold_over_the_ends_of_fixed_epochs(sources, steps, weighting, late) -> None:
    late_one = backend("late", (9,), first=9000, window=ActiveWindow(start_step=late * 7))
    plan = Plan(
        [*sources, late_one], batch_size=2, seed=1, weighting=weighting, epoch_steps=steps
    )  # fmt: skip
    played = [step.backend for epoch in range(1 + 90 // steps) for step in walk(plan, epoch)]
    since = max(late * 7 - 1, 0)
    for active, part in (([*sources], played[:since]), ([*sources, late_one], played[since:])):
        weights = dict(zip([s.name for s in plan.backends], plan.weights.tolist(), strict=True))
        total = sum(weights[each.name] for each in active)
        for each in active if part else ():
            mine = np.cumsum([name == each.name for name in part])
            asked = weights[each.name] / total * np.arange(1, len(part) + 1)
            assert np.abs(mine - asked).max() < 1


def test_a_small_backend_comes_however_short_epochs_are() -> None:
    sources = [backend("a", (40,)), backend("b", (40,), probability=0.1)]
    plan = Plan(sources, batch_size=2, seed=1, epoch_steps=4)
    given_ = Counter(step.backend for epoch in range(11) for step in walk(plan, epoch))
    assert given_ == {"a": 40, "b": 4}
    turns = [backend(n, (9,), slider_strength=s) for n, s in (("p", 1.0), ("n", -1.0), ("z", 0.0))]
    plan = Plan(turns, batch_size=2, seed=1, epoch_steps=2)
    assert "".join(s.backend for epoch in range(3) for s in walk(plan, epoch)) == "pnzpnz"


@pytest.mark.parametrize("selection", [Balanced(), LastFirst()])
@pytest.mark.parametrize("strengths", [(None, None, None), (1.0, -1.0, 1.0)])
def test_far_epochs_are_reached_as_if_walked_to(selection, strengths) -> None:
    sources = [
        backend(name, (33,), first=100 * number, probability=probability, slider_strength=strength)
        for number, (name, probability, strength) in enumerate(
            zip("abc", (1.0, 0.3, 0.7), strengths, strict=True)
        )
    ]  # fmt: skip
    sources.append(backend("d", (20,), first=500, window=ActiveWindow(start_step=40, end_step=300)))
    given_ = {"batch_size": 2, "seed": 1, "selection": selection, "epoch_steps": 7}
    plan, other = Plan(sources, **given_), Plan(sources, **given_)
    forth = [facts(step) for epoch in range(150) for step in walk(plan, epoch)]
    for number in (1049, 3, 600, 299, 300, 301, 39, 1000, 0):
        assert facts(other.at(*other.position(number))) == forth[number]


def test_the_farthest_epoch_of_a_balanced_run_is_counted_not_played() -> None:
    sources = [backend("a", (33,)), backend("b", (33,), probability=0.3)]
    plan = Plan(sources, batch_size=2, seed=1, epoch_steps=7)
    # Of 13 steps a has 10; each backend is within one batch of that, 7 billion steps on.
    before = [plan.at(10**9, step) for step in range(7)]
    number = next(step for step in before if step.backend == "a")
    whole = number.pass_index * 17 + next(
        at for at, (_, rows, _) in enumerate(
            batches_of_a_pass(sources[0], 2, "fill", 1, 0, number.pass_index)
        ) if rows == number.rows.tolist()
    )  # fmt: skip
    assert abs(whole - Fraction(10, 13) * number.global_step) < 1


def test_threads_ask_at_once_for_epochs_that_go_on() -> None:
    sources = [backend("a", (50,), probability=0.517), backend("b", (90,))]
    given_ = {"batch_size": 1, "seed": 1, "epoch_steps": 13}
    reference = Plan(sources, **given_)
    asked = [(epoch, step) for epoch in range(60) for step in (0, 7, 12)]
    expected = {place: facts(reference.at(*place)) for place in asked}
    plan, wrong = Plan(sources, **given_), []

    def ask(number: int) -> None:
        turned = asked[number * 20 :] + asked[: number * 20]
        wrong.extend(place for place in turned if facts(plan.at(*place)) != expected[place])
        done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(8))
    assert not wrong
