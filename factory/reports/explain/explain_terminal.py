"""Terminal output of an explanation."""

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from factory.reports.explain.explanation import (
    ExplainedSample,
    ExplainedStep,
    Explanation,
)
from factory.reports.wording import narrow, number, percent, redact, size, titled_table
from factory.untrusted_text import printable, terminal

# Columns the tables are laid out for; keys are folded, never cut.
WIDTH = 110
# Digits of an etag that tell versions apart.
ETAG = 16


def show(findings: Explanation, console: Console | None = None) -> None:
    """Print an answer."""
    console = narrow(console or terminal(), WIDTH)
    for note in findings.notes:
        console.print(Text.assemble(("! ", "yellow"), redact(note)))
    if len(findings.steps) > 1:
        console.print(_overview(findings))
    else:
        for step in findings.steps:
            for part in parts(step):
                console.print(part)
    if findings.exclude:
        console.print("\nTo leave samples out, keep those you mean of:")
        # In one line, however wide: it is there to be copied.
        console.print(findings.exclude, soft_wrap=True, markup=False, highlight=False)


def _overview(findings: Explanation) -> Table:
    table = titled_table(
        "Steps", ">step", ">epoch", ">in it", "backend", "bucket", ">samples", ">filled",
        ">replaced", "",
    )  # fmt: skip
    for step in findings.steps:
        replaced = sum(bool(sample.instead_of) for sample in step.samples)
        table.add_row(
            number(step.number), number(step.epoch), number(step.step),
            Text(step.backend, style="bold"), step.bucket, number(len(step.samples)),
            number(step.fills), number(replaced), Text("; ".join(step.notes), style="yellow"),
        )  # fmt: skip
    return table


def parts(step: ExplainedStep) -> Iterator[RenderableType]:
    """Yield what is known of one step, from the first table to the last."""
    yield Text(step.heading, style="bold")
    yield Text(step.shared, style="dim")
    for note in step.notes:
        yield Text.assemble(("! ", "yellow"), note)
    if step.choices:
        yield _why(step)
    yield _samples(step)
    swapped = [sample for sample in step.samples if sample.instead_of]
    if swapped:
        yield _swapped(swapped)


def _why(step: ExplainedStep) -> Table:
    table = titled_table(
        f"Why {step.backend}: weights since {step.since_step}",
        "backend", ">weight", ">share", ">given", ">owed", ">left", "takes part",
    )  # fmt: skip
    for each in step.choices:
        style = "bold" if each.backend == step.backend else ""
        table.add_row(
            Text(each.backend, style=style), f"{each.weight:.3g}", percent(each.share),
            number(each.given), f"{each.owed:+.2f}", each.batches_left, each.window,
        )  # fmt: skip
    return table


def _samples(step: ExplainedStep) -> Table:
    who = any(sample.rank is not None for sample in step.samples)
    who_used = [">rank.micro"] if who else []
    table = titled_table("Samples", ">place", *who_used, "sample", "cut", "caption")
    for sample in step.samples:
        where = [f"{sample.rank}.{sample.micro}"] if who else []
        table.add_row(
            str(sample.place), *where, _named(step, sample), cut(sample),
            Text(printable(sample.caption) or "(none)", style="" if sample.caption else "dim"),
        )  # fmt: skip
    return table


def _named(step: ExplainedStep, sample: ExplainedSample) -> Text:
    name = Text(f"{step.backend}:{redact(sample.key)}" if sample.key else f"row {sample.row}")
    if sample.key and sample.width:
        length = "" if sample.bytes < 0 else f", {size(sample.bytes)}"
        version = f", {printable(sample.etag[:ETAG])}" if sample.etag else ""
        name.append(f"\n{sample.width}x{sample.height}{length}{version}", style="dim")
    for backend, key in sample.partners.items():
        name.append(f"\nwith {backend}:{redact(key)}", style="dim")
    if sample.fills:
        name.append("\nonly fills the batch", style="dim")
    if sample.dropped:
        name.append(f"\nnow dropped: {redact(sample.dropped)}", style="yellow")
    return name


def cut(sample: ExplainedSample) -> str:
    """Return how a sample is resized and cut, and by how much it is enlarged."""
    if sample.target is None or sample.crop is None or sample.resized is None:
        return "-"
    (width, height), (top, left) = sample.target, sample.crop
    to = f"to {sample.resized[0]}x{sample.resized[1]}"
    scale = f" (x{sample.upscale:.2f})" if sample.upscale else ""
    return f"{to}{scale}\n{width}x{height} at {left},{top}"


def _swapped(samples: list[ExplainedSample]) -> Table:
    table = titled_table("Replaced", ">place", "sample", "why")
    for sample in samples:
        for one in sample.instead_of:
            table.add_row(str(sample.place), redact(one.key), redact(f"{one.stage}: {one.reason}"))
    return table
