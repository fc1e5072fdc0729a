"""Terminal output of a dry run."""

from collections.abc import Iterator
from functools import partial

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from factory.reports.preview.summary import EpochSummary, PlanSummary, Problem, Summary
from factory.reports.wording import (
    beforehand,
    listed,
    narrow,
    number,
    percent,
    plural,
    reads,
    size,
    titled_table,
)
from factory.untrusted_text import terminal

# Columns the tables are laid out for; a wider terminal is not filled, since rows would tear.
WIDTH = 100
# Buckets and stretches shown for each backend; the rest are counted in one line.
SHOWN_BUCKETS = 8
SHOWN_STRETCHES = 8
BAR_WIDTH = 24
# A number that is cut reads better than one in two lines.
_table = partial(titled_table, numbers="ellipsis")
COLOURS = {"stop": "bold red", "warn": "yellow", "note": "cyan"}
SIGNS = {"stop": "✗", "warn": "!", "note": "·"}


def show(summary: Summary, console: Console | None = None) -> None:
    """Print what a dry run found out."""
    console = narrow(console or terminal(), WIDTH)
    for part in parts(summary):
        console.print(part)


def parts(summary: Summary) -> Iterator[RenderableType]:
    """Yield the tables from the first to the last."""
    yield _backends(summary)
    yield from _drops(summary)
    yield _buckets(summary)
    if summary.plan is not None:
        yield from _plan(summary.plan)
    yield _costs(summary)
    yield from _problems(summary)


def _backends(summary: Summary) -> Table:
    table = _table("Backends", "backend", "kind", ">found", ">kept", ">dropped", ">size", "where")
    for each in summary.backends:
        gone = each.found - each.kept
        table.add_row(
            Text(each.name, style="bold"), each.kind, number(each.found), number(each.kept),
            Text(number(gone), style="yellow" if gone else "dim"), size(each.bytes),
            Text(each.where, style="dim"),
        )  # fmt: skip
    return table


def _drops(summary: Summary) -> Iterator[Table]:
    rows = [(each.name, drop) for each in summary.backends for drop in each.dropped]
    if not rows:
        return
    table = _table("Dropped", "backend", ">samples", "reason", "such as")
    last = None
    for name, drop in rows:
        more = ["…"] if drop.count > len(drop.examples) else []
        table.add_row(
            Text(name if name != last else "", style="bold"), number(drop.count),
            Text(drop.reason), Text(", ".join([*drop.examples, *more]), style="dim"),
        )  # fmt: skip
        last = name
    yield table


def _buckets(summary: Summary) -> Table:
    table = _table(
        "Buckets", "backend", "target", ">samples", "", ">batches", ">filled", ">left out"
    )
    sizes = [bucket.samples for each in summary.backends for bucket in each.buckets]
    for each in summary.backends:
        for place, bucket in enumerate(each.buckets[:SHOWN_BUCKETS]):
            table.add_row(
                Text("" if place else each.name, style="bold"), bucket.name,
                number(bucket.samples), bar(bucket.samples / max(sizes)),
                number(bucket.batches), _count(bucket.filled), _count(bucket.left_out),
            )  # fmt: skip
        rest = each.buckets[SHOWN_BUCKETS:]
        if rest:
            table.add_row(
                "", Text(f"{len(rest)} more", style="dim"), number(sum(b.samples for b in rest)),
                "", number(sum(b.batches for b in rest)), _count(sum(b.filled for b in rest)),
                _count(sum(b.left_out for b in rest)),
            )  # fmt: skip
    return table


def bar(share: float, width: int = BAR_WIDTH, style: str = "cyan") -> Text:
    """Return a bar of blocks, an eighth of a column fine; anything above 0 shows."""
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    full, part = divmod(eighths, 8)
    return Text("█" * full + ("", *"▏▎▍▌▋▊▉")[part], style=style)


def _count(value: int) -> Text:
    return Text(number(value), style="yellow" if value else "dim")


def _plan(plan: PlanSummary) -> Iterator[RenderableType]:
    first = plan.epochs[0]
    head = Text.assemble(
        ("Plan  ", "bold"),
        f"epoch of {plural(first.steps, 'step')} x {plural(plan.batch_size, 'sample')}, ",
        f"short_batch={plan.short_batch}, seed {plan.seed}, fingerprint {plan.fingerprint[:12]}",
        f"\n      schedule {first.schedule[:12]}, {_ending(plan)}",
    )
    if plan.run_steps is not None and plan.run_epochs is not None:
        run = f"\n      the run: {plural(plan.run_steps, 'step')}, {plan.run_epochs:.3g} epochs"
        head.append(run)
    yield Padding(head, (1, 0, 0, 0))
    for epoch in plan.epochs:
        yield _shares(epoch)
        if len(epoch.stretches) > 1:
            yield _stretches(epoch)


def _ending(plan: PlanSummary) -> str:
    if plan.epoch_steps is None:
        return f"epoch={plan.epoch_rule}"
    return f"epoch_steps={plan.epoch_steps}"


def _shares(epoch: EpochSummary) -> Table:
    title = f"Epoch {epoch.number}, {plural(epoch.steps, 'step')}"
    if epoch.first_step > 1:
        title += f" from step {number(epoch.first_step)}"
    table = _table(
        title, "backend", ">weight", ">asked", ">gets", "", ">batches", ">samples", ">filled",
        ">left out",
    )  # fmt: skip
    for share in epoch.shares:
        table.add_row(
            Text(share.backend, style="bold"), f"{share.weight:.3g}", percent(share.asked),
            percent(share.achieved), bar(share.achieved, 20, "green"), number(share.batches),
            number(share.samples), _count(share.filled), _count(share.left_out),
        )  # fmt: skip
    return table


def _stretches(epoch: EpochSummary) -> Table:
    names = [share.backend for share in epoch.shares]
    table = _table(
        f"Shares within epoch {epoch.number}: gets (asked), batches", "steps",
        *(f">{name}" for name in names),
    )  # fmt: skip
    for part in epoch.stretches[:SHOWN_STRETCHES]:
        cells = [
            f"{part.achieved[name]:.0%} ({part.asked[name]:.0%}), {number(part.batches[name])}"
            if part.asked[name]
            else "-"
            for name in names
        ]
        steps = number(part.first)
        if part.last > part.first:
            steps += f" to {number(part.last)}"
        table.add_row(steps, *cells)
    rest = len(epoch.stretches) - SHOWN_STRETCHES
    if rest > 0:
        table.add_row(f"{rest} more", *("" for _ in names))
    return table


def _costs(summary: Summary) -> RenderableType:
    table = _table(
        "Reading", "backend", ">first scan", ">encode once", ">each epoch", ">from cache",
        ">latents", *[">image embeds"] * summary.conditioned, ">facts",
    )  # fmt: skip
    for each in summary.backends:
        costs = each.costs
        table.add_row(
            Text(each.name, style="bold"), reads(costs.scan_requests, costs.scan_bytes, "≤"),
            beforehand(costs.encode_mode, costs.encode_requests, costs.encode_bytes),
            reads(costs.epoch_requests, costs.epoch_bytes),
            _latents(costs.epoch_cache_bytes), _latents(costs.latents_bytes),
            *[_latents(costs.image_embeds_bytes)] * summary.conditioned,
            size(costs.catalog_bytes),
        )  # fmt: skip
    texts = summary.texts
    about = "" if texts.exact else "about "
    kept = f" ({size(texts.bytes)} encoded)" if texts.encoded else ", not encoded"
    free = "" if summary.free_bytes is None else f"; {size(summary.free_bytes)} free"
    table.caption = (
        f"{about}{plural(texts.captions, 'caption')}{kept}. "
        f"Cache needs {size(summary.cache_bytes)} if nothing is in it yet{free}."
    )
    table.caption_justify = "left"
    return Padding(table, (0, 0, 1, 0))


def _latents(count: int | None) -> str:
    return "-" if count == 0 else size(count)


def _problems(summary: Summary) -> Iterator[RenderableType]:
    for problem in summary.problems:
        yield _problem(problem)
    counts = [
        plural(sum(p.level == level for p in summary.problems), noun)
        for level, noun in (("stop", "stop"), ("warn", "warning"), ("note", "note"))
        if any(p.level == level for p in summary.problems)
    ]
    found = f" ({listed(counts, len(counts))})" if counts else ""
    text, style = (
        ("This can be trained", "bold green")
        if summary.trainable
        else ("This cannot be trained", "bold red")
    )
    yield Panel(Text(text + found, style=style), box=box.ROUNDED, expand=False, border_style=style)


def _problem(problem: Problem) -> RenderableType:
    style = COLOURS[problem.level]
    text = Text()
    if problem.backend is not None:
        text.append(f"{problem.backend}: ", style="bold")
    text.append(problem.text)
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(f"{SIGNS[problem.level]} {problem.level}", style=style), text)
    if problem.fix:
        table.add_row(Text("→", style=style, justify="right"), Text(problem.fix, style="italic"))
    return Padding(table, (0, 0, 1, 0))
