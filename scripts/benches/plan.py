"""How long does the plan of N rows take: until it is ready, any step, and one step after another?

Five backends of unequal probability, each with 50 unequal buckets, in arrays as decisions give
them (memory-mapped files with --directory). Ready means that every step of the first epoch can
be asked for; the fingerprint reads every row once, and is told apart.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches import RUNS, Line, Quick, in_turn
from benches.decide import private_mb

PROBABILITIES = (1.0, 0.7, 0.55, 0.31, 0.2)
BUCKETS = 50
# Enough steps for a 99th percentile, and for a steady rate.
RANDOM_STEPS, STEPS_IN_ORDER = 5_000, 50_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add how many rows, and how often."""
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of a global batch")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs; medians are given")
    parser.add_argument("--directory", type=Path, help="put the row ids in files there, mapped")


def run(options: argparse.Namespace) -> Iterator[Line]:
    """Lay out plans, ask for steps, and tell time and memory."""
    from factory.sampling.plan import Plan

    sources = backends(options.rows // len(PROBABILITIES), options.directory)
    conditions = {"rows": options.rows, "batch_size": options.batch_size, "buckets": BUCKETS}
    before, built, ready = private_mb(), [], []
    for _ in range(options.runs):
        start = time.perf_counter()
        plan = Plan(sources, batch_size=options.batch_size, seed=1)
        built.append(time.perf_counter() - start)
        plan.prepare(0)
        plan.at(0, plan.steps(0) - 1)
        ready.append(time.perf_counter() - start)
    yield "constructor", statistics.median(built), "s", conditions
    yield "ready", statistics.median(ready), "s", {**conditions, "target": "< 2 for 100 million"}
    steps = plan.steps(0)
    yield "steps of an epoch", steps, "steps", conditions
    yield from at_random(plan, steps, conditions)
    yield from in_order(plan, steps, conditions)
    held = private_mb() - before
    yield "private memory", held, "MiB", {**conditions, "target": "< 1000", "rows themselves": 0}
    start = time.perf_counter()
    _ = plan.fingerprint
    yield "fingerprint", time.perf_counter() - start, "s", conditions


def quick(scratch: Path, *, short: bool) -> Iterator[Quick]:
    """Yield a plan's steps in order, and laying plans out, beside bare gathers of row ids."""
    import numpy as np

    from factory.sampling.plan import Plan

    del scratch, short
    rows, batch_size = 500_000, 16
    sources = backends(rows // len(PROBABILITIES), None)
    order = np.random.default_rng(1).permutation(rows).astype(np.uint32)
    plan = Plan(sources, batch_size=batch_size, seed=1)
    steps = range(min(5000, plan.steps(0)))

    def lay_out() -> None:
        """Make plans of which every step of the first epoch can be asked for."""
        for _ in range(10):  # one alone is too short to be compared
            made = Plan(sources, batch_size=batch_size, seed=1)
            made.prepare(0)
            made.at(0, made.steps(0) - 1)

    def gather() -> None:
        """Choose as many rows of each step from an order that is shuffled already."""
        for step in steps:
            places = (np.arange(batch_size) + batch_size * step) % rows
            order.take(order.take(places))

    yield Quick("plan", in_turn(gather, lambda: [plan.at(0, step) for step in steps]))
    yield Quick("plan_ready", in_turn(gather, lay_out))


def at_random(plan: Any, steps: int, conditions: dict[str, Any]) -> Iterator[Line]:
    """Tell how long any step takes."""
    import numpy as np

    times, clock = [], []
    for step in np.random.default_rng(1).integers(0, steps, RANDOM_STEPS).tolist():
        start, used = time.perf_counter(), time.thread_time()
        plan.at(0, step)
        times.append((time.perf_counter() - start) * 1000)
        clock.append((time.thread_time() - used) * 1000)
    conditions = {**conditions, "steps asked": len(times), "target": "< 1"}
    yield "random step, median", statistics.median(times), "ms", conditions
    yield "random step, 99th percentile", float(np.percentile(times, 99)), "ms", conditions
    # Where others share the cores, what is waited for them is no part of the step.
    yield "the same, processor time", float(np.percentile(clock, 99)), "ms", conditions


def in_order(plan: Any, steps: int, conditions: dict[str, Any]) -> Iterator[Line]:
    """Tell how many steps a second come one after another, in the middle of the epoch."""
    count = min(STEPS_IN_ORDER, steps // 2)
    start = time.perf_counter()
    for step in range(steps // 2, steps // 2 + count):
        plan.at(0, step)
    rate = count / (time.perf_counter() - start)
    yield "steps in order", rate, "steps/s", {**conditions, "target": "> 20000"}


def backends(rows: int, directory: Path | None) -> list[Any]:
    """Return five backends of so many rows; they share one array of row ids."""
    import numpy as np

    from factory.sampling.passes import PlanBackend

    # As decisions keep row ids; sorted by bucket, so that gathering jumps about as in a run.
    order = np.random.default_rng(1).permutation(rows).astype(np.uint32)
    if directory is not None:
        np.save(directory / "order.npy", order)
        order = np.load(directory / "order.npy", mmap_mode="r")
    offsets = (np.linspace(0, 1, BUCKETS + 1) ** 1.5 * rows).astype(np.int64)
    names = tuple(f"{64 + 8 * number}x64" for number in range(BUCKETS))
    return [
        PlanBackend(f"b{number}", order, offsets, names, probability=probability)
        for number, probability in enumerate(PROBABILITIES)
    ]
