"""Schemas of crops: which part of a file is the sample, what shape it is cut to, and where."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from factory.config.schema.derived import limit_problems, settings_of
from factory.config.schema.options import at_least, opt

# How far from 1 the sum of weights may be: ten thirds written with seven digits are nearer.
WEIGHT_TOLERANCE = 1e-6


class CropAspect(StrEnum):
    """Which shape a picture is cut to."""

    preserve = "preserve"
    square = "square"
    closest = "closest"
    random = "random"


class CropStyle(StrEnum):
    """Where the cut is placed."""

    center = "center"  # type: ignore[assignment]  # hides str.center, which nobody calls
    centre = "centre"
    random = "random"
    corner = "corner"
    face = "face"


@dataclass
class CropConfig:
    """How a picture is cut to its bucket."""

    _target_: str = "factory.backends.image.Crop"
    aspect: CropAspect = opt(
        CropAspect.preserve, "shape: preserve | square | closest | random (of aspect_buckets)"
    )
    style: CropStyle = opt(
        CropStyle.center,
        "place of the cut: center (or centre) | random | corner (top left) | face (the largest "
        "one, random where there is none)",
    )
    aspect_buckets: list[Any] = opt(
        factory=list,
        meaning="width/height ratios that closest and random choose from; for random also "
        "{aspect: RATIO, weight: SHARE}, with weights that sum to 1",
    )
    max_upscale_threshold: float | None = opt(
        None,
        "random leaves out ratios whose target has an edge above (1 + this) times the sample's; "
        "where none is left, the target is a square",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        chooses = self.aspect in (CropAspect.closest, CropAspect.random)
        if chooses and not self.aspect_buckets:
            yield (
                f"aspect={self.aspect.value} chooses from aspect_buckets, which is empty; "
                "set aspect_buckets=[0.75,1.0,1.33]"
            )
        for entry in self.aspect_buckets:
            yield from _entry_problems(entry)
        yield from self._weight_problems()
        yield from at_least("max_upscale_threshold", self.max_upscale_threshold, 0)
        if self.max_upscale_threshold is not None and self.aspect is not CropAspect.random:
            yield (
                f"max_upscale_threshold={self.max_upscale_threshold:g} counts with aspect=random "
                f"only, got aspect={self.aspect.value}; set max_upscale_threshold=null"
            )

    def _weight_problems(self) -> Iterator[str]:
        weighted = [entry for entry in self.aspect_buckets if isinstance(entry, Mapping)]
        weights = [entry.get("weight") for entry in weighted]
        if 0 < len(weighted) < len(self.aspect_buckets):
            yield "aspect_buckets must give every ratio a weight, or none; got both kinds"
        elif weights and all(map(_is_number, weights)):
            total = math.fsum(weights)  # type: ignore[arg-type]
            if abs(total - 1) > WEIGHT_TOLERANCE:
                yield f"aspect_buckets has weights that must sum to 1, they sum to {total:g}"


def _entry_problems(entry: object) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        if not (_is_number(entry) and entry > 0):  # type: ignore[operator]
            yield f"aspect_buckets must be positive width/height ratios, got {entry!r}"
        return
    if set(entry) != {"aspect", "weight"}:
        yield (
            f"aspect_buckets must be numbers, or {{aspect: RATIO, weight: SHARE}}; got "
            f"{dict(entry)}"
        )
        return
    aspect, weight = entry["aspect"], entry["weight"]
    if not (_is_number(aspect) and aspect > 0):
        yield f"aspect_buckets must be positive width/height ratios, got {aspect!r}"
    if not (_is_number(weight) and weight >= 0):
        yield f"aspect_buckets must have weights of at least 0, got {weight!r}"


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


@settings_of("factory.media.composite.Composite")
class CompositeConfig:
    """Pictures that show several side by side, of which one is the sample."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from limit_problems(self)
        if given.image_count >= 1 and not 0 <= given.select_index < given.image_count:
            yield (
                f"select_index must be 0 to {given.image_count - 1} with image_count="
                f"{given.image_count}, got {given.select_index}"
            )
