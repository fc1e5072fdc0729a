"""Bucket geometry: target size, intermediary size and crop of a picture, from its own size.

A picture is scaled to its *intermediary* size, which keeps its proportions and covers the
target, and is then cut to its *target* size. Pictures of equal target form a bucket. Every
target is a function of the picture's own size and the settings, so buckets depend neither on
the order of the samples nor on what was seen before.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from factory.media.geometry.aspect_ratio import (
    DEFAULT_ROUNDING,
    AspectBuckets,
    Bools,
    Floats,
    Ints,
    aspect_label,
    digits_of,
    scaled,
    whole_decimals,
)
from factory.media.geometry.target_size import INT32_MAX, Sizes, TargetRule, cover, cover_square
from factory.media.geometry.validation import CropAspect, CropStyle, ResolutionType, problems_of

# Why a row is not kept, by the code in `Shapes.reason`. A row that fails several checks has the
# one that comes first here.
REASONS: tuple[str, ...] = (
    "kept",
    "geometry_error",
    "minimum_image_size",
    "minimum_aspect_ratio",
    "maximum_aspect_ratio",
)
_KEPT, _ERROR, _SMALL, _NARROW, _WIDE = range(len(REASONS))

# Columns of uniform numbers that a row's random choices use: aspect, top, left.
DRAWS = 3
# Rows worked on at a time: some thirty columns of this many numbers stay in a 2 MB cache.
_CHUNK = 8192
# Ratios worked out beforehand when there are more rows than one chunk: with labels of two
# decimals, all up to 40:1, upright and not.
_TABLE = 8192

Focus = NDArray[np.float32]


@dataclass(frozen=True)
class Targets:
    """Which size each of n pictures is trained at, and whether it is kept.

    Rows that are not kept have sizes too, except those of reason "geometry_error": zeros.

    Attributes:
        target: Width and height after the cut, px, int32 [n, 2]; this is the bucket.
        aspect: The bucket's label: target width/height, rounded, float64 [n].
        reason: Index into `REASONS`, uint8 [n]; 0 is kept.
    """

    target: NDArray[np.int32]
    aspect: Floats
    reason: NDArray[np.uint8]

    @classmethod
    def empty(cls, rows: int) -> "Targets":
        """Return targets of so many rows, yet to be filled."""
        target = np.empty((rows, 2), dtype=np.int32)
        return cls(target, np.empty(rows), np.empty(rows, dtype=np.uint8))


@dataclass(frozen=True)
class Shapes(Targets):
    """How each of n pictures is scaled and cut, and whether it is kept.

    Attributes:
        intermediary: Width and height before the cut, px, int32 [n, 2].
        crop: Top and left of the cut in the intermediary, px, int32 [n, 2].
    """

    intermediary: NDArray[np.int32]
    crop: NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int) -> "Shapes":
        """Return shapes of so many rows, yet to be filled."""
        target, intermediary, crop = np.empty((3, rows, 2), dtype=np.int32)
        reason = np.empty(rows, dtype=np.uint8)
        return cls(target, np.empty(rows), reason, intermediary, crop)


@dataclass(frozen=True)
class _Choices:
    """Sizes of k ratios, and whether their labels are within the limits (uint8 [k])."""

    sizes: Sizes
    reason: NDArray[np.uint8]

    def take(self, keys: Ints) -> "_Choices":
        """Return those of the keys, each below k."""
        return _Choices(self.sizes.take(keys), self.reason.take(keys, mode="clip"))


@dataclass(frozen=True)
class _Rows:
    """Some neighbouring rows: their edges (1 where invalid), sizes, and which are valid."""

    part: slice
    w: Ints
    h: Ints
    sizes: Sizes
    valid: Bools | None  # None: all of them


@dataclass(frozen=True)
class Geometry:
    """Settings that turn sizes into targets.

    Attributes:
        resolution: Short edge in px ("pixel"), megapixels ("area"), or the edge in px of the
            square of equal area ("pixel_area").
        resolution_type: The unit of `resolution` and of the three image sizes.
        alignment: Target edges are multiples of this, px.
        aspect_rounding: Decimals of aspect labels; -1 means the default of 2.
        crop_aspect: Shape of the target: the picture's own, a square, or the closest or a
            random one of `crop_aspect_buckets`.
        crop_style: Place of the cut: "center" (or "centre"), "random", "corner" (top left), or
            "face": around the focus where there is one, else random.
        crop_aspect_buckets: Ratios width/height, or mappings of "aspect" and "weight".
        crop_aspect_weights: How likely a random choice is each ratio, summing to 1; empty means
            all alike. Filled from `crop_aspect_buckets` where those have weights.
        max_upscale_threshold: A random choice leaves out ratios whose target has an edge above
            (1 + this) times the picture's; where none is left, the target is a square.
        minimum_image_size: Smaller pictures are dropped: both edges ("pixel"), or the area.
        maximum_image_size: Larger pictures (either edge with "pixel", or the area) are shrunk
            to `target_downsample_size` before the cut.
        target_downsample_size: Their size then, in the same unit as `resolution`. It is never
            an enlargement, and never below what covers the target.
        minimum_aspect_ratio: Least label of a bucket, inclusive.
        maximum_aspect_ratio: Greatest label of a bucket, inclusive.
        maximum_canvas: Largest area of a target, megapixels.
        aspect_sizes: Forced targets (width, height), px, by the label they replace.
    """

    resolution: float
    resolution_type: ResolutionType = "pixel_area"
    alignment: int = 64
    aspect_rounding: int = DEFAULT_ROUNDING
    crop_aspect: CropAspect = "preserve"
    crop_style: CropStyle = "center"
    crop_aspect_buckets: Sequence[Any] = ()
    crop_aspect_weights: tuple[float, ...] = ()
    max_upscale_threshold: float | None = None
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None
    maximum_canvas: float | None = None
    aspect_sizes: Mapping[Any, Sequence[int]] | Sequence[tuple[float, tuple[int, int]]] = ()

    def __post_init__(self) -> None:
        """Check every setting, and bring those with several spellings to one.

        Raises:
            ValueError: Names each setting that is wrong, what was given and what is allowed.
        """
        put = object.__setattr__
        if self.crop_style == "centre":
            put(self, "crop_style", "center")
        if self.crop_aspect_weights:
            weights = (*self.crop_aspect_weights, *(None,) * len(self.crop_aspect_buckets))
            pairs = zip(self.crop_aspect_buckets, weights, strict=False)
            entries: Any = tuple({"aspect": ratio, "weight": weight} for ratio, weight in pairs)
            put(self, "crop_aspect_buckets", entries)
        problems = list(problems_of(self))
        if problems:
            raise ValueError("; ".join(problems))
        put(self, "crop_aspect_buckets", tuple(self.crop_aspect_buckets))
        buckets = AspectBuckets.of(self.crop_aspect_buckets)
        put(self, "crop_aspect_buckets", buckets.ratios)
        put(self, "crop_aspect_weights", buckets.weights)
        forced = dict(self.aspect_sizes).items()
        put(self, "aspect_sizes", tuple((float(label), tuple(size)) for label, size in forced))

    @property
    def uses_random(self) -> bool:
        """Whether decisions depend on the uniform numbers."""
        return self.crop_aspect == "random" or self.crop_style in ("random", "face")

    @property
    def uses_focus(self) -> bool:
        """Whether decisions depend on the focus."""
        return self.crop_style == "face"

    @property
    def square_edge(self) -> int:
        """Edge of square targets, aligned and within the canvas, px."""
        return self._rule.square_edge

    def targets(
        self,
        width: NDArray[Any],
        height: NDArray[Any],
        uniform: Floats | None = None,
        focus: Focus | None = None,
    ) -> Targets:
        """Decide about n pictures at once, leaving out how they are cut.

        They are the targets that `decide` gives for the same arguments.

        Args:
            width: Widths after orientation, px, integers [n].
            height: Heights after orientation, px, integers [n].
            uniform: See `decide`; may be None where the aspect is not random.
            focus: See `decide`; changes no target.

        Raises:
            ValueError: The arrays do not fit together, or `uniform` is wanted and absent.
        """
        wanted = self.crop_aspect == "random"
        _check_arrays(len(width), height, uniform, focus, wanted)
        made = Targets.empty(len(width))
        for _ in self._rows(width, height, uniform, made):
            pass
        return made

    def decide(
        self,
        width: NDArray[Any],
        height: NDArray[Any],
        uniform: Floats | None = None,
        focus: Focus | None = None,
    ) -> Shapes:
        """Decide about n pictures at once.

        Args:
            width: Widths after orientation, px, integers [n].
            height: Heights after orientation, px, integers [n].
            uniform: Numbers in [0, 1), float64 [n, 3]: for the choice of the aspect, of the
                top and of the left of the cut. May be None where nothing is random.
            focus: What the cut is centred on with crop_style "face": x and y as fractions of
                the oriented picture, float32 [n, 2]; NaN, or None for all, means nothing.

        Raises:
            ValueError: The arrays do not fit together, or `uniform` is wanted and absent.
        """
        _check_arrays(len(width), height, uniform, focus, self.uses_random)
        made = Shapes.empty(len(width))
        for rows in self._rows(width, height, uniform, made):
            part = rows.part
            between = self._intermediary(rows)
            spare = [between[axis] - rows.sizes.target[:, axis] for axis in (0, 1)]
            cut = self._crop(spare, None if uniform is None else uniform[part])
            if self.uses_focus and focus is not None:
                _centre_on(cut, focus[part], between, rows.sizes.target)
            for axis in (0, 1):
                made.intermediary[part, axis] = between[axis]
                made.crop[part, axis] = cut[axis]
            if rows.valid is not None:
                made.intermediary[part][~rows.valid] = 0
                made.crop[part][~rows.valid] = 0
        return made

    def available(self, width: NDArray[Any], height: NDArray[Any]) -> Bools:
        """Return which of `crop_aspect_buckets` each picture may have, bool [n, ratios].

        Those whose target enlarges it by no more than `max_upscale_threshold` on both edges.
        """
        count, limit = len(self.crop_aspect_buckets), self.max_upscale_threshold
        if limit is None:
            return np.ones((len(width), count), dtype=np.bool_)
        targets = self._choices(np.arange(2 * count)).sizes.target.reshape(count, 2, 2)
        upright = (width < height).astype(np.int64)
        fits_w = targets[:, :, 0].T[upright] <= (width * (1 + limit))[:, None]
        fits_h = targets[:, :, 1].T[upright] <= (height * (1 + limit))[:, None]
        return np.asarray(fits_w & fits_h)

    def _rows(
        self, width: NDArray[Any], height: NDArray[Any], uniform: Floats | None, made: Targets
    ) -> Iterator[_Rows]:
        """Fill in the targets, and yield the rows they belong to, a chunk at a time."""
        count, table = len(width), self._table(len(width))
        for start in range(0, count, _CHUNK):
            part = slice(start, min(start + _CHUNK, count))
            w, h, valid = _edges(width[part], height[part])
            keys = self._keys(w, h, None if uniform is None else uniform[part])
            if table is not None and keys.max() < len(table.reason):
                chosen = table.take(keys)
            else:
                chosen = self._choices(keys)
            sizes, reason = chosen.sizes, chosen.reason
            if self.minimum_image_size is not None:
                reason[self._too_small(w, h)] = _SMALL
            bad = (sizes.label == 0) | _overflows(w, h, sizes)
            if valid is not None or bad.any():
                valid = ~bad if valid is None else valid & ~bad
                sizes = _without(sizes, ~valid)
                reason[~valid] = _ERROR
            made.target[part], made.aspect[part] = sizes.target, sizes.label
            made.reason[part] = reason
            yield _Rows(part, w, h, sizes, valid)

    def _keys(self, w: Ints, h: Ints, uniform: Floats | None) -> Ints:
        """Return what a target follows from: the ratio's number, and whether upright."""
        if self.crop_aspect == "square":
            code = np.zeros(len(w), dtype=np.int64)
        elif self.crop_aspect == "random" and uniform is not None:
            limited = self.max_upscale_threshold is not None
            available = self.available(w, h) if limited else None
            code = self._buckets.drawn(uniform[:, 0], available)
        else:
            code = whole_decimals(w / h, digits_of(self.aspect_rounding)).astype(np.int64)
        code *= 2
        if self.resolution_type == "pixel":
            code += w < h
        return code

    def _ratios(self, code: Ints) -> Floats:
        """Return the ratios that numbers stand for, float64 [k]; 0.0 has no target."""
        if self.crop_aspect == "square":
            return np.ones(len(code))
        if self.crop_aspect == "random":
            return np.asarray(np.append(self._buckets.ratios, 1.0)[code])
        own = code / 10.0 ** digits_of(self.aspect_rounding)
        return self._buckets.closest(own) if self.crop_aspect == "closest" else own

    def _choices(self, keys: Ints) -> _Choices:
        """Work out the targets of some keys."""
        sizes = self._rule.sizes(self._ratios(keys >> 1), (keys & 1).astype(np.bool_))
        reason = np.zeros(len(keys), dtype=np.uint8)
        # The last assignment wins, so the first reason comes last.
        if self.maximum_aspect_ratio is not None:
            reason[sizes.label > self.maximum_aspect_ratio] = _WIDE
        if self.minimum_aspect_ratio is not None:
            reason[sizes.label < self.minimum_aspect_ratio] = _NARROW
        return _Choices(sizes, reason)

    def _table(self, rows: int) -> _Choices | None:
        """Return the targets of all keys below some number, where that saves work."""
        if self.crop_aspect in ("square", "random"):
            return self._choices(np.arange(2 * len(self.crop_aspect_buckets) + 2))
        return self._choices(np.arange(_TABLE)) if rows > _CHUNK else None

    def _intermediary(self, rows: _Rows) -> tuple[Ints, Ints]:
        """Return the picture's own size scaled until it covers the target."""
        w, h, sizes = rows.w, rows.h, rows.sizes
        between = cover(w, h, sizes.cover, grows=self.resolution_type != "pixel")
        cover_square(w, h, between, sizes)
        if self.maximum_image_size is not None:
            self._keep_downsampled(w, h, between)
        return between

    def _keep_downsampled(self, w: Ints, h: Ints, between: tuple[Ints, Ints]) -> None:
        """Enlarge, in place, intermediaries of large pictures to their downsampled size."""
        rows = np.flatnonzero(self._too_large(w, h))
        w, h = w[rows], h[rows]
        rule = replace(self._rule, resolution=self.target_downsample_size or self.resolution)
        rule = replace(rule, maximum_canvas=None, aspect_sizes=())
        sizes = rule.sizes(aspect_label(w, h, self.aspect_rounding), w < h)
        wide, tall = cover(w, h, sizes.cover, grows=self.resolution_type != "pixel")
        enlarged = (wide > w) | (tall > h)
        wide, tall = np.where(enlarged, w, wide), np.where(enlarged, h, tall)
        # What covers the target stays the least size.
        larger = (wide >= between[0][rows]) & (tall >= between[1][rows])
        between[0][rows[larger]], between[1][rows[larger]] = wide[larger], tall[larger]

    def _crop(self, spare: Sequence[Ints], uniform: Floats | None) -> tuple[Ints, Ints]:
        """Return top and left of the cut within the spare pixels (of width, of height)."""
        if self.crop_style == "corner":
            return np.zeros_like(spare[1]), np.zeros_like(spare[0])
        if self.crop_style == "center" or uniform is None:
            return spare[1] >> 1, spare[0] >> 1
        return scaled(uniform[:, 1], spare[1] + 1), scaled(uniform[:, 2], spare[0] + 1)

    def _too_small(self, w: Ints, h: Ints) -> Bools:
        least = self.minimum_image_size or 0
        if self.resolution_type == "pixel":
            return np.asarray(np.minimum(w, h) < least)
        area = self._area(least)
        small: Bools = w * h < area
        if self.crop_aspect == "square":
            small |= np.minimum(w, h) < math.floor(math.sqrt(area))
        return small

    def _too_large(self, w: Ints, h: Ints) -> Bools:
        most = self.maximum_image_size or 0
        if self.resolution_type == "pixel":
            return np.asarray(np.maximum(w, h) > most)
        return np.asarray(w * h > self._area(most))

    def _area(self, size: float) -> float:
        """Return the pixels of a size in the unit of the resolution, which is no short edge."""
        return size * 1e6 if self.resolution_type == "area" else size * size

    @cached_property
    def _rule(self) -> TargetRule:
        return TargetRule(
            self.resolution,
            self.resolution_type,
            self.alignment,
            self.aspect_rounding,
            self.maximum_canvas,
            self.aspect_sizes,  # type: ignore[arg-type]  # brought to this type at the start
        )

    @cached_property
    def _buckets(self) -> AspectBuckets:
        return AspectBuckets(tuple(self.crop_aspect_buckets), self.crop_aspect_weights)


def _check_arrays(
    rows: int,
    height: NDArray[Any],
    uniform: Floats | None,
    focus: Focus | None,
    wanted: bool,
) -> None:
    if len(height) != rows:
        raise ValueError(f"width has {rows} rows, height has {len(height)}")
    if uniform is None and wanted:
        raise ValueError(f"random crops need uniform numbers [n, {DRAWS}]; got None")
    if uniform is not None and uniform.shape != (rows, DRAWS):
        raise ValueError(f"uniform must have shape ({rows}, {DRAWS}), got {uniform.shape}")
    if focus is not None and focus.shape != (rows, 2):
        raise ValueError(f"focus must have shape ({rows}, 2), got {focus.shape}")


def _edges(width: NDArray[Any], height: NDArray[Any]) -> tuple[Ints, Ints, Bools | None]:
    """Return edges as int64, 1 where they are none, and which rows are valid (None: all)."""
    w, h = width.astype(np.int64), height.astype(np.int64)
    if min(w.min(), h.min()) > 0 and max(w.max(), h.max()) <= INT32_MAX:
        return w, h, None
    valid = (w > 0) & (h > 0) & (w <= INT32_MAX) & (h <= INT32_MAX)
    return np.where(valid, w, 1), np.where(valid, h, 1), valid


def _overflows(w: Ints, h: Ints, sizes: Sizes) -> Bools | np.bool_:
    """Return which intermediaries would have an edge beyond 32 bits."""
    most = max(sizes.cover.max(), sizes.target.max()).astype(np.int64) + 1
    if max(w.max(), h.max()) * most <= INT32_MAX:
        return np.bool_(False)
    reach = np.maximum(sizes.cover, sizes.target).astype(np.int64) + 1
    return (reach[:, 1] * w > INT32_MAX * h) | (reach[:, 0] * h > INT32_MAX * w)


def _without(sizes: Sizes, gone: Bools) -> Sizes:
    """Return sizes in which some rows have no target."""
    target = np.where(gone[:, None], 0, sizes.target)
    covered = np.where(gone[:, None], 1, sizes.cover)
    return Sizes(target, covered, np.where(gone, 0.0, sizes.label))


def _centre_on(
    cut: tuple[Ints, Ints], focus: Focus, between: tuple[Ints, Ints], target: NDArray[np.int32]
) -> None:
    """Move, in place, cuts (top, left) to be centred on the focus as far as they fit."""
    rows = np.flatnonzero(np.isfinite(focus).all(axis=1))
    for axis in (0, 1):
        length, edge = between[axis][rows], target[rows, axis].astype(np.int64)
        # In float64: a float32 has too few digits for the pixels of a long intermediary.
        middle = np.clip(focus[rows, axis].astype(np.float64), 0, 1) * length
        start = np.rint(middle - edge / 2).astype(np.int64)
        cut[1 - axis][rows] = np.clip(start, 0, length - edge)
