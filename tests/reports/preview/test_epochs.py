"""Shares of epochs and of their parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.reports.preview.backend_counts import bucket_of
from factory.reports.preview.epochs import lay_out
from factory.reports.preview.mixture_problems import mixture_problems
from factory.reports.preview.summary import RunLimits
from factory.sampling.active_window import ActiveWindow
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan


def backend(name: str, *sizes: int, **settings: object) -> PlanBackend:
    offsets = np.cumsum([0, *sizes])
    names = tuple(f"{n}x{n}" for n in range(1, len(sizes) + 1))
    return PlanBackend(name, np.arange(offsets[-1]), offsets, names, **settings)  # type: ignore[arg-type]


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.sampled_from(["fill", "short"]),
)
@settings(deadline=None)
def test_an_epoch_agrees_with_the_plan_it_shows(
    sizes: list[list[int]], batch_size: int, mode: str
) -> None:
    backends = [backend(f"b{n}", *each) for n, each in enumerate(sizes)]
    plan = Plan(backends, batch_size=batch_size, seed=3, short_batch=mode)  # type: ignore[arg-type]
    epoch = lay_out(plan, RunLimits()).epochs[0]
    served = [plan.at(0, step) for step in range(plan.steps(0))]
    assert epoch.begins == tuple(step.backend for step in served[:200])
    for share, each in zip(epoch.shares, sizes, strict=True):
        mine = [step for step in served if step.backend == share.backend]
        assert share.batches == len(mine)
        assert share.samples == sum(len(step.rows) for step in mine)
        assert share.filled == sum(step.duplicates for step in mine)
        assert share.achieved == pytest.approx(len(mine) / len(served))
        buckets = [bucket_of("x", 1, 1, None, n, batch_size, mode) for n in each]
        assert sum(bucket.batches for bucket in buckets) == len(mine)
        assert sum(bucket.filled for bucket in buckets) == share.filled
        parts = [(s.last - s.first + 1) * s.achieved[share.backend] for s in epoch.stretches]
        assert sum(parts) == pytest.approx(len(mine))
    assert [s.first for s in epoch.stretches] == [1, *(s.last + 1 for s in epoch.stretches[:-1])]
    assert epoch.stretches[-1].last == epoch.steps


def test_parts_of_an_epoch_tell_shares_batches_and_samples() -> None:
    sources = [backend("a", 8), backend("b", 16, window=ActiveWindow(fade_to_step=9), batch_size=4)]
    plan = Plan(sources, batch_size=2, seed=1, epoch_steps=12)
    laid_out = lay_out(plan, RunLimits())
    epoch = laid_out.epochs[0]
    assert (laid_out.epoch_rule, laid_out.epoch_steps) == ("all_exhausted", 12)
    assert [(part.first, part.last) for part in epoch.stretches] == [(1, 9), (10, 12)]
    fall = [left / 9 / (1 + left / 9) for left in range(9, 0, -1)]
    first, last = epoch.stretches
    assert first.asked["b"] == pytest.approx(sum(fall) / 9)
    assert abs(first.batches["b"] - sum(fall)) < 1
    assert first.samples == {"a": first.batches["a"] * 2, "b": first.batches["b"] * 4}
    assert last.batches == {"a": 3, "b": 0}
    assert epoch.schedule == plan.schedule_hash(0)
    assert not any(
        problem.backend == "b" for problem in mixture_problems(plan, laid_out, RunLimits())
    )


def test_each_backends_own_batch_must_be_shared_by_the_ranks() -> None:
    plan = Plan([backend("a", 8), backend("b", 18, batch_size=6)], batch_size=4, seed=1)
    run = RunLimits(ranks=4)
    (problem,) = [p for p in mixture_problems(plan, lay_out(plan, run), run) if p.level == "stop"]
    assert problem.backend == "b"
    assert problem.fix == "data.backends.b.batch_size=8"


def test_what_a_dropped_batch_leaves_out() -> None:
    assert bucket_of("x", 1, 1, None, 11, 4, "drop").left_out == 3
    assert bucket_of("x", 1, 1, None, 11, 4, "drop").batches == 2
    assert bucket_of("x", 1, 1, 16, 11, 4, "fill").frames == 16


def test_epochs_in_which_a_window_opens_or_closes_are_shown() -> None:
    late = backend("late", 8, window=ActiveWindow(start_epoch=3))
    brief = backend("brief", 8, window=ActiveWindow(end_step=14))
    plan = Plan([backend("base", 16), late, brief], batch_size=2, seed=0)
    laid_out = lay_out(plan, RunLimits(max_epochs=5))
    assert [epoch.number for epoch in laid_out.epochs] == [1, 2, 3]
    assert [epoch.steps for epoch in laid_out.epochs] == [12, 9, 12]
    assert laid_out.epochs[2].first_step == 12 + 9 + 1
    shares = {share.backend: share for share in laid_out.epochs[2].shares}
    assert shares["late"].asked == pytest.approx(0.5)
    assert shares["brief"].asked == 0
    assert laid_out.run_steps == 12 + 9 + 3 * 12
    assert laid_out.run_epochs == 5


def test_epochs_after_the_end_of_the_run_are_not_shown() -> None:
    plan = Plan(
        [backend("base", 16), backend("late", 8, window=ActiveWindow(start_epoch=3))],
        batch_size=2, seed=0,
    )  # fmt: skip
    laid_out = lay_out(plan, RunLimits(max_steps=12))
    assert [epoch.number for epoch in laid_out.epochs] == [1]
    assert laid_out.run_epochs == 1.5
    assert lay_out(plan, RunLimits()).run_epochs is None


def test_the_shorter_limit_ends_the_run() -> None:
    plan = Plan([backend("base", 16)], batch_size=2, seed=0)
    assert lay_out(plan, RunLimits(max_steps=100, max_epochs=2)).run_steps == 16
    assert lay_out(plan, RunLimits(max_steps=4, max_epochs=2)).run_epochs == 0.5
