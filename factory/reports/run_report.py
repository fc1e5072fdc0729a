"""Terminal tables of a run: backends before the first step, stages after the last."""

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from factory.backends.conditioning import ConditioningBackend, is_generated
from factory.backends.embeddings import EmbedBackend
from factory.backends.image import SampleBackend
from factory.backends.prepared import PreparedBackend
from factory.backends.streaming.batcher import summary
from factory.backends.streaming.source import StreamSource
from factory.lightning.datamodule import FactoryDataModule
from factory.metrics.stages import Stage, Telemetry
from factory.reports.wording import short_name, with_columns
from factory.untrusted_text import terminal

# Buckets shown per backend; the rest are counted in one line.
SHOWN_BUCKETS = 6
# Names shown for each reason of dropping.
SHOWN_NAMES = 3
# Columns of text in files and pipes, which have no width of their own.
TABLE_WIDTH = 120


def show(data: FactoryDataModule, console: Console | None = None) -> None:
    """Print the backends, their buckets and what was dropped, and the plan of the first epoch."""
    console = console or wide_console()
    console.print(backends_table(data))
    dropped = list(dropped_lines(data.sources.values()))
    if dropped:
        where = escape(data.registry.cache.catalog_key("BACKEND"))
        console.print(f"[bold]Dropped[/bold] (each one's detail: {where})", highlight=False)
        for line in dropped:
            # Names of files may look like markup, or like an emoji's code.
            console.print(f"  {line}", highlight=False, markup=False, emoji=False)
    for line in left_out_lines(data.sources.values()):
        console.print(line, highlight=False, markup=False, emoji=False)
    for line in unused_lines(data):
        console.print(line, highlight=False, markup=False, emoji=False)
    plan = data.plan
    console.print(
        f"[bold]Plan[/bold] epoch of {plan.steps(0)} optimizer steps, {data.batch_size} samples "
        f"each, fingerprint {plan.fingerprint[:12]}",
        highlight=False,
    )
    console.print(mixture_table(data))


def wide_console() -> Console:
    """Return a console as wide as the terminal, or as the tables need where there is none."""
    console = terminal()
    return console if console.is_terminal else terminal(width=TABLE_WIDTH)


def backends_table(data: FactoryDataModule) -> Table:
    """Return one row for each backend of samples."""
    table = with_columns(
        Table(title="Backends", title_justify="left"),
        "backend", "kind", ">found", ">kept", ">dropped", "buckets: samples", "where",
    )  # fmt: skip
    for source in data.sources.values():
        catalog = source.catalog
        # What is generated is lost with its source's samples alone.
        found = len(catalog) if is_generated(source.backend) else len(catalog.facts)
        table.add_row(
            escape(source.name),
            type(source.backend).__name__.removesuffix("Backend").lower(),
            str(found),
            str(len(catalog)),
            str(found - len(catalog)),
            buckets(source),
            where(source.backend),
        )
    for stream in data.streams.values():
        samples = stream.batches_per_pass() * (stream.backend.batch_size or data.batch_size)
        shown = f"{samples} samples in an epoch's pass, as they are read"
        table.add_row(escape(stream.name), "stream", "-", "-", "-", shown, where(stream.backend))
    return table


def where(backend: SampleBackend) -> str:
    """Return the kind of a backend's storage and the folder in it, or what makes its pictures."""
    if isinstance(backend, ConditioningBackend) and is_generated(backend):
        return f"made from {escape(backend.source)} by {type(backend.generate).__name__}"
    kind = type(backend.storage).__name__.removesuffix("Storage")
    # A dataset has no folders: its name says where.
    place = backend.prefix or getattr(backend.storage, "dataset", "")
    return f"{kind} {escape(place)}".strip()


def buckets(source: PreparedBackend) -> str:
    """Return "128x128: 40, 160x96: 12", largest first."""
    ranked = sorted(source.catalog.decisions.buckets, key=lambda bucket: -len(bucket.rows))
    parts = [f"{bucket.name}: {len(bucket.rows)}" for bucket in ranked[:SHOWN_BUCKETS]]
    rest = ranked[SHOWN_BUCKETS:]
    if rest:
        parts.append(f"{len(rest)} more: {sum(len(bucket.rows) for bucket in rest)}")
    return ", ".join(parts)


def dropped_lines(sources: Iterable[PreparedBackend]) -> Iterable[str]:
    """Yield "photos: 2 truncated (a.jpg, b.jpg)" for each backend and reason."""
    for source in sources:
        if is_generated(source.backend):
            continue
        facts, made = source.catalog.facts, source.catalog.decisions
        for reason, count in made.dropped().items():
            rows = (made.reason == made.reasons.index(reason)).nonzero()[0]
            names = ", ".join(short_name(facts.key(row)) for row in rows[:SHOWN_NAMES].tolist())
            more = ", ..." if count > SHOWN_NAMES else ""
            yield f"{source.name}: {count} {reason} ({names}{more})"


def left_out_lines(sources: Iterable[PreparedBackend]) -> Iterable[str]:
    """Yield "Left out of photos: 3 files ignored as #recycle/ (3)" for what no sample is."""
    for source in sources:
        if not is_generated(source.backend):
            for line in source.catalog.facts.left_out.lines():
                yield f"Left out of {source.name}: {line}"


def unused_lines(data: FactoryDataModule) -> Iterable[str]:
    """Yield a line for each store of embeddings that no backend uses."""
    for name in data.registry.unused:
        store = data.registry.backends[name]
        default = isinstance(store, EmbedBackend) and store.default
        yield (
            f"Unused: no backend uses the store {name!r}"
            f"{', though it is the default of its kind' if default else ''}; leave it out with "
            f"'~data.backends.{name}'"
        )


def stream_lines(streams: Iterable[StreamSource]) -> Iterable[str]:
    """Yield "big: 1200 rows, 75 batches, 3 dropped: truncated" for each stream."""
    for stream in streams:
        yield f"{stream.name}: {summary(stream.counts) or 'nothing was read'}"


def mixture_table(data: FactoryDataModule) -> Table:
    """Return weights, shares and counts of the first epoch."""
    table = with_columns(
        Table(title="Mixture of epoch 1", title_justify="left"),
        "backend", ">weight", ">share asked", ">share of epoch", ">batches", ">samples",
        ">repeated to fill", ">left out", words="ellipsis", numbers="ellipsis",
    )  # fmt: skip
    plan = data.plan
    # Asked while all take part; a backend leaves when its passes are done, and the epoch
    # ends with the last one, so over a whole epoch shares follow lengths too.
    asked = plan.stretches(0)[0].shares
    for account, weight, share in zip(plan.accounting(0), plan.weights, asked, strict=True):
        table.add_row(
            escape(account.backend),
            f"{weight:.3g}",
            f"{share:.1%}",
            f"{account.achieved:.1%}",
            str(account.batches),
            str(account.rows),
            str(account.duplicates),
            str(account.dropped),
        )
    return table


def stages_table(telemetry: Telemetry) -> RenderableType:
    """Return time and memory of every stage."""
    table = with_columns(
        Table(title="Stages", title_justify="left"),
        "stage", ">time", ">memory", ">peak", "counts", words="ellipsis", numbers="ellipsis",
    )  # fmt: skip
    for stage in telemetry.stages:
        counts = ", ".join(f"{key} {value}" for key, value in stage.counts.items())
        table.add_row(
            escape(stage.name),
            f"{stage.seconds:.2f} s",
            f"{stage.rss_mb:.0f} MiB",
            f"{stage.peak_rss_mb:.0f} MiB",
            counts,
        )
    return table


def show_encoded(telemetry: Telemetry, console: Console | None = None) -> None:
    """Print what precomputing did with each backend, and whether there was anything to do."""
    console = console or wide_console()
    stages = _encoding_stages(telemetry)
    console.print(encoded_table(stages))
    if not stages:
        text = "Nothing is encoded: no encoder is set"
    elif any(stage.counts["encoded"] for stage in stages):
        text = "All is encoded"
    else:
        cached = sum(stage.counts["cached"] for stage in stages)
        text = f"Nothing was left to encode: all {cached:,} are cached"
    console.print(text, highlight=False)


def _encoding_stages(telemetry: Telemetry) -> list[Stage]:
    """Return one stage for each backend; one is looked at again after what cannot be read."""
    joined: dict[str, Stage] = {}
    for stage in telemetry.stages:
        if "encoded" in stage.counts:
            first = joined.setdefault(
                stage.name, Stage(stage.name, counts={"cached": stage.counts["cached"]})
            )
            first.seconds += stage.seconds
            for name in ("encoded", "unreadable", "bytes"):
                first.counts[name] = first.counts.get(name, 0) + stage.counts.get(name, 0)
    return list(joined.values())


def encoded_table(stages: Iterable[Stage]) -> Table:
    """Return one row for each stage of encoding: how many, how large, how fast."""
    table = with_columns(
        Table(title="Encoded", title_justify="left"),
        "backend", ">encoded", ">cached", ">unreadable", ">size", ">time", ">rate",
        numbers="ellipsis",
    )  # fmt: skip
    for stage in stages:
        counts = stage.counts
        table.add_row(
            escape(stage.name.removeprefix("encode ")),
            *(f"{counts[name]:,}" for name in ("encoded", "cached", "unreadable")),
            f"{counts['bytes'] / 2**20:,.1f} MiB",
            f"{stage.seconds:.1f} s",
            f"{counts['encoded'] / stage.seconds:,.0f}/s" if counts["encoded"] else "",
        )
    return table
