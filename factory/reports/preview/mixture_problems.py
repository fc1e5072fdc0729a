"""Problems of the mixture, each with a fix."""

import math

from factory.errors import PlanError
from factory.reports.preview.summary import EpochSummary, PlanSummary, Problem, RunLimits
from factory.reports.wording import number, percent, plural
from factory.sampling.active_window import ActiveWindow, check_windows
from factory.sampling.epoch_end import EpochEnd
from factory.sampling.plan import Plan
from factory.sampling.rank_shares import check_division
from factory.sampling.strategies import UniformWeighting

# Of its share asked, what a backend must get: below three quarters it is another mixture than
# the one written down.
LEAST_OF_SHARE = 0.75


def mixture_problems(plan: Plan, laid_out: PlanSummary, run: RunLimits) -> list[Problem]:
    """Return what is wrong with the mixture of a run."""
    return [
        *_divisions(plan, run),
        *_windows(plan, laid_out, run),
        *_end(plan, laid_out, run),
        *_never_drawn(plan),
        *_left_out(plan, laid_out),
        *_exhausted(plan, laid_out),
    ]


def _divisions(plan: Plan, run: RunLimits) -> list[Problem]:
    parts = run.ranks * run.micros
    found: dict[str | None, Problem] = {}
    for backend in plan.backends:
        size, owner = backend.batch_size or plan.batch_size, None
        key = "data.batch_size"
        if backend.batch_size:
            owner, key = backend.name, f"data.backends.{backend.name}.batch_size"
        try:
            check_division(size, run.ranks, run.micros)
        except PlanError as error:
            fix = f"{key}={math.ceil(size / parts) * parts}"
            found[owner] = Problem("stop", owner, str(error).partition(". ")[0], fix)
    if found:
        return list(found.values())
    if plan.short_batch != "short" or parts == 1:
        return []
    for backend in plan.backends:
        rest = backend.sizes % (backend.batch_size or plan.batch_size) % parts
        if rest.any():
            text = (
                f"the short batch of bucket {backend.buckets[int(rest.argmax())]} cannot be "
                f"shared by {run.ranks} ranks x {run.micros} micro-batches"
            )
            return [Problem("stop", backend.name, text, "sampling.short_batch=fill or drop")]
    return []


def _windows(plan: Plan, laid_out: PlanSummary, run: RunLimits) -> list[Problem]:
    """Find backends that the run ends before."""
    epochs = run.max_epochs
    if laid_out.run_epochs is not None:
        epochs = math.ceil(laid_out.run_epochs)
    found = []
    for backend in plan.backends:
        try:
            # "Always" beside it, for a window of its own may open late.
            windows = {"": ActiveWindow(), backend.name: backend.window}
            check_windows(windows, epochs=epochs, steps=laid_out.run_steps)
        except PlanError as error:
            text, _, fix = str(error).partition("; ")
            text = text.removeprefix(f"backend {backend.name!r} ")
            found.append(Problem("warn", backend.name, text, fix))
    return found


def _end(plan: Plan, laid_out: PlanSummary, run: RunLimits) -> list[Problem]:
    """Find a run that goes on when every window has closed."""
    last = None if laid_out.run_steps is None else laid_out.run_steps - 1
    try:
        if last is not None:
            plan.position(last)
        elif run.max_epochs is not None:
            plan.steps(run.max_epochs - 1)
    except PlanError as error:
        text, _, fix = str(error).partition("; ")
        return [Problem("stop", None, text, fix)]
    return []


def _never_drawn(plan: Plan) -> list[Problem]:
    return [
        Problem(
            "warn",
            backend.name,
            f"its weight is 0 (probability={backend.probability:g}), so it is never drawn from",
            f"data.backends.{backend.name}.probability=1, or '~data.backends.{backend.name}'",
        )
        for backend, weight in zip(plan.backends, plan.weights, strict=True)
        if not weight
    ]


def _left_out(plan: Plan, laid_out: PlanSummary) -> list[Problem]:
    """Find backends that every epoch ends before, as each begins a balance of its own."""
    windows = {each.window for each in plan.backends}
    if plan.ending.carries or plan.selection.seeded or windows != {ActiveWindow()}:
        return []
    epoch = laid_out.epochs[0]
    return [
        Problem(
            "warn",
            share.backend,
            f"asks for {percent(share.asked)} of the steps and is never drawn from: an epoch "
            f"ends after {plural(epoch.steps, 'step')}, before its first batch is due",
            "sampling.epoch=all_exhausted, or sampling.epoch_steps=N, or raise "
            f"data.backends.{share.backend}.probability",
        )
        for share in epoch.shares
        if share.asked and not share.batches
    ]


def _exhausted(plan: Plan, laid_out: PlanSummary) -> list[Problem]:
    """Find backends that run out long before the first epoch ends."""
    if plan.ending != EpochEnd():
        return []  # by the other rules nobody leaves an epoch
    epoch = laid_out.epochs[0]
    left = plan.explain(0, epoch.steps - 1)["left"]
    found = []
    for index, share in enumerate(epoch.shares):
        if plan.backends[index].window.fade is not None:
            continue  # gets less and less, as it is meant to
        if left[share.backend]:
            continue  # lasts to the end, or its window closes before it runs out
        if not share.batches or share.achieved >= LEAST_OF_SHARE * share.asked:
            continue
        ends = max(s.last for s in epoch.stretches if s.achieved[share.backend])
        text = (
            f"asks for {percent(share.asked)} of the steps and gets {percent(share.achieved)} "
            f"of the epoch: it has given all it holds by step {number(ends)} of "
            f"{number(epoch.steps)}"
        )
        found.append(Problem("warn", share.backend, text, _balance(plan, epoch, index)))
    return found


def _balance(plan: Plan, epoch: EpochSummary, index: int) -> str:
    """Return the settings with which a backend would last as long as the others."""
    shares, backend = epoch.shares, plan.backends[index]
    where = f"data.backends.{backend.name}"
    if any(each.window != ActiveWindow() for each in plan.backends):
        return f"raise {where}.repeats, or lower {where}.probability"
    # How long each lasts, in batches per unit of weight; the epoch ends with the last one.
    lasts = [share.batches / share.weight for share in shares if share.weight]
    own = shares[index].batches / shares[index].weight
    probability = f"{where}.probability={backend.probability * own / max(lasts):.3g}"
    if not isinstance(plan.weighting, UniformWeighting):
        return f"{probability} asks for what it has"
    per_pass = shares[index].batches / (backend.repeats + 1)
    passes = round(max(lasts) * shares[index].weight / per_pass)
    repeats = max(passes - 1, backend.repeats + 1)
    return f"{where}.repeats={repeats} makes it last; {probability} asks for what it has"
