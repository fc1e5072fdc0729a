"""HTML page of an explanation; it needs nothing but itself."""

from collections.abc import Mapping

import numpy as np

from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.reports.explain.explanation import ExplainedSample, Explanation
from factory.reports.html import render
from factory.reports.preview.thumbnails import Thumbnail, looks

# Pictures shown: some 10 KB each, so that a page stays below some 5 MB.
PICTURES = 400


def page(findings: Explanation, sources: Mapping[str, PreparedBackend], engine: Engine) -> str:
    """Return an answer as an HTML document; reads the samples to show them.

    Args:
        findings: The answer.
        sources: The backends of samples, by name.
        engine: Reads and decodes the samples shown.
    """
    left = PICTURES
    shown = []
    for step in findings.steps:
        samples = step.samples[:left]
        left -= len(samples)
        shown.append((step, _looks(samples, sources.get(step.backend), engine)))
    return render(
        "explain.html",
        title=findings.steps[0].heading if len(findings.steps) == 1 else "Steps of a run",
        tabs={"overview": "Samples"},
        findings=findings,
        shown=shown,
    )


def _looks(
    samples: tuple[ExplainedSample, ...], source: PreparedBackend | None, engine: Engine
) -> list[tuple[ExplainedSample, Thumbnail]]:
    """Look at those samples whose files are known."""
    known = [sample for sample in samples if sample.key]
    if source is None or not known:
        return []
    rows = np.array([sample.row for sample in known], dtype=np.int64)
    return list(zip(known, looks(source, rows, engine), strict=True))
