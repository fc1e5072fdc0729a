"""HTML page of a dry run; it needs nothing but itself."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.reports.preview import catalog_rows, charts
from factory.reports.preview.contact_sheet import dropped_part, samples_part
from factory.reports.preview.dry_run import DryRun
from factory.reports.preview.html import Content, Safe, tag
from factory.reports.preview.summary import (
    BackendShare,
    BackendSummary,
    EpochSummary,
    PlanSummary,
    Problem,
    StretchSummary,
    Summary,
)
from factory.reports.wording import beforehand, number, percent, plural, reads, size

# Points of each backend in the scatter: beyond them dots only cover each other.
POINTS = 600
# Buckets shown for each backend; the rest are counted in one line.
BUCKETS = 16
# Parts of an epoch shown.
STRETCHES = 12
# Nothing is fetched, whatever a file's name or caption holds: pictures are inside the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
WORDS = {"stop": "stops the run", "warn": "warning", "note": "note"}


def page(run: DryRun, engine: Engine) -> str:
    """Return a dry run as an HTML document; reads some samples to show them.

    Args:
        run: The dry run.
        engine: Reads and decodes the samples shown.
    """
    summary, sources = run.summary, run.sources
    tabs: dict[str, tuple[str, Content]] = {
        "overview": ("Overview", _overview(summary, sources)),
        "problems": (f"Problems {len(summary.problems)}", _problems(summary)),
        "samples": ("Samples", samples_part(summary, sources, engine)),
        "dropped": (f"Dropped {number(_gone(summary))}", dropped_part(summary, sources, engine)),
        "reading": ("Reading", _reading(summary)),
    }
    return document("Plan of the data", _header(summary), tabs)


def document(title: str, header: Content, tabs: Mapping[str, tuple[str, Content]]) -> str:
    """Return an HTML document of parts, of which one is shown at a time.

    Args:
        title: Its title.
        header: What stands above all parts.
        tabs: The parts by name, (label, content) of each; the first one is "overview".
    """
    style = files("factory.reports.preview").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        # The sheet is ours, and holds nothing of the data.
        tag("style", Safe(style + _tab_rules(list(tabs)))),
    )
    links = [tag("a", label, href=f"#{name}") for name, (label, _) in tabs.items()]
    sections = [tag("section", part, id_=name) for name, (_, part) in tabs.items()]
    body = tag("body", header, tag("nav", links), tag("main", sections))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _gone(summary: Summary) -> int:
    return sum(each.found - each.kept for each in summary.backends)


def _tab_rules(names: list[str]) -> str:
    """Return the rules that light the tab whose part is shown; the first one is shown at first."""
    first, *others = names
    lit = [f'body:has(#{name}:target) nav a[href="#{name}"]' for name in names]
    none = f'body:not(:has(main>section:target)) nav a[href="#{first}"]'
    away = ",".join(f"#{name}:target" for name in others)
    return (
        f"{','.join([*lit, none])}{{color:var(--ink);border-color:var(--accent)}}"
        f"main:has({away}) #{first}{{display:none}}"
    )


def _header(summary: Summary) -> Safe:
    plan = summary.plan
    verdict = "can be trained" if summary.trainable else "cannot be trained"
    line = "there is no plan"
    if plan is not None:
        line = f"seed {plan.seed}, short_batch={plan.short_batch}, fingerprint {plan.fingerprint}"
    return tag(
        "header",
        tag(
            "div", tag("h1", "Plan of the data"), tag("p", line, class_="dim"), class_="title"
        ),
        tag("span", verdict, class_=f"verdict {'good' if summary.trainable else 'stop'}"),
    )  # fmt: skip


def _overview(summary: Summary, sources: Mapping[str, PreparedBackend]) -> Content:
    places = {each.name: place for place, each in enumerate(summary.backends)}
    most = max([b.samples + b.filled for e in summary.backends for b in e.buckets], default=1)
    histograms = [
        tag("div", tag("h3", each.name, " ", tag("small", each.kind)),
            charts.histogram(each, places[each.name], most, BUCKETS))
        for each in summary.backends
    ]  # fmt: skip
    clouds = [_cloud(each, sources[each.name]) for each in summary.backends]
    grave = [problem for problem in summary.problems if problem.level != "note"]
    return [
        _tiles(summary),
        tag("div", [_problem(problem) for problem in grave], class_="problems") if grave else None,
        tag(
            "div",
            tag("div", _mixture(summary.plan, places), class_="stack"),
            tag(
                "div",
                card("Sizes", charts.legend(list(places), places), charts.scatter(clouds, places),
                      hint="dots are kept, crosses dropped, squares the targets"),
                card("Dropped", charts.reasons(summary.backends, places)),
                class_="stack",
            ),
            class_="cards",
        ),
        card("Buckets", tag("div", histograms, class_="columns"),
              hint="pale: samples given again to fill the last batch"),
    ]  # fmt: skip


def _tiles(summary: Summary) -> Safe:
    plan = summary.plan
    found = sum(each.found for each in summary.backends)
    kept = sum(each.kept for each in summary.backends)
    sizes = [each.bytes for each in summary.backends if each.bytes is not None]
    partly = "" if len(sizes) == len(summary.backends) else " and more"
    tiles = [
        ("samples kept", number(kept), f"of {number(found)} found, {size(sum(sizes))}{partly}"),
        ("captions", number(summary.texts.captions), "" if summary.texts.exact else "estimated"),
        ("cache", size(summary.cache_bytes), f"{size(summary.free_bytes)} free"),
    ]
    if plan is not None:
        steps = plan.epochs[0].steps
        run = "no limit" if plan.run_steps is None else plural(plan.run_steps, "step")
        each = f"of {plural(plan.batch_size, 'sample')}"
        tiles[1:1] = [("steps an epoch", number(steps), each), ("the run", _run(plan), run)]
    return tag(
        "div",
        [
            tag("div", tag("span", name), tag("b", value), tag("small", more), class_="tile")
            for name, value, more in tiles
        ],
        class_="tiles",
    )


def _run(plan: PlanSummary) -> str:
    return "endless" if plan.run_epochs is None else f"{plan.run_epochs:.3g} epochs"


def card(title: str, *content: Content, hint: str = "", kind: str = "") -> Safe | None:
    """Return a part with a heading and a hint beside it; None if there is nothing in it."""
    if not any(content):
        return None
    heading = tag("h2", title, " ", tag("small", hint) if hint else None)
    return tag("article", heading, content, class_=f"card {kind}".strip())


def _mixture(plan: PlanSummary | None, places: dict[str, int]) -> list[Safe | None]:
    if plan is None:
        return []
    return [
        card(
            f"Epoch {epoch.number}",
            charts.shares(epoch, places),
            charts.legend([share.backend for share in epoch.shares], places),
            charts.sequence(epoch, places),
            _accounts(epoch.shares),
            _stretches(epoch) if len(epoch.stretches) > 1 else None,
            hint=f"{plural(epoch.steps, 'step')}; the line is the share asked for, the strip "
            f"the backend of each{'' if len(epoch.begins) == epoch.steps else ' of the first'} "
            "step",
        )
        for epoch in plan.epochs
    ]


def _accounts(shares: tuple[BackendShare, ...]) -> Safe:
    head = ("backend", "weight", "batches", "samples", "filled", "left out")
    body = [
        (s.backend, f"{s.weight:.3g}", number(s.batches), number(s.samples), number(s.filled),
         number(s.left_out))
        for s in shares
    ]  # fmt: skip
    return table(head, body)


def _stretches(epoch: EpochSummary) -> Content:
    """Return the shares of each part of an epoch, as the backends that take part change."""
    names = [share.backend for share in epoch.shares]
    body = [
        (
            number(part.first) if part.first == part.last
            else f"{number(part.first)} to {number(part.last)}",
            *(_share(part, name) for name in names),
        )
        for part in epoch.stretches[:STRETCHES]
    ]  # fmt: skip
    return tag("h3", "Shares, as backends come and go"), table(("steps", *names), body)


def _share(part: StretchSummary, backend: str) -> Content:
    """Return what a backend got of what it asked for, and how much that is."""
    if not part.asked[backend]:
        return "-"
    given = f"{plural(part.batches[backend], 'batch')}, {plural(part.samples[backend], 'sample')}"
    return [
        f"{part.achieved[backend]:.0%} of {part.asked[backend]:.0%}",
        tag("div", tag("small", given)),
    ]


def table(head: tuple[str, ...], body: Sequence[tuple[Content, ...]]) -> Safe:
    """Return a table that scrolls by itself where it is too wide."""
    first = tag("tr", [tag("th", name) for name in head])
    lines = [tag("tr", [tag("td", cell) for cell in line]) for line in body]
    return tag("div", tag("table", tag("thead", first), tag("tbody", lines)), class_="scroll")


def _cloud(backend: BackendSummary, source: PreparedBackend) -> charts.ScatterData:
    catalog = source.catalog
    gone = [catalog_rows.dropped_rows(catalog, reason) for reason in catalog.decisions.dropped()]
    share = max(POINTS // max(len(gone), 1), 1)
    return charts.ScatterData(
        backend.name,
        catalog_rows.scatter(catalog, catalog_rows.kept_rows(catalog), POINTS),
        [pair for each in gone for pair in catalog_rows.scatter(catalog, each, share)],
        [(bucket.width, bucket.height) for bucket in backend.buckets],
    )


def _problems(summary: Summary) -> Content:
    if not summary.problems:
        return tag("p", "Nothing to mend.", class_="empty")
    return tag("div", [_problem(problem) for problem in summary.problems], class_="problems")


def _problem(problem: Problem) -> Safe:
    name = tag("b", problem.backend, ": ") if problem.backend else None
    fix = tag("p", "→ ", tag("code", problem.fix), class_="fix") if problem.fix else None
    badge = tag("span", WORDS[problem.level], class_=f"badge {problem.level}")
    said = tag("p", name, problem.text)
    return tag("div", badge, tag("div", said, fix), class_=f"problem {problem.level}")


def _reading(summary: Summary) -> Iterator[Content]:
    head = (
        "backend", "first scan", "encode once", "each epoch", "from cache", "latents",
        *["image embeds"] * summary.conditioned, "facts",
    )  # fmt: skip
    body: list[tuple[Content, ...]] = [
        (
            each.name, reads(each.costs.scan_requests, each.costs.scan_bytes, "≤"),
            beforehand(
                each.costs.encode_mode, each.costs.encode_requests, each.costs.encode_bytes
            ),
            reads(each.costs.epoch_requests, each.costs.epoch_bytes),
            size(each.costs.epoch_cache_bytes), size(each.costs.latents_bytes),
            *[size(each.costs.image_embeds_bytes)] * summary.conditioned,
            size(each.costs.catalog_bytes),
        )
        for each in summary.backends
    ]  # fmt: skip
    hint = "reads of objects; those of a first scan are of headers and captions"
    yield card("Reading", table(head, body), kind="full", hint=hint)
    places = ("backend", "kind", "found", "kept", "dropped", "enlarged", "size", "where")
    yield card(
        "Backends",
        table(places, [
            (e.name, e.kind, number(e.found), number(e.kept), number(e.found - e.kept),
             percent(e.enlarged / max(e.kept, 1)), size(e.bytes), e.where)
            for e in summary.backends
        ]),
        kind="full",
    )  # fmt: skip
    texts = summary.texts
    encoded = size(texts.bytes) if texts.encoded else "not encoded"
    yield tag(
        "p", f"{plural(texts.captions, 'caption')}, {encoded}. The cache is {summary.cache}, and "
        f"needs {size(summary.cache_bytes)} if nothing is in it yet.", class_="dim",
    )  # fmt: skip
