"""SVG charts of the dry run's page, without scripts or libraries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from factory.reports.preview.html import Content, Safe, tag
from factory.reports.preview.summary import BackendSummary, EpochSummary
from factory.reports.wording import number, percent, plural

# Colours of the style sheet for backends; further ones take turns.
COLOURS = 8
# The scatter: edges of the plot, px of its own units, and room for its labels.
PLOT = 420
LEFT, BELOW = 52, 44
MARGIN = 12
RIGHT = 24  # half of the last tick's label
# Ticks are powers of two; more than this many would crowd.
MOST_TICKS = 7


@dataclass(frozen=True)
class ScatterData:
    """Sizes of samples of one backend.

    Attributes:
        name: The backend's name.
        kept: (width, height) of kept samples, px.
        dropped: The same of dropped ones that were measured.
        targets: (width, height) of its buckets.
    """

    name: str
    kept: Sequence[tuple[int, int]]
    dropped: Sequence[tuple[int, int]]
    targets: Sequence[tuple[int, int]]


def colour(place: int) -> str:
    """Return the class that colours the backend at a place."""
    return f"c{place % COLOURS}"


def bar(share: float, kind: str, extra: float = 0.0, mark: float | None = None) -> Safe:
    """Return a bar that fills its box: a share in colour, `extra` hatched, a line at `mark`.

    Args:
        share: Length, 0 to 1.
        kind: Class of its colour.
        extra: Length of the second part, 0 to 1.
        mark: Where a line is drawn; None for none.
    """
    parts = [
        tag("rect", class_="track", x=0, y=0, width=100, height=10),
        tag("rect", class_=kind, x=0, y=0, width=_short(100 * share), height=10),
    ]
    if extra:
        at, wide = _short(100 * share), _short(100 * extra)
        parts.append(tag("rect", class_=f"{kind} more", x=at, y=0, width=wide, height=10))
    if mark is not None:
        at = _short(min(max(100 * mark, 0.4), 99.6))
        parts.append(tag("line", class_="mark", x1=at, y1=-3, x2=at, y2=13))
    return tag(
        "svg", parts, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none",
        aria_hidden="true",
    )  # fmt: skip


def _row(label: Content, drawn: Safe, value: Content, title: str) -> Safe:
    return tag(
        "div", tag("span", label, class_="label"), drawn, tag("span", value, class_="value"),
        class_="row", title=title,
    )  # fmt: skip


def histogram(backend: BackendSummary, place: int, most: int, shown: int) -> Safe:
    """Return the buckets of a backend as bars; hatched is what only fills.

    Args:
        backend: The backend.
        place: Its place among the backends.
        most: Samples that fill the whole width.
        shown: Buckets shown; the rest are counted in one line.
    """
    rows = [
        _row(
            bucket.name,
            bar(bucket.samples / most, colour(place), bucket.filled / most),
            number(bucket.samples),
            f"{bucket.name}: {plural(bucket.samples, 'sample')}, "
            f"{plural(bucket.batches, 'batch')} a pass, {number(bucket.filled)} filled, "
            f"{number(bucket.left_out)} left out",
        )
        for bucket in backend.buckets[:shown]
    ]
    rest = backend.buckets[shown:]
    if rest:
        total = sum(bucket.samples for bucket in rest)
        rows.append(tag("p", f"{plural(len(rest), 'bucket')} more: {number(total)}", class_="dim"))
    return tag("div", rows, class_="bars")


def shares(epoch: EpochSummary, places: dict[str, int]) -> Safe:
    """Return the share of each backend in an epoch, with a line at the share asked for."""
    rows = [
        _row(
            share.backend,
            bar(share.achieved, colour(places[share.backend]), mark=share.asked),
            f"{percent(share.achieved)} of {percent(share.asked)}",
            f"{share.backend}: asks for {percent(share.asked)}, gets {percent(share.achieved)}",
        )
        for share in epoch.shares
    ]
    return tag("div", rows, class_="bars wide")


def sequence(epoch: EpochSummary, places: dict[str, int]) -> Safe:
    """Return which backend serves each of the first steps of an epoch, as a strip."""
    cells: list[Safe] = []
    first = 0
    for step in range(1, len(epoch.begins) + 1):
        name = epoch.begins[first]
        if step < len(epoch.begins) and epoch.begins[step] == name:
            continue
        label = f"step {first + 1}" if step == first + 1 else f"steps {first + 1} to {step}"
        cells.append(
            tag(
                "rect", class_=colour(places[name]), x=first + 0.04, y=0,
                width=_short(step - first - 0.08), height=10,
            )
        )  # fmt: skip
        cells[-1] = tag("g", tag("title", f"{label}: {name}"), cells[-1])
        first = step
    return tag(
        "svg", cells, class_="strip", viewBox=f"0 0 {len(epoch.begins)} 10",
        preserveAspectRatio="none", role="img",
        aria_label=f"backends of the first {len(epoch.begins)} steps",
    )  # fmt: skip


def reasons(backends: Sequence[BackendSummary], places: dict[str, int]) -> Safe | None:
    """Return why samples are dropped, as bars; None if none are."""
    found = [(each.name, drop) for each in backends for drop in each.dropped]
    if not found:
        return None
    most = max(drop.count for _, drop in found)
    rows = [
        _row(
            [tag("b", name), " ", drop.reason],
            bar(drop.count / most, colour(places[name])),
            number(drop.count),
            f"{name}: {drop.reason} ({', '.join(drop.examples)})",
        )
        for name, drop in found
    ]
    return tag("div", rows, class_="bars reasons")


def legend(names: Sequence[str], places: dict[str, int]) -> Safe:
    """Return the names of backends with their colours."""
    items = [tag("li", tag("i", class_=f"dot {colour(places[name])}"), " ", name) for name in names]
    return tag("ul", items, class_="legend")


def scatter(clouds: Sequence[ScatterData], places: dict[str, int]) -> Safe | None:
    """Return widths against heights on logarithmic axes; None if nothing is kept.

    Dots are kept samples, crosses dropped ones, squares the targets of the buckets.
    """
    every = [edge for c in clouds for pair in (*c.kept, *c.targets) for edge in pair]
    if not every:
        return None
    low, high = _bounds(every)

    def along(edge: int) -> float:
        # Dropped samples may lie far outside; they are drawn at the border.
        return min(max(PLOT * (math.log2(edge) - low) / (high - low), 0.0), float(PLOT))

    def at(pair: tuple[int, int]) -> tuple[float, float]:
        return LEFT + along(pair[0]), MARGIN + PLOT - along(pair[1])

    parts: list[Content] = [_axes(low, high)]
    for cloud in clouds:
        kind = colour(places[cloud.name])
        parts.append(tag("g", [_dot(*at(pair)) for pair in cloud.kept], class_=f"{kind} kept"))
        crosses = [_cross(*at(pair)) for pair in cloud.dropped]
        parts.append(tag("g", crosses, class_=f"{kind} gone"))
    targets = {pair for cloud in clouds for pair in cloud.targets}
    parts.append(tag("g", [_square(*at(pair), pair) for pair in sorted(targets)], class_="target"))
    return tag(
        "svg", parts, class_="scatter", role="img", aria_label="width and height of the samples",
        viewBox=f"0 0 {LEFT + PLOT + RIGHT} {MARGIN + PLOT + BELOW}",
    )  # fmt: skip


def _bounds(edges: Sequence[int]) -> tuple[int, int]:
    """Return the powers of two around all edges."""
    low, high = math.floor(math.log2(min(edges))), math.ceil(math.log2(max(edges)))
    return low, max(high, low + 1)


def _axes(low: int, high: int) -> Safe:
    parts: list[Content] = [
        tag("rect", class_="plot", x=LEFT, y=MARGIN, width=PLOT, height=PLOT, rx=4),
        tag("line", class_="even", x1=LEFT, y1=MARGIN + PLOT, x2=LEFT + PLOT, y2=MARGIN),
    ]
    step = math.ceil((high - low) / MOST_TICKS)
    for power in range(low, high + 1, step):
        along = PLOT * (power - low) / (high - low)
        x, y, edge = LEFT + along, MARGIN + PLOT - along, f"{2**power}"
        parts += [
            tag("line", class_="grid", x1=x, y1=MARGIN, x2=x, y2=MARGIN + PLOT),
            tag("line", class_="grid", x1=LEFT, y1=y, x2=LEFT + PLOT, y2=y),
            tag("text", edge, x=x, y=MARGIN + PLOT + 18, text_anchor="middle"),
            tag("text", edge, x=LEFT - 8, y=y + 4, text_anchor="end"),
        ]
    middle, right = MARGIN + PLOT / 2, LEFT + PLOT / 2
    parts += [
        tag("text", "width, px", x=right, y=MARGIN + PLOT + 38, text_anchor="middle"),
        tag(
            "text", "height, px", x=12, y=middle, text_anchor="middle",
            transform=f"rotate(-90 12 {middle})",
        ),
    ]  # fmt: skip
    return tag("g", parts, class_="axes")


def _dot(x: float, y: float) -> Safe:
    return tag("circle", cx=_short(x), cy=_short(y), r=3.5)


def _cross(x: float, y: float) -> Safe:
    return tag("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8")


def _square(x: float, y: float, pair: tuple[int, int]) -> Safe:
    box = tag("rect", x=_short(x - 6), y=_short(y - 6), width=12, height=12)
    return tag("g", tag("title", f"target {pair[0]}x{pair[1]}"), box)


def _short(value: float) -> str:
    """Return a coordinate with as many digits as are seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
