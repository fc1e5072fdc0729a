"""Problems of the samples of backends, each with a fix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from factory.backends.conditioning import ConditioningBackend, is_generated
from factory.backends.image import EvalBackend, SampleBackend
from factory.backends.prepared import PreparedBackend
from factory.catalog.facts import SIZE_DIFFERS, TRANSIENT
from factory.media.format_decoders import NEEDS_EXTRA
from factory.reports.preview import catalog_rows
from factory.reports.preview.backend_counts import batch_of, plan_of
from factory.reports.preview.summary import (
    BackendSummary,
    BucketSummary,
    DroppedSamples,
    Level,
    Problem,
)
from factory.reports.wording import listed, number, percent, plural, short_name, size

# Above this share of the samples a filter does more than take out the odd one.
MANY_DROPPED = 0.1
# Samples that only fill, of all in a pass: from the first on worth a note, from the second on
# a warning, for the backend is then trained on with other weights than its samples'.
MANY_FILLED, VERY_MANY_FILLED = 0.1, 0.25
# A filter is proposed so wide that this share of what it dropped is kept.
NEARLY_ALL = 0.95
# A file that is worth a line: so many times the median, and so many bytes.
HUGE_TIMES, HUGE_BYTES = 20, 32 * 2**20
SHOWN = 3


def sample_problems(
    backends: Sequence[BackendSummary],
    sources: Mapping[str, PreparedBackend],
    batch_size: int,
    short_batch: str,
) -> list[Problem]:
    """Return what is wrong with the samples of backends.

    Args:
        backends: What was counted of them.
        sources: The same, to look at single rows.
        batch_size: Samples of a global batch.
        short_batch: What becomes of a bucket's last batch.
    """
    found: list[Problem] = []
    trained = [b for b in backends if plan_of(sources[b.name])]
    better = better_batch([k.samples for b in trained for k in b.buckets] or [1], batch_size)
    for backend in backends:
        source = sources[backend.name]
        if plan_of(source):
            own = batch_of(source, batch_size)
            other = better if own == batch_size else None
            found += _batches(backend, source, own, short_batch, other)
        found += _drops(backend, source)
        found += _left_over(backend, source)
        found += _enlarged(backend, source)
        found += _huge(backend, source)
    return found + list(_copies(sources))


def better_batch(sizes: Sequence[int], batch_size: int) -> int | None:
    """Return a somewhat smaller batch that fills at most half as much; None if there is none.

    Args:
        sizes: Samples of every bucket of the run.
        batch_size: Samples of a global batch.
    """
    held = np.array(sizes)

    def filled(batch: int) -> int:
        return int((-held % batch).sum())

    # Not below half: steps would be of another kind.
    best = min(range(math.ceil(batch_size / 2), batch_size + 1), key=lambda b: (filled(b), -b))
    return best if best < batch_size and 2 * filled(best) <= filled(batch_size) else None


def _batches(
    backend: BackendSummary,
    source: PreparedBackend,
    batch_size: int,
    short_batch: str,
    better: int | None,
) -> Iterator[Problem]:
    small = [bucket for bucket in backend.buckets if bucket.samples < batch_size]
    if short_batch == "drop":
        yield from _left_out(backend, small, batch_size)
    if short_batch != "fill":
        return
    filled = sum(bucket.filled for bucket in backend.buckets)
    share = filled / (backend.kept + filled)
    if not small and share <= MANY_FILLED:
        return
    if small:
        names = listed([f"{b.name} has {number(b.samples)}" for b in small], SHOWN)
        most = batch_size / min(bucket.samples for bucket in small)
        text = (
            f"too few samples for a batch of {batch_size} in "
            f"{plural(len(small), 'bucket')} ({names}): a sample is used up to {most:.3g} "
            f"times a pass; {number(filled)} of {number(backend.kept + filled)} samples of a "
            f"pass only fill ({percent(share)})"
        )
    else:
        text = (
            f"{number(filled)} of {number(backend.kept + filled)} samples of a pass "
            f"({percent(share)}) are repeats that fill short batches"
        )
    level: Level = "warn" if share > VERY_MANY_FILLED else "note"
    # A few in a rare bucket are no reason to change the batch of the whole run.
    batch = min([b.samples for b in small], default=better) if share > MANY_FILLED else None
    yield Problem(level, backend.name, text, _fuller(backend, source, batch_size, batch))


def _fuller(
    backend: BackendSummary, source: PreparedBackend, batch_size: int, batch: int | None
) -> str:
    """Return how fewer samples would be used to fill; `batch` is a size that helps."""
    lost = sum(bucket.samples % batch_size for bucket in backend.buckets)
    ways = [] if batch is None else [f"data.batch_size={batch}"]
    if source.backend.crop.aspect == "preserve" and len(backend.buckets) > 1:
        ways.append(f"data/crop@data.backends.{backend.name}=closest for fewer shapes")
    elif len(source.backend.crop.aspect_buckets) > 1:
        ways.append("fewer crop.aspect_buckets")
    ways.append(f"sampling.short_batch=drop, which leaves out {number(lost)}")
    return "; or ".join(ways)


def _left_out(
    backend: BackendSummary, small: list[BucketSummary], batch_size: int
) -> Iterator[Problem]:
    lost = sum(bucket.left_out for bucket in backend.buckets)
    share = lost / backend.kept
    if not small and share <= MANY_FILLED:
        return
    text = f"short_batch=drop leaves out {number(lost)} of {plural(backend.kept, 'sample')} a pass"
    text += f" ({percent(share)})"
    if small:
        names = listed([f"{b.name} has {number(b.samples)}" for b in small], SHOWN)
        text += f"; nothing comes of {plural(len(small), 'bucket')} below a batch of {batch_size} "
        text += f"({names})"
    fix = "sampling.short_batch=fill"
    if small:
        fix += f", or data.batch_size={min(bucket.samples for bucket in small)}"
    fix += " (repeats do not help: each pass is cut into batches by itself)"
    yield Problem("warn" if small else "note", backend.name, text, fix)


def _drops(backend: BackendSummary, source: PreparedBackend) -> Iterator[Problem]:
    for dropped in backend.dropped:
        share = dropped.count / backend.found
        text = (
            f"{number(dropped.count)} of {plural(backend.found, 'sample')} ({percent(share)}) "
            f"dropped: {dropped.reason} ({listed(list(dropped.examples), SHOWN)})"
        )
        if dropped.reason.startswith(NEEDS_EXTRA):
            extra = dropped.reason.removeprefix(NEEDS_EXTRA).strip()
            fix = f"pip install 'data-backend-factory[{extra}]'"
        elif dropped.reason in TRANSIENT:
            fix = "nothing, if it passes: they are tried again at the next start"
        elif dropped.reason == SIZE_DIFFERS:
            fix = dropped.advice or "correct the sizes in the table"
        elif dropped.reason == "no caption":
            fix = dropped.advice or "give each sample a caption"
        elif share > MANY_DROPPED:
            fix = _loosened(dropped, source) or dropped.advice or "mend or remove these files"
        else:
            continue
        yield Problem("warn" if share > MANY_DROPPED else "note", backend.name, text, fix)


def _left_over(backend: BackendSummary, source: PreparedBackend) -> Iterator[Problem]:
    """Name what lies beside the samples and is none."""
    if is_generated(source.backend):
        return
    left_out, where = source.catalog.facts.left_out, f"data.backends.{backend.name}"
    for line in left_out.lines():
        taken = f"nothing, if they are no data; {where}.metadata.ignore=[…] says what is ignored"
        other = f"nothing, if they are no {source.backend.what}s; else convert them"
        fix = taken if " ignored as " in line else other
        yield Problem("note", backend.name, f"left out: {line}", fix)


def _loosened(dropped: DroppedSamples, source: PreparedBackend) -> str | None:
    """Return the value of a filter that would keep nearly all it dropped."""
    backend, catalog, reason = source.backend, source.catalog, dropped.reason
    chosen = catalog_rows.dropped_rows(catalog, reason)
    if reason == "minimum_image_size":
        extent = catalog_rows.extent(catalog, chosen, str(backend.resolution_type))
        value = _rounded(float(np.quantile(extent, 1 - NEARLY_ALL)), backend, up=False)
    elif reason in ("maximum_aspect_ratio", "minimum_aspect_ratio"):
        # The limit is held against the target's shape, which follows from all settings.
        changes: dict[str, Any] = {reason: None, "max_samples": None}
        free = replace(backend, **changes).catalog(catalog.facts, 0)
        aspects = catalog_rows.target_aspects(free, chosen)
        if not aspects.size:
            return None  # another filter strikes them too
        if reason == "maximum_aspect_ratio":
            value = math.ceil(100 * float(np.quantile(aspects, NEARLY_ALL))) / 100
        else:
            value = math.floor(100 * float(np.quantile(aspects, 1 - NEARLY_ALL))) / 100
    else:
        return None
    where = f"data.backends.{backend.name}.{reason}"
    return f"{where}={value:g} keeps about {NEARLY_ALL:.0%} of them"


def _rounded(value: float, backend: SampleBackend, *, up: bool) -> float:
    """Round to a whole px, or to a thousandth of a megapixel."""
    scale = 1000 if backend.resolution_type == "area" else 1
    return (math.floor(value * scale) + up) / scale


def _enlarged(backend: BackendSummary, source: PreparedBackend) -> Iterator[Problem]:
    if not backend.enlarged or isinstance(source.backend, ConditioningBackend):
        return
    catalog, settings = source.catalog, source.backend
    found = catalog_rows.enlarged(catalog)
    kind = str(settings.resolution_type)
    least = _rounded(float(catalog_rows.extent(catalog, found.rows, kind).max()), settings, up=True)
    gone = int((catalog_rows.extent(catalog, catalog_rows.kept_rows(catalog), kind) < least).sum())
    share = backend.enlarged / backend.kept
    worst = catalog.facts.key(int(found.rows[found.scale.argmax()]))
    text = (
        f"enlarged, up to {found.scale.max():.3g} times ({short_name(worst)}): "
        f"{number(backend.enlarged)} of {plural(backend.kept, 'sample')} ({percent(share)}) below "
        "the size of the target"
    )
    where = f"data.backends.{backend.name}"
    fix = f"{where}.minimum_image_size={least:g} drops them"
    if gone > backend.enlarged:
        fix += f" and {number(gone - backend.enlarged)} more"
    if gone == backend.kept:
        fix = f"lower {where}.resolution={settings.resolution:g}"
    yield Problem("warn" if share > MANY_DROPPED else "note", backend.name, text, fix)


def _huge(backend: BackendSummary, source: PreparedBackend) -> Iterator[Problem]:
    catalog = source.catalog
    kept = catalog_rows.kept_rows(catalog)
    each = catalog_rows.sizes(catalog.facts, kept)
    huge = kept[each > max(HUGE_TIMES * float(np.median(each)), HUGE_BYTES)]
    if not huge.size:
        return
    held = int(catalog_rows.sizes(catalog.facts, huge).sum())
    shown = [
        f"{short_name(catalog.facts.key(row))} {size(int(catalog_rows.sizes(catalog.facts, row)))}"
        for row in catalog_rows.largest(catalog.facts, huge, SHOWN)
    ]
    text = (
        f"{percent(held / max(int(each.clip(min=0).sum()), 1))} of the bytes are in "
        f"{plural(huge.size, 'file')} above {HUGE_TIMES} times the median ({listed(shown, SHOWN)})"
    )
    width, height = catalog_rows.sides(catalog, huge)
    limit = math.floor(float((width * height).min()) / 1e4 - 1) / 100
    fix = f"shrink them, or metadata.max_megapixels={limit:g} drops what is as large"
    yield Problem("note", backend.name, text, fix)


def _copies(sources: Mapping[str, PreparedBackend]) -> Iterator[Problem]:
    """Find samples of one backend that look the same, and samples validated and trained on."""
    looks = {
        name: catalog_rows.looks(source.catalog.facts, catalog_rows.kept_rows(source.catalog))
        for name, source in sources.items()
        if not isinstance(source.backend, ConditioningBackend)
    }
    for name, table in looks.items():
        groups = catalog_rows.twins(table)
        if groups:
            extra = sum(count - 1 for _, count in groups)
            shown = [f"{short_name(key)} {count} times" for key, count in groups[:SHOWN]]
            text = (
                f"holds copies, it seems: {plural(extra, 'sample')} of the size and etag of "
                f"another ({listed(shown, SHOWN)})"
            )
            yield Problem("note", name, text, "remove the copies, or let them weigh more")
    for held, table in looks.items():
        if not isinstance(sources[held].backend, EvalBackend):
            continue
        for name, other in looks.items():
            same = catalog_rows.shared(table, other) if plan_of(sources[name]) else []
            if same:
                text = (
                    f"also trained on in {name!r}: {plural(len(same), 'sample')} to validate on "
                    f"({listed([short_name(key) for key in same], SHOWN)})"
                )
                yield Problem("warn", held, text, f"take them out of {name!r}")
