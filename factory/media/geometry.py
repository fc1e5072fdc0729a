"""Which target size, intermediary size and cut follow from a picture's own size.

A picture is scaled to its *intermediary* size, which keeps its proportions and covers the
target, and is then cut to its *target* size. Pictures of equal target form a bucket. Every
target is a function of the picture's own size and the settings, so buckets depend neither on
the order of the samples nor on what was seen before.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

ResolutionType = Literal["pixel", "area", "pixel_area"]
CropAspect = Literal["preserve", "square", "closest", "random"]
CropStyle = Literal["center", "random", "corner"]

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

# Decimals of bucket labels where none are given.
DEFAULT_ROUNDING = 2
# With more decimals than these, sides of 2**31 px would overflow 64-bit products.
MAXIMUM_ROUNDING = 6
# Megapixels and the edge that trainers mean by them for squares: models are trained at powers
# of two times 512 and 768, not at the 500, 707 and 1000 px that the square root gives.
SQUARE_EDGES = ((0.25, 512), (0.5, 768), (1.0, 1024), (2.0, 1536), (4.0, 2048))
SQUARE_TOLERANCE = 0.05  # megapixels around an entry of the table
# A minimum above this many megapixels is almost surely an edge in pixels.
MAXIMUM_MINIMUM_AREA = 5.0
# A picture this near to square is scaled to the square, not cut: at most 3 % out of proportion.
SQUASH = 1.03
# Columns of uniform numbers that a row's random choices use: aspect, top, left.
DRAWS = 3
# Rows worked on at a time: some thirty columns of this many numbers stay in a 2 MB cache.
_CHUNK = 8192
_INT32_MAX = 2**31 - 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """How each of n pictures is scaled and cut, and whether it is kept.

    Rows that are not kept have sizes too, except those of reason "geometry_error": zeros.

    Attributes:
        target: Width and height after the cut, px, int32 [n, 2]; this is the bucket.
        intermediary: Width and height before the cut, px, int32 [n, 2].
        crop: Top and left of the cut in the intermediary, px, int32 [n, 2].
        aspect: The bucket's label: target width/height, rounded, float64 [n].
        reason: Index into `REASONS`, uint8 [n]; 0 is kept.
    """

    target: NDArray[np.int32]
    intermediary: NDArray[np.int32]
    crop: NDArray[np.int32]
    aspect: Floats
    reason: NDArray[np.uint8]

    @classmethod
    def empty(cls, rows: int) -> "Shapes":
        """Return shapes of so many rows, all zeros."""
        target, intermediary, crop = np.zeros((3, rows, 2), dtype=np.int32)
        reason = np.zeros(rows, dtype=np.uint8)
        return cls(target, intermediary, crop, np.zeros(rows), reason)


@dataclass(frozen=True)
class Geometry:
    """Settings that turn sizes into targets.

    Attributes:
        resolution: Short edge in px ("pixel"), megapixels ("area"), or the edge in px of the
            square of equal area ("pixel_area").
        resolution_type: The unit of `resolution` and `minimum_image_size`.
        alignment: Target edges are multiples of this, px.
        aspect_rounding: Decimals of aspect labels; -1 means the default of 2.
        crop_aspect: Shape of the target: the picture's own, a square, or the closest or a
            random one of `crop_aspect_buckets`.
        crop_style: Place of the cut: middle, random, or the top left corner.
        crop_aspect_buckets: Ratios width/height.
        minimum_image_size: Smaller pictures are dropped: both edges ("pixel"), or the area.
        minimum_aspect_ratio: Least label of a bucket, inclusive.
        maximum_aspect_ratio: Greatest label of a bucket, inclusive.
    """

    resolution: float
    resolution_type: ResolutionType | str = "pixel_area"
    alignment: int = 64
    aspect_rounding: int = DEFAULT_ROUNDING
    crop_aspect: CropAspect | str = "preserve"
    crop_style: CropStyle | str = "center"
    crop_aspect_buckets: tuple[float, ...] = ()
    minimum_image_size: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            ValueError: Names each setting that is wrong, what was given and what is allowed.
        """
        problems = [*_option_problems(self), *_number_problems(self)]
        if not problems:
            problems = list(_unit_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        buckets = tuple(float(ratio) for ratio in self.crop_aspect_buckets)
        object.__setattr__(self, "crop_aspect_buckets", buckets)

    @property
    def uses_random(self) -> bool:
        """Whether decisions depend on the uniform numbers."""
        return "random" in (self.crop_aspect, self.crop_style)

    def decide(
        self, width: NDArray[Any], height: NDArray[Any], uniform: Floats | None = None
    ) -> Shapes:
        """Decide about n pictures at once.

        Args:
            width: Widths after orientation, px, integers [n].
            height: Heights after orientation, px, integers [n].
            uniform: Numbers in [0, 1), float64 [n, 3]: for the choice of the aspect, of the
                top and of the left of the cut. May be None where nothing is random.

        Raises:
            ValueError: The arrays do not fit together, or `uniform` is wanted and absent.
        """
        rows = len(width)
        if len(height) != rows:
            raise ValueError(f"width has {rows} rows, height has {len(height)}")
        if uniform is None and self.uses_random:
            raise ValueError("random crops need uniform numbers [n, 3]; got None")
        if uniform is not None and uniform.shape != (rows, DRAWS):
            raise ValueError(f"uniform must have shape ({rows}, {DRAWS}), got {uniform.shape}")
        shapes = Shapes.empty(rows)
        # Products such as width * target overflow to values that are then replaced by zeros.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for start in range(0, rows, _CHUNK):
                part = slice(start, start + _CHUNK)
                chosen = None if uniform is None else uniform[part]
                self._decide(width[part], height[part], chosen, shapes, part)
        return shapes

    def _decide(
        self,
        width: NDArray[Any],
        height: NDArray[Any],
        uniform: Floats | None,
        shapes: Shapes,
        part: slice,
    ) -> None:
        valid = (width > 0) & (height > 0) & (width <= _INT32_MAX) & (height <= _INT32_MAX)
        w = np.where(valid, width, 1).astype(np.int64)
        h = np.where(valid, height, 1).astype(np.int64)
        wanted = self._wanted_aspect(w, h, uniform)
        valid &= wanted > 0
        first_w, first_h = self._target(w, h, np.where(wanted > 0, wanted, 1.0))
        valid &= np.maximum(first_w, first_h) <= _INT32_MAX
        first_w, first_h = np.where(valid, first_w, 1), np.where(valid, first_h, 1)
        inter_w, inter_h = self._intermediary(w, h, first_w, first_h)
        label = aspect_label(first_w, first_h, self.aspect_rounding)
        square = label == 1.0
        edge = self.square_edge
        target_w, target_h = np.where(square, edge, first_w), np.where(square, edge, first_h)
        _cover_square(square, w, h, inter_w, inter_h, edge)
        valid &= (label > 0) & (np.maximum(inter_w, inter_h) <= _INT32_MAX)
        top, left = self._crop(inter_w - target_w, inter_h - target_h, uniform)
        columns = (target_w, target_h, inter_w, inter_h, top, left)
        arrays = (shapes.target, shapes.intermediary, shapes.crop)
        for number, column in enumerate(columns):
            arrays[number // 2][part, number % 2] = np.where(valid, column, 0)
        shapes.aspect[part] = np.where(valid, label, 0.0)
        shapes.reason[part] = self._reason(w, h, label, valid)

    def _wanted_aspect(self, w: Ints, h: Ints, uniform: Floats | None) -> Floats:
        """Return the ratio each target is made for; 0.0 where it rounds to nothing."""
        if self.crop_aspect == "square":
            return np.ones(len(w))
        buckets = np.array(self.crop_aspect_buckets)
        if self.crop_aspect == "random" and uniform is not None:
            return np.asarray(buckets[_scaled(uniform[:, 0], len(buckets))])
        own = aspect_label(w, h, self.aspect_rounding)
        if self.crop_aspect == "closest":
            return np.asarray(buckets[np.abs(buckets - own[:, None]).argmin(axis=1)])
        return own

    def _target(self, w: Ints, h: Ints, aspect: Floats) -> tuple[Ints, Ints]:
        """Return aligned widths and heights of about the wanted ratio."""
        if self.resolution_type == "pixel":
            short = self.resolution
            portrait = w < h
            wide = np.where(portrait, short, np.trunc(short * aspect))
            tall = np.where(portrait, np.trunc(short / aspect), short)
        else:
            root = np.sqrt(aspect)
            wide, tall = self._area_edge * root, self._area_edge / root
        return round_to_multiple(wide, self.alignment), round_to_multiple(tall, self.alignment)

    def _intermediary(self, w: Ints, h: Ints, tw: Ints, th: Ints) -> tuple[Ints, Ints]:
        """Return the picture's own size scaled until it covers the first target."""
        if self.resolution_type != "pixel":
            return _cover(w, h, tw, th)
        # The short edge is at least the resolution itself, even where alignment made it less.
        short = int(self.resolution)
        wide = np.where(w < h, np.maximum(tw, short), tw)
        tall = np.where(w < h, th, np.maximum(th, short))
        by_height = tall * w >= wide * h
        return (
            np.where(by_height, tall * w // h, wide),
            np.where(by_height, tall, wide * h // w),
        )

    def _crop(self, spare_w: Ints, spare_h: Ints, uniform: Floats | None) -> tuple[Ints, Ints]:
        """Return top and left of the cut within the spare pixels."""
        if self.crop_style == "corner":
            return np.zeros_like(spare_h), np.zeros_like(spare_w)
        if self.crop_style == "random" and uniform is not None:
            top = _scaled(uniform[:, 1], np.maximum(spare_h, 0) + 1)
            return top, _scaled(uniform[:, 2], np.maximum(spare_w, 0) + 1)
        return spare_h // 2, spare_w // 2

    def _reason(
        self, w: Ints, h: Ints, label: Floats, valid: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """Return the first reason that strikes each row."""
        reason = np.zeros(len(w), dtype=np.uint8)
        # The last assignment wins, so the first reason comes last.
        if self.maximum_aspect_ratio is not None:
            reason[label > self.maximum_aspect_ratio] = _WIDE
        if self.minimum_aspect_ratio is not None:
            reason[label < self.minimum_aspect_ratio] = _NARROW
        reason[self._too_small(w, h)] = _SMALL
        reason[~valid] = _ERROR
        return reason

    def _too_small(self, w: Ints, h: Ints) -> NDArray[np.bool_]:
        least = self.minimum_image_size
        if least is None:
            return np.zeros(len(w), dtype=np.bool_)
        if self.resolution_type == "pixel":
            return np.minimum(w, h) < least
        area = least * 1e6 if self.resolution_type == "area" else least * least
        small: NDArray[np.bool_] = w * h < area
        if self.crop_aspect == "square":
            small |= np.minimum(w, h) < math.floor(math.sqrt(area))
        return small

    @property
    def _area_edge(self) -> int:
        """Edge of the square of the wanted area, aligned, px."""
        if self.resolution_type == "pixel_area":
            return _aligned(self.resolution, self.alignment)
        return _aligned(int(math.sqrt(self.resolution * 1e6)), self.alignment)

    @property
    def square_edge(self) -> int:
        """Edge of square targets, aligned, px."""
        if self.resolution_type == "pixel":
            return _aligned(self.resolution, self.alignment)
        megapixels = self.resolution
        if self.resolution_type == "pixel_area":
            megapixels = self.resolution**2 / 1e6
        for area, edge in SQUARE_EDGES:
            if abs(megapixels - area) <= SQUARE_TOLERANCE:
                return _aligned(edge, self.alignment)
        return self._area_edge


def aspect_label(width: Ints, height: Ints, decimals: int = DEFAULT_ROUNDING) -> Floats:
    """Return width/height rounded as `round(width / height, decimals)` rounds it.

    Args:
        width: Integers [n].
        height: Positive integers [n].
        decimals: Decimals to keep; negative means the default of 2.
    """
    digits = DEFAULT_ROUNDING if decimals < 0 else decimals
    return round_decimals(np.divide(width, height), digits)


def round_decimals(values: Floats, decimals: int) -> Floats:
    """Round non-negative numbers as Python's `round` does: by their exact binary value.

    `numpy.round` multiplies first, and so takes 2.675 (in truth a little less) for a tie.
    Here the error of that product decides such ties.
    """
    scale = 10.0**decimals
    scaled = values * scale
    rounded = np.rint(scaled)
    tie = np.flatnonzero(scaled - np.floor(scaled) == 0.5)  # noqa: PLR2004 - a tie is one half
    if tie.size:
        error = _product_error(values[tie], scale, scaled[tie])
        down, exact = np.floor(scaled[tie]), rounded[tie]
        rounded[tie] = np.where(error > 0, down + 1, np.where(error < 0, down, exact))
    return np.asarray(rounded / scale)


def _product_error(left: Floats, right: float, product: Floats) -> Floats:
    """Return left * right - product without rounding (Dekker's product)."""
    splitter = 2.0**27 + 1  # halves the 53 bits of a float64
    left_high = left * splitter - (left * splitter - left)
    left_low = left - left_high
    right_high = right * splitter - (right * splitter - right)
    right_low = right - right_high
    high = left_high * right_high - product
    return np.asarray(high + left_high * right_low + left_low * right_high + left_low * right_low)


def round_to_multiple(values: NDArray[Any], multiple: int) -> Ints:
    """Return the nearest multiples, halves to the even one, never below one multiple."""
    rounded = np.maximum(np.rint(values / multiple), 1.0) * multiple
    # Beyond 32 bits the row is refused anyway; the bound keeps the conversion defined.
    return np.asarray(np.minimum(rounded, 2.0**32).astype(np.int64))


def _aligned(edge: float, multiple: int) -> int:
    return int(round_to_multiple(np.array([float(edge)]), multiple)[0])


def _scaled(uniform: Floats, count: Ints | int) -> Ints:
    """Return whole numbers in [0, count) from numbers in [0, 1)."""
    # The product may round up to count itself.
    return np.asarray(np.minimum((uniform * count).astype(np.int64), np.asarray(count) - 1))


def _cover(w: Ints, h: Ints, tw: Ints, th: Ints) -> tuple[Ints, Ints]:
    """Return the least scaled size of each picture that covers its target.

    The scaled picture starts at the target's short edge. Where its other edge falls short,
    that one grows by whole pixels, so it ends up to a pixel above the target, by the fraction
    it started with; the fraction counts for the long edge. All in integers, thus exact.
    """
    by_height, by_width = th * w, tw * h
    wide = by_height >= by_width
    landscape = tw >= th
    rest_w = np.where(landscape, 0, by_width % w)
    rest_h = np.where(landscape, by_height % h, 0)
    return (
        np.where(wide, (by_height + rest_w) // h, tw),
        np.where(wide, th, (by_width + rest_h) // w),
    )


def _cover_square(
    square: NDArray[np.bool_], w: Ints, h: Ints, inter_w: Ints, inter_h: Ints, edge: int
) -> None:
    """Enlarge, in place, intermediaries that do not cover their square target."""
    rows = np.flatnonzero(square & (np.minimum(inter_w, inter_h) < edge))
    if not rows.size:
        return
    w, h = w[rows], h[rows]
    longest, shortest = np.maximum(w, h), np.minimum(w, h)
    squash = (longest <= SQUASH * shortest) & (inter_w[rows] < edge)
    long_edge = np.where(squash, edge, edge * longest // shortest)
    inter_w[rows] = np.where(w >= h, long_edge, edge)
    inter_h[rows] = np.where(w >= h, edge, long_edge)


def _option_problems(settings: Geometry) -> Iterator[str]:
    options = (
        ("resolution_type", ResolutionType),
        ("crop_aspect", CropAspect),
        ("crop_style", CropStyle),
    )
    for name, kind in options:
        given, allowed = getattr(settings, name), get_args(kind)
        if given not in allowed:
            yield f"{name} must be one of {', '.join(allowed)}; got {given!r}"


def _number_problems(settings: Geometry) -> Iterator[str]:
    if not _is_positive(settings.resolution):
        yield f"resolution must be a number above 0, got {settings.resolution!r}"
    if not (isinstance(settings.alignment, int) and settings.alignment >= 1):
        yield f"alignment must be a whole number of px, at least 1; got {settings.alignment!r}"
    digits = settings.aspect_rounding
    if not (isinstance(digits, int) and -1 <= digits <= MAXIMUM_ROUNDING):
        allowed = f"a whole number from -1 to {MAXIMUM_ROUNDING}"
        yield f"aspect_rounding must be {allowed}, got {digits!r}"
    for name in ("minimum_image_size", "minimum_aspect_ratio", "maximum_aspect_ratio"):
        value = getattr(settings, name)
        if value is not None and not _is_positive(value):
            yield f"{name} must be a number above 0 or None, got {value!r}"
    yield from _bucket_problems(settings.crop_aspect, settings.crop_aspect_buckets)


def _bucket_problems(crop_aspect: str, buckets: Sequence[object]) -> Iterator[str]:
    if crop_aspect in ("closest", "random") and not buckets:
        yield (
            f"crop_aspect_buckets must not be empty with crop_aspect={crop_aspect}; "
            "set it to ratios such as (0.75, 1.0, 1.33)"
        )
    for ratio in buckets:
        if not _is_positive(ratio):
            yield f"crop_aspect_buckets must be ratios width/height above 0, got {ratio!r}"


def _unit_problems(settings: Geometry) -> Iterator[str]:
    kind, size = settings.resolution_type, settings.resolution
    if kind == "pixel_area" and size != int(size):
        yield f"resolution must be a whole edge in px with resolution_type=pixel_area, got {size:g}"
    least = settings.minimum_image_size
    if kind == "area" and least is not None and least > MAXIMUM_MINIMUM_AREA:
        yield (
            f"minimum_image_size={least:g} means megapixels with resolution_type=area and must "
            f"be at most {MAXIMUM_MINIMUM_AREA:g}; for an edge in px set "
            "resolution_type=pixel_area"
        )
    low, high = settings.minimum_aspect_ratio, settings.maximum_aspect_ratio
    if low is not None and high is not None and low > high:
        yield f"minimum_aspect_ratio={low:g} must not be above maximum_aspect_ratio={high:g}"
    if settings.square_edge > _INT32_MAX:
        yield f"resolution={size:g} gives targets beyond {_INT32_MAX} px; check resolution_type"


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0  # type: ignore[operator,arg-type]
