"""Schemas of conditioning: backends of it, and what makes it from the source's pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from omegaconf import MISSING

from factory.config.schema.backend_fit import filter_problems
from factory.config.schema.backends import ResolutionType, SampleBackendConfig, aspect_problems
from factory.config.schema.crop import CropConfig, CropStyle
from factory.config.schema.derived import limit_problems, settings_of
from factory.config.schema.options import above, at_least, one_of, opt
from factory.config.schema.sizes import SizeOptions, size_problems

_QUALITY = 100
SHRINK = ("antialias", "area", "cubic", "linear", "lanczos", "nearest")
ENLARGE = ("cubic", "linear", "lanczos", "nearest")
SHAPES = ("rectangle", "ellipse", "stroke")


class ConditioningType(StrEnum):
    """What conditioning pictures are to their source."""

    controlnet = "controlnet"
    mask = "mask"
    segmentation = "segmentation"
    reference_strict = "reference_strict"
    reference_loose = "reference_loose"


class Delivery(StrEnum):
    """What batches have of conditioning pictures."""

    latents = "latents"
    pixels = "pixels"
    cells = "cells"


class PixelValues(StrEnum):
    """The type of pixels and cells."""

    uint8 = "uint8"
    bool = "bool"
    float = "float"


class MissingPartner(StrEnum):
    """What becomes of a sample without a partner."""

    drop = "drop"
    error = "error"
    keep = "keep"


# In the unit of `resolution_type`.
LIMITS = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
# Sizes, cuts and limits: only loose references have their own.
OWN = (
    "resolution", "resolution_type", "alignment", "crop", "maximum_canvas", "aspect_sizes",
    *LIMITS, "minimum_aspect_ratio", "maximum_aspect_ratio", "max_samples",
)  # fmt: skip


@dataclass
class ConditioningBackendConfig(SampleBackendConfig):
    """Pictures paired by name with those of a source backend, or made from them."""

    _target_: str = "factory.backends.conditioning.ConditioningBackend"
    source: str = opt(MISSING, "backend whose samples these belong to, matched by path stem")
    type: ConditioningType = opt(
        ConditioningType.controlnet,
        "controlnet | mask | segmentation | reference_strict: cut exactly as their partners | "
        "reference_loose: sizes and cuts of their own",
    )
    deliver: Delivery | None = opt(
        None,
        "latents | pixels | cells: pixels shrunk to one for each latent cell of the source; null: "
        "latents where there is an image encoder, but mask and segmentation as pixels",
    )
    values: PixelValues = opt(
        PixelValues.uint8, "pixels and cells as uint8 | bool: set from 128 on | float: 0 to 1"
    )
    stored: bool | None = opt(
        None,
        "whether pixels are kept in the cache; null: generated ones are, where the source is "
        "encoded, and those of models always",
    )
    missing_partner: MissingPartner = opt(
        MissingPartner.drop,
        "a sample without a partner: drop it | error | keep it, with zeros that "
        "batch.conditioning_valid marks",
    )
    # `Any`, so that a plugin's generator needs no schema.
    generate: Any = opt(
        None, "slot: makes the pictures from the source's own, data/generator; null reads files"
    )
    resolution: float | None = opt(  # type: ignore[assignment] # null is the source's
        None,
        "target size of reference_loose; null: the source's. So are its resolution_type, "
        "alignment, crop, maximum_canvas and aspect_sizes",
    )
    resolution_type: ResolutionType | None = opt(None, "")  # type: ignore[assignment] # likewise
    alignment: int | None = opt(None, "")  # type: ignore[assignment] # likewise
    crop: CropConfig | None = opt(None, "")  # type: ignore[assignment] # likewise
    maximum_canvas: float | None = opt(None, "")
    aspect_sizes: Any = opt(None, "")

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        own = [name for name in OWN if getattr(self, name) is not None]
        if self.type is ConditioningType.reference_loose:
            yield from self._loose_problems()
        elif own:
            yield (
                f"type={self.type.value} is cut exactly as its partner, so "
                f"{', '.join(own)} cannot be set here; set it for data.backends.{self.source}, or "
                "set type=reference_loose for pictures of a size of their own"
            )
        yield from filter_problems(self)
        if self.generate is not None:
            yield from self._generated_problems()

    def _loose_problems(self) -> Iterator[str]:
        """Look at sizes as those of other backends are; with none, the source's are looked at."""
        yield from above("resolution", self.resolution, 0)
        yield from at_least("alignment", self.alignment, 1)
        yield from at_least("max_samples", self.max_samples, 1)
        yield from aspect_problems(self.minimum_aspect_ratio, self.maximum_aspect_ratio)
        limits = [name for name in LIMITS if getattr(self, name) is not None]
        if None not in (self.resolution, self.resolution_type, self.alignment):
            yield from size_problems(cast("SizeOptions", self))
        elif limits:
            yield (
                f"{' and '.join(limits)} cannot be checked against a size of the source; set "
                "resolution, resolution_type and alignment here, too"
            )
        if self.crop is not None and self.crop.style is CropStyle.face:
            yield (
                "crop.style=face is for pictures to train on; choose another "
                f"data/crop@data.backends.{self.name}, such as square"
            )

    def _generated_problems(self) -> Iterator[str]:
        if self.type is ConditioningType.reference_loose:
            yield (
                "type=reference_loose has a size of its own, and what is generated is cut as the "
                "picture it is made from; set type=reference_strict"
            )
        composite: Any = self.composite
        unused = ["filters"] if self.filters else []
        unused += ["composite"] if composite.image_count > 1 else []
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

    def references(self) -> Iterator[tuple[str, str]]:
        """Yield (field, name) of every other backend this one needs built before it."""
        yield from super().references()
        yield "source", self.source


@dataclass
class GeneratorConfig:
    """Makes conditioning pictures from the source's own."""

    _target_: str = MISSING

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from limit_problems(self)


@settings_of("factory.conditioning.Canny")
class CannyConfig(GeneratorConfig):
    """Edges, white on black."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from super().problems()
        yield from at_least("high", given.high, given.low)


@settings_of("factory.conditioning.JpegArtifacts")
class JpegArtifactsConfig(GeneratorConfig):
    """The picture, compressed too much."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from super().problems()
        yield from at_least("high", given.high, given.low)
        if given.high > _QUALITY:
            yield f"high must be at most {_QUALITY}, got {given.high}"


@settings_of("factory.conditioning.Superresolution")
class SuperresolutionConfig(GeneratorConfig):
    """The picture shrunk and enlarged again."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        yield from super().problems()
        yield from one_of("shrink", given.shrink, SHRINK)
        yield from one_of("enlarge", given.enlarge, ENLARGE)


@settings_of("factory.conditioning.RandomMasks")
class RandomMasksConfig(GeneratorConfig):
    """White where something is to be painted."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        given: Any = self
        if not 0 < given.least <= given.most < 1:
            yield (
                f"least={given.least:g} and most={given.most:g} must be shares between 0 and 1, "
                "least first"
            )
        if not given.shapes:
            yield f"shapes is empty; set shapes=[{','.join(SHAPES)}], or some of them"
        for shape in given.shapes:
            yield from one_of("shapes", shape, SHAPES)
