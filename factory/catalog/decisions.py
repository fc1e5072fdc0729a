"""Which samples are kept and how they are cut: recomputed from facts at every start."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.catalog.captions import Captions
from factory.catalog.facts import Facts
from factory.media.geometry import DRAWS, REASONS, Geometry
from factory.media.video import Clip

KEPT = "kept"
NO_CAPTION = "no caption"
OVER_LIMIT = "over max_samples"
TOO_SHORT = "too few frames"


@dataclass(frozen=True)
class Bucket:
    """Samples whose target shape is equal.

    Attributes:
        width: Target width, px.
        height: Target height, px.
        rows: Catalog rows of the bucket, ascending, int64 [n].
        frames: Frames of each sample; None for still pictures.
    """

    width: int
    height: int
    rows: NDArray[np.int64]
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
        reason: Index into `reasons` for each row, int32 [n]; 0 is kept.
        reasons: Why rows are dropped; the first is "kept".
        target: Trained size (width, height), px, int32 [n, 2].
        intermediary: Size resized to before the cut (width, height), px, int32 [n, 2].
        crop: Offset of the cut in the resized picture (top, left), px, int32 [n, 2].
        order: Kept rows sorted by bucket, ascending within one, int64 [kept].
        offsets: Where each bucket starts in `order`, int64 [buckets + 1].
        shapes: Target (width, height) of each bucket, widest aspect last.
        frames: Frames of each sample; None for still pictures.
    """

    reason: NDArray[np.int32]
    reasons: tuple[str, ...]
    target: NDArray[np.int32]
    intermediary: NDArray[np.int32]
    crop: NDArray[np.int32]
    order: NDArray[np.int64]
    offsets: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    frames: int | None = None

    @classmethod
    def of(
        cls,
        reasons: "Reasons",
        target: NDArray[np.int32],
        intermediary: NDArray[np.int32],
        crop: NDArray[np.int32],
        frames: int | None = None,
    ) -> "Decisions":
        """Sort what was kept into buckets of equal target shape."""
        order, offsets, shapes = _buckets(target, reasons.code == 0)
        names = tuple(reasons.names)
        return cls(reasons.code, names, target, intermediary, crop, order, offsets, shapes, frames)

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


def decide(
    facts: Facts,
    geometry: Geometry,
    captions: Captions,
    *,
    name: str,
    seed: int = 0,
    max_samples: int | None = None,
    clip: Clip | None = None,
) -> Decisions:
    """Decide for every row: kept or dropped with one reason, its bucket and its cut.

    A pure function: the random choices of a crop depend on the seed and the sample's key.

    Args:
        facts: The catalog, n rows.
        geometry: How targets and cuts follow from sizes.
        captions: The caption strategy; rows that it gives no caption are dropped.
        name: The backend's name; seeds the choice of `max_samples`.
        seed: Seed of random crops.
        max_samples: Keep at most this many samples.
        clip: Which frames of a video are taken; None for still pictures.
    """
    reasons = Reasons(len(facts))
    reasons.mark_texts(facts.table["error"].to_pylist())
    reasons.mark_texts(facts.table["text_error"].to_pylist())
    keys = facts.table["key"].to_pylist()
    measured = reasons.code == 0
    uniform = _uniform(keys, seed) if geometry.uses_random else None
    shapes = geometry.decide(
        np.where(measured, facts.column("width"), 1),
        np.where(measured, facts.column("height"), 1),
        uniform,
    )
    if clip is not None:
        reasons.mark(facts.column("frames") < clip.minimum_frames, TOO_SHORT)
    reasons.mark_codes(shapes.reason, REASONS)
    reasons.mark(captions.silent(facts.table["key"], facts.table["text"]), NO_CAPTION)
    if max_samples is not None:
        chosen = _choose(keys, reasons.code == 0, max_samples, name)
        reasons.mark(~chosen, OVER_LIMIT)
    frames = None if clip is None else clip.frames
    return Decisions.of(reasons, shapes.target, shapes.intermediary, shapes.crop, frames)


class Reasons:
    """Gives each row the first reason that strikes it.

    Attributes:
        names: The reasons so far; the first is "kept".
        code: Index into `names` for each row, int32 [n].
    """

    def __init__(self, rows: int) -> None:
        """Keep every row to begin with."""
        self.names = [KEPT]
        self.code = np.zeros(rows, dtype=np.int32)

    def mark(self, mask: NDArray[np.bool_], name: str) -> None:
        """Drop the marked rows that are still kept."""
        if name not in self.names:
            self.names.append(name)
        self.code[mask & (self.code == 0)] = self.names.index(name)

    def mark_texts(self, errors: list[str | None]) -> None:
        """Drop rows that have an error, by the words before its colon."""
        short = [None if error is None else error.partition(":")[0] for error in errors]
        for name in sorted({text for text in short if text is not None}):
            self.mark(np.array([text == name for text in short], dtype=bool), name)

    def mark_codes(self, codes: NDArray[Any], names: tuple[str, ...]) -> None:
        """Drop rows whose code is not 0, by the code's name."""
        for code in np.unique(codes[codes != 0]).tolist():
            self.mark(codes == code, names[code])


def _uniform(keys: list[str], seed: int) -> NDArray[np.float64]:
    """Return three numbers in [0, 1) for each key, equal on every machine and in every run."""
    import xxhash

    names = [key.encode() for key in keys]
    # Seeds of their own for each run's seed: the next one must not shift the columns by one.
    seeds = range(DRAWS * seed, DRAWS * (seed + 1))
    words = [[xxhash.xxh3_64_intdigest(name, one) for one in seeds] for name in names]
    # 53 bits are what a float64 holds exactly.
    return (np.array(words, dtype=np.uint64).reshape(-1, DRAWS) >> np.uint64(11)) / 2.0**53


def _choose(keys: list[str], kept: NDArray[np.bool_], limit: int, name: str) -> NDArray[np.bool_]:
    """Mark at most `limit` kept rows, chosen by the backend's name as seed.

    The same choice the former system makes: names sorted, shuffled by `random.Random(name)`,
    the first ones taken.
    """
    rows = np.flatnonzero(kept)
    if rows.size <= limit:
        return kept
    ordered = sorted(rows.tolist(), key=keys.__getitem__)
    random.Random(name).shuffle(ordered)  # noqa: S311 - a fixed choice, not a secret
    chosen = np.zeros_like(kept)
    chosen[ordered[:limit]] = True
    return chosen


def _buckets(
    target: NDArray[np.int32], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[tuple[int, int], ...]]:
    rows = np.flatnonzero(kept).astype(np.int64)
    # One number per shape; widths and heights stay far below 2**31.
    shape = target[rows, 0].astype(np.int64) << 32 | target[rows, 1]
    distinct, bucket = np.unique(shape, return_inverse=True)
    order = rows[np.argsort(bucket, kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=len(distinct)))])
    shapes = tuple((int(s >> 32), int(s & 0xFFFFFFFF)) for s in distinct.tolist())
    return order, offsets.astype(np.int64), shapes
