"""Counts and costs of each backend for the dry run."""

import numpy as np

from factory.backends.conditioning import ConditioningBackend, is_generated
from factory.backends.embeddings import PictureEmbedBackend
from factory.backends.image import EvalBackend, ImageBackend
from factory.backends.prepared import PreparedBackend
from factory.catalog.scan.discovery import Discovery
from factory.errors import StorageError
from factory.media.formats.png import TAIL_BYTES
from factory.reports.preview import catalog_rows
from factory.reports.preview.summary import (
    BackendCosts,
    BackendSummary,
    BucketSummary,
    CaptionSummary,
    DroppedSamples,
    PlanSummary,
)
from factory.reports.wording import place, redact, short_name
from factory.storage.base import TabularStorage
from factory.workspace import Workspace

# Names shown for each backend and for each reason of dropping.
EXAMPLES = 3


def batch_of(source: PreparedBackend, batch_size: int) -> int:
    """Return the samples of a backend's global batches, its own or the run's."""
    backend = source.backend
    own = backend.batch_size if isinstance(backend, ImageBackend) else None
    return own or batch_size


def count(
    source: PreparedBackend,
    batch_size: int,
    short_batch: str,
    plan: PlanSummary | None,
    cache: Workspace,
) -> BackendSummary:
    """Return what a backend holds and costs.

    Args:
        source: The backend, decided.
        batch_size: Samples of a global batch.
        short_batch: What becomes of a bucket's last batch.
        plan: The plan; None where there can be none.
        cache: Where facts are published.
    """
    catalog, backend = source.catalog, source.backend
    kept, made = catalog_rows.kept_rows(catalog), is_generated(source.backend)
    # Eval batches are never filled up, and conditioning follows its source's batches.
    mode = short_batch if plan_of(source) else "short"
    found = (bucket_of(b.name, b.width, b.height, b.frames, len(b.rows), batch_size, mode)
             for b in catalog.decisions.buckets)  # fmt: skip
    return BackendSummary(
        name=source.name,
        kind=type(backend).__name__.removesuffix("Backend").lower(),
        where=_where(source),
        # What is generated has no files, and is lost with its source's samples alone.
        found=len(catalog) if made else len(catalog.facts),
        kept=len(catalog),
        bytes=0 if made else catalog_rows.total(catalog.facts, kept),
        dropped=() if made else tuple(_dropped(source)),
        buckets=tuple(sorted(found, key=lambda b: (-b.samples, b.width, b.height))),
        enlarged=int(catalog_rows.enlarged(catalog).rows.size),
        examples=_names(source, kept),
        costs=_costs(source, kept, plan, cache),
    )


def _where(source: PreparedBackend) -> str:
    storage, prefix = source.backend.storage, source.backend.prefix
    # A table's rows lie in no folder.
    return place(storage.identity, "" if isinstance(storage, TabularStorage) else prefix)


def plan_of(source: PreparedBackend) -> bool:
    """Tell whether a source is trained on in batches of its own."""
    return not isinstance(source.backend, EvalBackend | ConditioningBackend)


def bucket_of(
    name: str,
    width: int,
    height: int,
    frames: int | None,
    samples: int,
    batch_size: int,
    short_batch: str,
) -> BucketSummary:
    """Count the batches of a bucket in one pass."""
    batches, rest = divmod(samples, batch_size)
    cut = short_batch == "drop"
    filled = batch_size - rest if rest and short_batch == "fill" else 0
    if rest and not cut:
        batches += 1
    return BucketSummary(
        name, width, height, frames or 1, samples, batches, filled, rest if cut else 0
    )


def _dropped(source: PreparedBackend) -> list[DroppedSamples]:
    advice = source.backend.advice()
    return [
        DroppedSamples(
            redact(reason),
            number,
            _names(source, catalog_rows.dropped_rows(source.catalog, reason)),
            advice.get(reason),
        )
        for reason, number in source.catalog.decisions.dropped().items()
    ]


def _names(source: PreparedBackend, chosen: catalog_rows.Rows) -> tuple[str, ...]:
    facts = source.catalog.facts
    return tuple(short_name(facts.key(row)) for row in chosen[:EXAMPLES].tolist())


def _costs(
    source: PreparedBackend, kept: catalog_rows.Rows, plan: PlanSummary | None, cache: Workspace
) -> BackendCosts:
    stored, mode = source.latents is not None, source.encode_mode
    ahead, stays = stored and mode.ahead, stored and mode.keeps
    # Latents and image embeddings, each of which reads every sample before the first step.
    encoded = ahead + (source.vision is not None)
    once = catalog_rows.total(source.catalog.facts, kept)
    given = _given(source, plan)
    # What is kept for an epoch, or from one to the next, is read once in it.
    read = min(given, int(kept.size)) if stays else given
    per_sample = None if once is None else once / max(kept.size, 1)
    latents = _rows_bytes(source, source.latents) if stays else 0
    embeds = _rows_bytes(source, source.vision)
    space = None if latents is None or embeds is None else latents + embeds
    return BackendCosts(
        *_scan_costs(source),
        encode_requests=int(kept.size) * encoded,
        encode_bytes=0 if not encoded else None if once is None else once * encoded,
        epoch_requests=0 if ahead else read,
        epoch_bytes=0 if ahead else None if per_sample is None else round(per_sample * read),
        epoch_cache_bytes=None if space is None else round(space / max(kept.size, 1) * given),
        latents_bytes=latents,
        image_embeds_bytes=embeds,
        catalog_bytes=_catalog_bytes(source, cache),
        encode_mode=str(mode) if stored else None,
    )


def _given(source: PreparedBackend, plan: PlanSummary | None) -> int:
    """Count the samples a backend gives in an epoch; of an eval backend, in a validation."""
    if plan is None or isinstance(source.backend, EvalBackend):
        return len(source.catalog)
    name = source.name
    if isinstance(source.backend, ConditioningBackend):
        name = source.backend.source
    shares = {share.backend: share.samples for share in plan.epochs[0].shares}
    return shares.get(name, len(source.catalog))


def _scan_costs(source: PreparedBackend) -> tuple[int, int | None]:
    """Return reads of a first scan, and their bytes at most."""
    if is_generated(source.backend):
        return 0, 0
    facts, metadata = source.catalog.facts, source.backend.metadata
    if not isinstance(metadata, Discovery):
        return 1, None  # one table, of a size the facts do not tell
    every = catalog_rows.sizes(facts, catalog_rows.all_rows(facts))
    known = bool((every >= 0).all())
    further = 0
    if known and not metadata.verify and not source.backend.medium.whole:
        head = source.backend.storage.head_bytes
        # Orientation may stand behind the pixels of a PNG: its end is a read of its own, but in
        # small ones, whose pixels are mostly one chunk, which tells that they are the last.
        large = catalog_rows.of_format(facts, "PNG") & (every > TAIL_BYTES)
        further = int(large.sum())
        ends = (every[large] - head).clip(max=TAIL_BYTES)
        every = np.append(every.clip(max=head), ends)
    sidecars = catalog_rows.count_present(facts, "text_etag")
    return len(facts) + further + sidecars, int(every.sum()) if known else None


def _rows_bytes(source: PreparedBackend, store: PictureEmbedBackend | None) -> int | None:
    """Return the space a source's rows take in a store; None where its encoder cannot tell."""
    if store is None:
        return 0
    buckets = source.catalog.decisions.buckets
    parts = [store.row_bytes(b.width, b.height, b.frames or 1) for b in buckets]
    if any(part is None for part in parts):
        return None
    return sum((part or 0) * len(b.rows) for part, b in zip(parts, buckets, strict=True))


def _catalog_bytes(source: PreparedBackend, cache: Workspace) -> int | None:
    if is_generated(source.backend):
        return 0
    try:
        return cache.storage.head(cache.catalog_key(source.name)).size
    except StorageError:
        return None


def count_texts(sources: list[PreparedBackend]) -> CaptionSummary:
    """Count the captions of backends, and the space of their embeddings."""
    told = [s for s in sources if not isinstance(s.backend, ConditioningBackend)]
    found, exact = catalog_rows.captions(source.catalog for source in told)
    encoded = [source for source in told if source.text is not None]
    stores = {s.text.name: s.text for s in encoded if s.text and s.encode_text_mode.keeps}
    if not stores:
        return CaptionSummary(found, exact, 0, encoded=bool(encoded))
    each = [store.row_bytes() for store in stores.values()]
    # One more for the empty caption that a dropped one becomes. With several stores the
    # widest rows count for all captions: an upper bound.
    most = None if None in each else max(part or 0 for part in each) * (found + 1)
    return CaptionSummary(found, exact, most, encoded=True)
