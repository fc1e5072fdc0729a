"""HTML page of a dry run; it needs nothing but itself."""

from collections.abc import Mapping

from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.reports.html import render
from factory.reports.preview import catalog_rows
from factory.reports.preview.charts import Scatter, ScatterData
from factory.reports.preview.dry_run import DryRun
from factory.reports.preview.summary import BackendSummary, Summary
from factory.reports.preview.thumbnails import Thumbnail, looks
from factory.reports.wording import number

# Points of each backend in the scatter: beyond them dots only cover each other.
POINTS = 600
# Samples shown of each backend, kept ones and dropped ones.
SHOWN = 24
# Colours of the style sheet for backends; further ones take turns.
COLOURS = 8


def page(run: DryRun, engine: Engine) -> str:
    """Return a dry run as an HTML document; reads some samples to show them.

    Args:
        run: The dry run.
        engine: Reads and decodes the samples shown.
    """
    summary, sources = run.summary, run.sources
    gone = sum(each.found - each.kept for each in summary.backends)
    return render(
        "preview.html",
        title="Plan of the data",
        tabs={
            "overview": "Overview",
            "problems": f"Problems {len(summary.problems)}",
            "samples": "Samples",
            "dropped": f"Dropped {number(gone)}",
            "reading": "Reading",
        },
        summary=summary,
        colours={each.name: f"c{i % COLOURS}" for i, each in enumerate(summary.backends)},
        plot=Scatter([_cloud(each, sources[each.name]) for each in summary.backends]),
        kept_looks=_kept(summary, sources, engine),
        dropped_looks=[
            (each, _dropped(sources[each.name], engine))
            for each in summary.backends
            if each.dropped
        ],
    )


def _cloud(backend: BackendSummary, source: PreparedBackend) -> ScatterData:
    catalog = source.catalog
    gone = [catalog_rows.dropped_rows(catalog, reason) for reason in catalog.decisions.dropped()]
    share = max(POINTS // max(len(gone), 1), 1)
    return ScatterData(
        backend.name,
        catalog_rows.scatter(catalog, catalog_rows.kept_rows(catalog), POINTS),
        [pair for each in gone for pair in catalog_rows.scatter(catalog, each, share)],
        [(bucket.width, bucket.height) for bucket in backend.buckets],
    )


def _kept(
    summary: Summary, sources: Mapping[str, PreparedBackend], engine: Engine
) -> list[tuple[BackendSummary, list[Thumbnail]]]:
    """Look at some kept samples of each backend."""
    found = []
    for backend in summary.backends:
        source = sources[backend.name]
        chosen = catalog_rows.contact_rows(source.catalog, SHOWN)
        found.append((backend, looks(source, chosen, engine)))
    return found


def _dropped(source: PreparedBackend, engine: Engine) -> list[tuple[Thumbnail, str, str]]:
    """Look at some samples of every reason of dropping, the commonest first."""
    catalog = source.catalog
    counts = catalog.decisions.dropped()
    each = max(SHOWN // max(len(counts), 1), 1)
    found = []
    for reason in list(counts)[:SHOWN]:
        chosen = catalog_rows.spread(catalog_rows.dropped_rows(catalog, reason), each)
        details = catalog_rows.details(catalog.facts, chosen)
        for look, detail in zip(looks(source, chosen, engine), details, strict=True):
            found.append((look, reason, detail.partition(": ")[2]))
    return found
