"""Contact sheets of the dry run's page: kept and dropped samples with their captions."""

from collections.abc import Mapping

from factory.backends.prepared import PreparedBackend
from factory.engine.engine import Engine
from factory.reports.preview import catalog_rows
from factory.reports.preview.html import Content, Safe, tag
from factory.reports.preview.summary import BackendSummary, Summary
from factory.reports.preview.thumbnails import Thumbnail, looks, window
from factory.reports.wording import listed, number, plural, redact, short_name

# Samples shown of each backend, kept ones and dropped ones.
SHOWN = 24
# Captions longer than this are cut; the whole text is the tooltip.
CAPTION = 140


def samples_part(
    summary: Summary, sources: Mapping[str, PreparedBackend], engine: Engine
) -> list[Content]:
    """Return kept samples of each backend, with what is cut out of each."""
    parts: list[Content] = [
        tag(
            "p",
            "The frame is what is trained on; what lies outside is cut away.",
            class_="dim lead",
        )
    ]
    for backend in summary.backends:
        source = sources[backend.name]
        chosen = catalog_rows.contact_rows(source.catalog, SHOWN)
        cards = [kept_card(look) for look in looks(source, chosen, engine)]
        note = f"{number(len(cards))} of {number(backend.kept)} kept"
        parts.append(_sheet(backend, note, cards))
    return parts


def dropped_part(
    summary: Summary, sources: Mapping[str, PreparedBackend], engine: Engine
) -> list[Content]:
    """Return dropped samples of each backend, with the reason of each."""
    parts: list[Content] = []
    for backend in summary.backends:
        if backend.dropped:
            cards = _gone(sources[backend.name], engine)
            gone = number(backend.found - backend.kept)
            parts.append(_sheet(backend, f"{number(len(cards))} of {gone} dropped", cards))
    return parts or [tag("p", "Nothing is dropped.", class_="empty")]


def _sheet(backend: BackendSummary, note: str, cards: list[Safe]) -> Safe:
    heading = tag("h2", backend.name, " ", tag("small", f"{backend.kind}, {note}"))
    return tag("article", heading, tag("div", cards, class_="sheet"), class_="card full")


def _gone(source: PreparedBackend, engine: Engine) -> list[Safe]:
    """Show some of every reason, the commonest first."""
    catalog = source.catalog
    counts = catalog.decisions.dropped()
    each = max(SHOWN // max(len(counts), 1), 1)
    cards: list[Safe] = []
    for reason in list(counts)[:SHOWN]:
        chosen = catalog_rows.spread(catalog_rows.dropped_rows(catalog, reason), each)
        details = catalog_rows.details(catalog.facts, chosen)
        found = zip(looks(source, chosen, engine), details, strict=True)
        cards += [_dropped(look, reason, detail) for look, detail in found]
    return cards


def kept_card(look: Thumbnail, *more: Content) -> Safe:
    """Return a sample with the frame that is trained on, and what else is known of it below."""
    cut = look.crop
    frame = None
    sizes = f"{look.width}x{look.height}"
    if cut is not None:
        left, top, width, height = (100 * part for part in window(cut))
        place = f"left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"
        # A clip is shown as it is cut.
        frame = None if "@" in look.bucket else tag("span", class_="cut", style=place)
        sizes += f" → {look.bucket}"
    scale = "" if cut is None else _scale(look)
    facts = tag("p", tag("b", sizes), tag("br"), tag("small", scale), class_="sizes")
    return tag(
        "figure", _picture(look, frame), tag("figcaption", _name(look), facts, _says(look), more)
    )


def _scale(look: Thumbnail) -> str:
    """Return "x0.53", how much a sample is resized, and the part of its area that is kept."""
    assert look.crop is not None  # noqa: S101 - the caller has looked
    _, _, width, height = window(look.crop)
    factor = look.crop.intermediary[0] / max(look.width, 1)
    return f"x{factor:.2f}, keeps {width * height:.0%}"


def _dropped(look: Thumbnail, reason: str, detail: str) -> Safe:
    size = f"{look.width}x{look.height}" if look.width else ""
    said = redact(detail.partition(": ")[2])
    why = tag("p", tag("span", redact(reason), class_="badge warn"), " ", tag("b", size))
    more = tag("p", said, class_="caption", title=said) if said else None
    return tag("figure", _picture(look, None), tag("figcaption", _name(look), why, more))


def _picture(look: Thumbnail, frame: Safe | None) -> Safe:
    if not look.image:
        return tag("div", tag("span", "no picture", title=redact(look.why)), class_="frame none")
    image = tag("img", src=look.image, alt="", loading="lazy")
    return tag("div", tag("span", image, frame, class_="fit"), class_="frame")


def _name(look: Thumbnail) -> Safe:
    key = redact(look.key)
    return tag("p", short_name(look.key), class_="key", title=key)


def _says(look: Thumbnail) -> Safe | None:
    if not look.captions:
        return None
    first = look.captions[0]
    shown = first if len(first) <= CAPTION else first[: CAPTION - 1] + "…"
    more = f" (+{plural(len(look.captions) - 1, 'caption')})" if len(look.captions) > 1 else ""
    whole = listed(list(look.captions), len(look.captions))
    return tag("p", shown, tag("small", more), class_="caption", title=whole)
