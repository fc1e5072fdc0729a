"""HTML page of an explanation; it needs nothing but itself."""

from collections.abc import Mapping

import numpy as np

from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.reports.explain.explain_terminal import batches_left, heading, shared, since
from factory.reports.explain.explanation import ExplainedSample, ExplainedStep, Explanation
from factory.reports.preview.contact_sheet import kept_card
from factory.reports.preview.html import Content, Safe, tag
from factory.reports.preview.page import card, document, table
from factory.reports.preview.thumbnails import Thumbnail, looks
from factory.reports.wording import number, percent, redact

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
    steps: list[Content] = []
    for step in findings.steps:
        shown = step.samples[:left]
        left -= len(shown)
        steps.append(_step(step, shown, sources.get(step.backend), engine))
    title = heading(findings.steps[0]) if len(findings.steps) == 1 else "Steps of a run"
    overview = [
        tag("div", [_note(note) for note in findings.notes], class_="problems")
        if findings.notes else None,
        _list(findings) if len(findings.steps) > 1 else None,
        steps,
        _exclude(findings),
    ]  # fmt: skip
    return document(title, _header(title, findings), {"overview": ("Samples", overview)})


def _header(title: str, findings: Explanation) -> Safe:
    line = f"{findings.run}, plan {findings.fingerprint[:12]}"
    words = tag("div", tag("h1", title), tag("p", line, class_="dim"), class_="title")
    recorded = findings.recorded
    said = "from the plan" if recorded is None else "steps {} to {} on record".format(*recorded)
    return tag("header", words, tag("span", said, class_="verdict note"))


def _note(note: str) -> Safe:
    badge = tag("span", "note", class_="badge warn")
    return tag("div", badge, tag("div", tag("p", redact(note))), class_="problem warn")


def _list(findings: Explanation) -> Safe | None:
    head = ("step", "epoch", "backend", "bucket", "samples", "filled", "replaced")
    body: list[tuple[Content, ...]] = [
        (
            number(step.number), number(step.epoch), step.backend, step.bucket,
            number(len(step.samples)), number(step.fills),
            number(sum(bool(sample.instead_of) for sample in step.samples)),
        )
        for step in findings.steps
    ]  # fmt: skip
    return card("Steps", table(head, body), kind="full")


def _step(
    step: ExplainedStep,
    shown: tuple[ExplainedSample, ...],
    source: PreparedBackend | None,
    engine: Engine,
) -> Content:
    cards: list[Safe] = []
    if source is not None and shown:
        known = [s for s in shown if s.key]
        rows = np.array([sample.row for sample in known], dtype=np.int64)
        pairs = zip(known, looks(source, rows, engine), strict=True)
        cards = [_sample(sample, look) for sample, look in pairs]
    missing = len(step.samples) - len(cards)
    rest = f"{number(missing)} more are not shown" if missing else ""
    return [
        _why(step),
        card(
            f"Step {number(step.number)}",
            [_note(note) for note in step.notes],
            tag("div", cards, class_="sheet"),
            tag("p", rest, class_="dim") if rest else None,
            hint=shared(step) + "; the frame is what is trained on",
            kind="full",
        ),
    ]


def _why(step: ExplainedStep) -> Safe | None:
    head = ("backend", "weight", "share", "given", "owed", "left", "takes part")
    body: list[tuple[Content, ...]] = [
        (each.backend, f"{each.weight:.3g}", percent(each.share), number(each.given),
         f"{each.owed:+.2f}", batches_left(each), each.window)
        for each in step.choices
    ]  # fmt: skip
    hint = f"weights since {since(step)}; owed are batches behind its share"
    return card(f"Why {step.backend}", table(head, body), hint=hint, kind="full") if body else None


def _sample(sample: ExplainedSample, look: Thumbnail) -> Safe:
    """Return a sample with its place, its caption of this epoch and what it stands in for."""
    used = Thumbnail(**{**vars(look), "captions": (sample.caption,) if sample.caption else ()})
    where = f"place {sample.place}"
    if sample.rank is not None:
        where += f", rank {sample.rank}, micro-batch {sample.micro}"
    more: list[Content] = [tag("p", tag("small", where))]
    if sample.fills:
        more.append(tag("p", tag("small", "only fills the batch")))
    for backend, key in sample.partners.items():
        more.append(tag("p", f"with {backend}: {redact(key)}", class_="key"))
    for one in sample.instead_of:
        badge = tag("span", "instead of", class_="badge warn")
        why = redact(f"{one.stage}: {one.reason}")
        more.append(tag("p", badge, " ", redact(one.key), class_="caption", title=why))
        more.append(tag("p", tag("small", why)))
    return kept_card(used, *more)


def _exclude(findings: Explanation) -> Safe | None:
    if not findings.exclude:
        return None
    line = tag("p", tag("code", findings.exclude), class_="dim")
    return card("To leave samples out", line, hint="keep those you mean", kind="full")
