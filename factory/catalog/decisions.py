"""Decisions, recomputed from facts at every start: what is kept or dropped, and the bucket."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, as_mask
from factory.catalog.captions.sources import Captions
from factory.catalog.crops import draws
from factory.catalog.facts import Facts
from factory.catalog.row_filters import RowFilter
from factory.media.geometry.geometry import REASONS, Geometry
from factory.media.video import Clip

KEPT = "kept"
NO_CAPTION = "no caption"
OVER_LIMIT = "over max_samples"
TOO_SHORT = "too few frames"

# Most buckets a backend may have; their numbers are sorted as 16-bit integers, which is ten
# times quicker than sorting shapes.
MAX_BUCKETS = 2**16


# Largest table of edges that is made to tell shapes apart, entries: targets to 8192 px, 320 MB.
_TABLE = 2**26


@dataclass(frozen=True)
class Bucket:
    """Samples whose target shape is equal.

    Attributes:
        width: Target width, px.
        height: Target height, px.
        rows: Catalog rows of the bucket, ascending, int64 or uint32 [n].
        frames: Frames of each sample; None for still pictures.
    """

    width: int
    height: int
    rows: NDArray[Any]
    frames: int | None = None

    @property
    def name(self) -> str:
        """The target shape as "WIDTHxHEIGHT", or "WIDTHxHEIGHT@FRAMES" of clips."""
        length = "" if self.frames is None else f"@{self.frames}"
        return f"{self.width}x{self.height}{length}"


@dataclass(frozen=True)
class Decisions:
    """What is done with each row of a catalog of n rows.

    Attributes:
        reason: Index into `reasons` for each row, uint8 [n]; 0 is kept.
        reasons: Why rows are dropped; the first is "kept".
        order: Kept rows sorted by bucket, ascending within one, uint32 or int64 [kept].
        offsets: Where each bucket starts in `order`, int64 [buckets + 1].
        shapes: Target (width, height) of each bucket, widest last.
        frames: Frames of each sample; None for still pictures.
    """

    reason: NDArray[np.uint8]
    reasons: tuple[str, ...]
    order: NDArray[Any]
    offsets: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    frames: int | None = None

    @property
    def kept(self) -> int:
        """Number of rows kept."""
        return int(self.order.size)

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets, in the order of `offsets`."""
        spans = zip(self.offsets[:-1], self.offsets[1:], self.shapes, strict=True)
        return [Bucket(w, h, self.order[i:j], self.frames) for i, j, (w, h) in spans]

    def dropped(self) -> dict[str, int]:
        """Return how many rows were dropped for each reason, most first."""
        counts = np.bincount(self.reason, minlength=len(self.reasons))
        pairs = zip(self.reasons[1:], counts[1:].tolist(), strict=True)
        return dict(sorted((p for p in pairs if p[1]), key=lambda pair: -pair[1]))

    def without(self, rows: NDArray[np.bool_], name: str) -> "Decisions":
        """Return the same decisions with some more rows dropped for a reason."""
        reasons = Reasons.of(self)
        reasons.mark(rows, name)
        return self.keeping(reasons)

    def keeping(self, reasons: "Reasons") -> "Decisions":
        """Return the same buckets without the rows that further reasons drop."""
        left = reasons.code[self.order] == 0
        ends = np.concatenate([[0], np.cumsum(left, dtype=np.int64)])
        offsets = ends[self.offsets]
        full = np.diff(offsets) > 0
        return Decisions(
            reasons.code,
            tuple(reasons.names),
            self.order[left],
            np.concatenate([[0], offsets[1:][full]]).astype(np.int64),
            tuple(shape for shape, some in zip(self.shapes, full, strict=True) if some),
            self.frames,
        )


class Reasons:
    """Gives each row the first reason that strikes it.

    Attributes:
        names: The reasons so far; the first is "kept".
        code: Index into `names` for each row, uint8 [n].
    """

    def __init__(self, rows: int, names: Sequence[str] = (KEPT,)) -> None:
        """Keep every row to begin with."""
        self.names = list(names)
        self.code = np.zeros(rows, dtype=np.uint8)

    @classmethod
    def of(cls, made: Decisions) -> "Reasons":
        """Begin with the reasons of decisions, which stay as they are."""
        reasons = cls(made.reason.size, made.reasons)
        reasons.code[:] = made.reason
        return reasons

    def mark(self, mask: NDArray[np.bool_], name: str, first: int = 0) -> None:
        """Drop the marked rows that are still kept; the mask begins with row `first`."""
        if mask.any():
            part = self.code[first : first + len(mask)]
            part[mask & (part == 0)] = self._code(name)

    def mark_texts(self, errors: Column, first: int = 0) -> None:
        """Drop rows that have an error, by the words before its colon."""
        if errors.null_count == len(errors):
            return
        rows = np.flatnonzero(as_mask(pc.is_valid(errors)))
        texts = errors.take(pa.array(rows)).to_pylist()
        short = np.array([text.partition(":")[0] for text in texts], dtype=object)
        for name in sorted(set(short)):
            mask = np.zeros(len(errors), dtype=bool)
            mask[rows[short == name]] = True
            self.mark(mask, str(name), first)

    def mark_codes(self, codes: NDArray[Any], names: tuple[str, ...], first: int = 0) -> None:
        """Drop rows whose code is not 0, by the code's name."""
        for code in np.unique(codes[codes != 0]).tolist():
            self.mark(codes == code, names[code], first)

    def _code(self, name: str) -> int:
        if name not in self.names:
            # The last code there is stands for all reasons that come after.
            if len(self.names) >= np.iinfo(self.code.dtype).max:
                name = "other"
            if name not in self.names:
                self.names.append(name)
        return self.names.index(name)


class Buckets:
    """Gives each shape a number, in the order shapes are met, and sorts rows by bucket."""

    def __init__(self, rows: int) -> None:
        """Start without a bucket."""
        self._number = np.zeros(rows, dtype=np.uint16)
        self._shapes: dict[int, int] = {}

    def put(self, target: NDArray[np.int32], first: int) -> None:
        """Note the target sizes [n, 2] of the rows from `first` on.

        Raises:
            ValueError: There are more shapes than buckets may be.
        """
        distinct, place = _distinct(target)
        for one in distinct.tolist():
            self._shapes.setdefault(one, len(self._shapes))
        if len(self._shapes) > MAX_BUCKETS:
            raise ValueError(
                f"more than {MAX_BUCKETS} target shapes; raise data.alignment, or set "
                "crop_aspect_buckets with data/crop=closest"
            )
        numbers = np.array([self._shapes[one] for one in distinct.tolist()], dtype=np.uint16)
        self._number[first : first + len(target)] = numbers[place]

    def decisions(self, reasons: Reasons, frames: int | None) -> Decisions:
        """Sort what was kept by bucket, the buckets by their shape."""
        shapes = np.array(list(self._shapes), dtype=np.int64)
        place = np.argsort(shapes)
        new_number = np.empty(len(shapes), dtype=np.uint16)
        new_number[place] = np.arange(len(shapes), dtype=np.uint16)
        kind = np.uint32 if len(reasons.code) < 2**32 else np.int64
        rows = np.flatnonzero(reasons.code == 0).astype(kind)
        number = new_number[self._number[rows]] if len(shapes) else self._number[rows]
        # Of 16-bit numbers the stable sort is a radix sort: two passes, whatever the order.
        order = rows[np.argsort(number, kind="stable")]
        counts = np.bincount(number, minlength=len(shapes))
        full = counts > 0
        offsets = np.concatenate([[0], np.cumsum(counts[full])]).astype(np.int64)
        sizes = [(int(s >> 32), int(s & 0xFFFFFFFF)) for s in shapes[place][full].tolist()]
        return Decisions(reasons.code, tuple(reasons.names), order, offsets, tuple(sizes), frames)


def _distinct(target: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the distinct sizes as width << 32 | height, ascending, and each row's place there.

    Targets are few and small, so a table over all products of edges finds them without sorting.
    """
    wide, tall = target[:, 0].astype(np.int64), target[:, 1]
    rows = int(tall.max(initial=0)) + 1
    if not len(target) or (int(wide.max()) + 1) * rows > _TABLE:
        found, place = np.unique(wide << 32 | tall, return_inverse=True)
        return found, place
    code = wide * rows + tall
    seen = np.zeros((int(wide.max()) + 1) * rows, dtype=bool)
    seen[code] = True
    codes = np.flatnonzero(seen)
    number = np.zeros(len(seen), dtype=np.uint32)
    number[codes] = np.arange(len(codes), dtype=np.uint32)
    return codes // rows << 32 | codes % rows, number[code]


def decide(
    facts: Facts,
    geometry: Geometry,
    captions: Captions,
    *,
    name: str,
    seed: int = 0,
    max_samples: int | None = None,
    clip: Clip | None = None,
    filters: Sequence[RowFilter] = (),
) -> Decisions:
    """Decide for every row: kept or dropped with one reason, and its bucket.

    A pure function: the random choices of a crop depend on the seed and the sample's key. Rows
    are worked on in parts, so that memory stays at a few bytes a row.

    Args:
        facts: The catalog, n rows.
        geometry: How targets and cuts follow from sizes.
        captions: The caption strategy; rows that it gives no caption are dropped.
        name: The backend's name; seeds the choice of `max_samples`.
        seed: Seed of random crops.
        max_samples: Keep at most this many samples.
        clip: Which frames of a video are taken; None for still pictures.
        filters: Conditions on columns of the samples' table.

    Raises:
        TableError: A filter's column cannot be compared with its condition.
    """
    reasons, buckets = Reasons(len(facts)), Buckets(len(facts))
    for first, rows in facts.chunks():
        reasons.mark_texts(rows["error"], first)
        reasons.mark_texts(rows["text_error"], first)
        measured = reasons.code[first : first + rows.num_rows] == 0
        mark_filtered(reasons, rows, filters, first)
        if clip is not None:
            reasons.mark(_numbers(rows, "frames") < clip.minimum_frames, TOO_SHORT, first)
        _shape(rows, measured, geometry, seed, reasons, buckets, first)
        silent = captions.silent(_column(rows, "key"), _column(rows, "text"))
        reasons.mark(silent, NO_CAPTION, first)
    if max_samples is not None:
        chosen = _choose(reasons.code == 0, max_samples, name)
        reasons.mark(~chosen, OVER_LIMIT)
    return buckets.decisions(reasons, None if clip is None else clip.frames)


def mark_filtered(
    reasons: Reasons, rows: pa.RecordBatch, filters: Sequence[RowFilter], first: int
) -> None:
    """Drop the rows of one part, which begins with row `first`, that fail a condition."""
    for one in filters:
        reasons.mark(~one.keeps(_column(rows, f"column.{one.column}")), one.reason, first)


def _shape(
    rows: pa.RecordBatch,
    measured: NDArray[np.bool_],
    geometry: Geometry,
    seed: int,
    reasons: Reasons,
    buckets: Buckets,
    first: int,
) -> None:
    """Put the rows of one part into buckets, and drop those whose size or shape is refused."""
    width, height = _numbers(rows, "width"), _numbers(rows, "height")
    if not measured.all():
        width, height = np.where(measured, width, 1), np.where(measured, height, 1)
    targets = geometry.targets(width, height, draws(geometry, rows["key"], seed))
    reasons.mark_codes(targets.reason, REASONS, first)
    buckets.put(targets.target, first)


def _column(rows: pa.RecordBatch, name: str) -> pa.ChunkedArray:
    return pa.chunked_array([rows[name]])


def _numbers(rows: pa.RecordBatch, name: str) -> NDArray[Any]:
    return np.asarray(rows[name].to_numpy(zero_copy_only=False))


def _choose(kept: NDArray[np.bool_], limit: int, name: str) -> NDArray[np.bool_]:
    """Mark at most `limit` kept rows, chosen by the backend's name as seed.

    The same choice the former system makes: names sorted, shuffled by `random.Random(name)`,
    the first ones taken. Facts are sorted by key, so their rows are.
    """
    rows = np.flatnonzero(kept)
    if rows.size <= limit:
        return kept
    ordered = rows.tolist()
    random.Random(name).shuffle(ordered)  # noqa: S311 - a fixed choice, not a secret
    chosen = np.zeros_like(kept)
    chosen[ordered[:limit]] = True
    return chosen
