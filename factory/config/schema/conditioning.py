"""Schemas of conditioning: backends of it, and what makes it from the source's pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from factory.config.schema.backends import SampleBackendConfig, filter_problems
from factory.config.schema.crop import CropConfig
from factory.config.schema.derived import Derived, settings_of
from factory.config.schema.options import opt
from factory.media.geometry.validation import (
    number_problems,
    resolution_problems,
    size_problems,
)

# In the unit of `resolution_type`.
LIMITS = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
# Sizes, cuts and limits: only loose references have their own.
OWN = (
    "resolution", "resolution_type", "alignment", "crop", "maximum_canvas", "aspect_sizes",
    *LIMITS, "minimum_aspect_ratio", "maximum_aspect_ratio", "max_samples",
)  # fmt: skip


@settings_of("factory.backends.conditioning.ConditioningBackend", without=("bond",))
class ConditioningBackendConfig(SampleBackendConfig):
    """Pictures paired by name with those of a source backend, or made from them."""

    # `Any`, so that a plugin's generator needs no schema.
    generate: Any = opt(
        meaning="slot: makes the pictures from the source's own, data/generator; null reads files"
    )
    resolution: float | None = opt(
        None,
        "target size of reference_loose; null: the source's. So are its resolution_type, "
        "alignment, crop, maximum_canvas and aspect_sizes",
    )
    resolution_type: Derived = opt(None)
    alignment: int | None = opt(None)
    crop: CropConfig | None = opt(None)  # type: ignore[assignment] # null is the source's
    maximum_canvas: float | None = opt(None)
    aspect_sizes: Any = opt(None)

    def problems(self: Any) -> Iterator[str]:
        """Yield what is wrong with the values."""
        own = [name for name in OWN if getattr(self, name) is not None]
        if self.type == "reference_loose":
            yield from self._loose_problems()
        elif own:
            yield (
                f"type={self.type} is cut exactly as its partner, so "
                f"{', '.join(own)} cannot be set here; set it for data.backends.{self.source}, or "
                "set type=reference_loose for pictures of a size of their own"
            )
        yield from filter_problems(self)
        if self.generate is not None:
            yield from self._generated_problems()

    def _loose_problems(self: Any) -> Iterator[str]:
        """Look at sizes as those of other backends are; with none, the source's are looked at."""
        limits = [name for name in LIMITS if getattr(self, name) is not None]
        if None not in (self.resolution, self.resolution_type, self.alignment):
            yield from size_problems(self)
            yield from resolution_problems(self.resolution, str(self.resolution_type))
        else:
            yield from number_problems(self)
            if limits:
                yield (
                    f"{' and '.join(limits)} cannot be checked against a size of the source; set "
                    "resolution, resolution_type and alignment here, too"
                )
        if self.crop is not None and self.crop.style == "face":
            yield (
                "crop.style=face is for pictures to train on; choose another "
                f"data/crop@data.backends.{self.name}, such as square"
            )

    def _generated_problems(self: Any) -> Iterator[str]:
        if self.type == "reference_loose":
            yield (
                "type=reference_loose has a size of its own, and what is generated is cut as the "
                "picture it is made from; set type=reference_strict"
            )
        unused = ["filters"] if self.filters else []
        unused += ["composite"] if self.composite.image_count > 1 else []
        if unused:
            yield (
                f"generate makes a picture from each one that data.backends.{self.source} keeps, "
                f"so {', '.join(unused)} cannot be set here; set it there"
            )
        given = self.generate
        values = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
        if "_target_" not in values:
            yield (
                "generate must name a class: choose "
                f"data/generator@data.backends.{self.name}=canny, or set generate._target_"
            )

    def references(self: Any) -> Iterator[tuple[str, str]]:
        """Yield (field, name) of every other backend this one needs built before it."""
        yield from super().references()
        yield "source", self.source


@dataclass
class GeneratorConfig:
    """Makes conditioning pictures from the source's own."""

    _target_: str = MISSING


@settings_of("factory.conditioning.Canny", rules=True)
class CannyConfig(GeneratorConfig):
    """Edges, white on black."""


@settings_of("factory.conditioning.JpegArtifacts", rules=True)
class JpegArtifactsConfig(GeneratorConfig):
    """The picture, compressed too much."""


@settings_of("factory.conditioning.Superresolution")
class SuperresolutionConfig(GeneratorConfig):
    """The picture shrunk and enlarged again."""

    shrink: str
    enlarge: str


@settings_of("factory.conditioning.RandomMasks", rules=True)
class RandomMasksConfig(GeneratorConfig):
    """White where something is to be painted."""
