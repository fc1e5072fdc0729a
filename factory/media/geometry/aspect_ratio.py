"""Aspect ratios: rounding to labels, and choice from a list of ratios."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Decimals of bucket labels where none are given.
DEFAULT_ROUNDING = 2
# How far from 1 the sum of weights may be: ten thirds written with seven digits are nearer.
WEIGHT_TOLERANCE = 1e-6

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def aspect_label(
    width: NDArray[Any], height: NDArray[Any], decimals: int = DEFAULT_ROUNDING
) -> Floats:
    """Return width/height rounded as `round(width / height, decimals)` rounds it.

    Args:
        width: Integers [n].
        height: Positive integers [n].
        decimals: Decimals to keep; negative means the default of 2.
    """
    digits = digits_of(decimals)
    return round_decimals(np.divide(width, height), digits)


def digits_of(decimals: int) -> int:
    """Return the decimals of a label; negative ones mean the default."""
    return DEFAULT_ROUNDING if decimals < 0 else decimals


def round_decimals(values: Floats, decimals: int) -> Floats:
    """Round non-negative numbers as Python's `round` does: by their exact binary value."""
    return np.asarray(whole_decimals(values, decimals) / 10.0**decimals)


def whole_decimals(values: Floats, decimals: int) -> Floats:
    """Return rounded numbers times 10**decimals: whole, as float64.

    `numpy.round` multiplies first, and so takes 2.675 (in truth a little less) for a tie.
    Here the error of that product decides such ties.
    """
    scale = 10.0**decimals
    scaled = values * scale
    rounded = np.rint(scaled)
    tie = np.flatnonzero(np.abs(scaled - rounded) == 0.5)  # noqa: PLR2004 - a tie is one half
    if tie.size:
        error = _product_error(values[tie], scale, scaled[tie])
        down, exact = np.floor(scaled[tie]), rounded[tie]
        rounded[tie] = np.where(error > 0, down + 1, np.where(error < 0, down, exact))
    return rounded


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


def aligned(edge: float, multiple: int) -> int:
    """Return the multiple nearest to one edge; see `round_to_multiple`."""
    return int(round_to_multiple(np.array([float(edge)]), multiple)[0])


def scaled(uniform: Floats, count: Ints | int) -> Ints:
    """Return whole numbers in [0, count) from numbers in [0, 1)."""
    # The product may round up to count itself.
    return np.asarray(np.minimum((uniform * count).astype(np.int64), np.asarray(count) - 1))


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0; truth values are no numbers."""
    return _is_finite(value) and value > 0  # type: ignore[operator]


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AspectBuckets:
    """Ratios to choose from, and how likely each one is.

    Attributes:
        ratios: Width/height, each above 0.
        weights: How likely each ratio is, summing to 1; empty means all alike.
    """

    ratios: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, entries: Sequence[object]) -> "AspectBuckets":
        """Return the buckets that numbers, or mappings of "aspect" and "weight", stand for."""
        if not any(isinstance(entry, Mapping) for entry in entries):
            return cls(tuple(float(ratio) for ratio in entries))  # type: ignore[arg-type]
        pairs = [(float(each["aspect"]), float(each["weight"])) for each in entries]  # type: ignore[index]
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    def closest(self, own: Floats) -> Floats:
        """Return the ratio nearest to each of k ratios, float64 [k]; of two, the first one."""
        ratios = np.array(self.ratios)
        return np.asarray(ratios[np.abs(ratios - own[:, None]).argmin(axis=1)])

    def drawn(self, uniform: Floats, available: Bools | None = None) -> Ints:
        """Draw one ratio for each of n rows.

        Args:
            uniform: Numbers in [0, 1), float64 [n].
            available: Which ratios a row may have, bool [n, ratios]; None means all of them.

        Returns:
            Indices of ratios, int64 [n]; their number where a row may have none of them.
        """
        count = len(self.ratios)
        if available is None and not self.weights:
            return scaled(uniform, count)
        weights = np.array(self.weights or (1.0,) * count)
        if available is not None:
            weights = np.where(available, weights, 0.0)
        rising = np.atleast_2d(np.cumsum(weights, axis=-1))
        total = rising[:, -1]
        # The product may round up to the total, above which there is no ratio.
        point = np.minimum(uniform * total, np.nextafter(total, 0.0))
        first = (rising > point[:, None]).argmax(axis=1)
        return np.asarray(np.where(total > 0, first, count))


def bucket_problems(entries: Sequence[object], name: str) -> Iterator[str]:
    """Yield what is wrong with ratios to choose from, which a setting of this name holds."""
    for entry in entries:
        yield from _entry_problems(entry, name)
    weighted = [entry for entry in entries if isinstance(entry, Mapping)]
    weights = [entry.get("weight") for entry in weighted]
    if 0 < len(weighted) < len(entries):
        yield f"{name} must give every ratio a weight, or none; got both kinds"
    elif weights and all(map(_is_finite, weights)):
        total = math.fsum(weights)  # type: ignore[arg-type]
        if abs(total - 1) > WEIGHT_TOLERANCE:
            yield f"{name} has weights that must sum to 1, they sum to {total:g}"


def _entry_problems(entry: object, name: str) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        if not is_positive(entry):
            yield f"{name} must be ratios width/height above 0, got {entry!r}"
        return
    if set(entry) != {"aspect", "weight"}:
        yield f"{name} must be numbers, or {{aspect: RATIO, weight: SHARE}}; got {dict(entry)}"
        return
    if not is_positive(entry["aspect"]):
        yield f"{name} must be ratios width/height above 0, got {entry['aspect']!r}"
    if not (_is_finite(entry["weight"]) and entry["weight"] >= 0):
        yield f"{name} must have weights that are numbers from 0, got {entry['weight']!r}"
