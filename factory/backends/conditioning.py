"""Backends of conditioning images, paired with the samples of a source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch

from factory.backends.generated import ReadGenerated, ReadUngenerated
from factory.backends.image import Crop, EvalBackend, ImageBackend, SampleBackend
from factory.backends.pixels import MediaReader, ReadPicture
from factory.catalog.captions.sources import FilenameCaptions
from factory.catalog.decisions import Decisions, decide
from factory.catalog.facts import Facts
from factory.catalog.scan.media_type import MediaType, Pictures
from factory.conditioning.generator import BatchGenerator, Generator
from factory.limits import OneOf
from factory.media.geometry.validation import ResolutionType
from factory.storage.base import Storage
from factory.storage.local import LocalStorage

LOOSE = "reference_loose"
# Half of the greatest value: from here on a mask is set.
_HALF, _GREATEST = 128, 255


@dataclass(frozen=True)
class ConditioningKind:
    """What is so for every backend of a type, unless it says otherwise.

    Attributes:
        encoded: Whether its pictures go through the image encoder, where there is one.
        labels: Whether its values stand for something and are never mixed when resized.
        channels: Colours delivered where pixels are.
    """

    encoded: bool = True
    labels: bool = False
    channels: int = 3


KINDS: Mapping[str, ConditioningKind] = {
    "controlnet": ConditioningKind(),
    "mask": ConditioningKind(encoded=False, labels=True, channels=1),
    "segmentation": ConditioningKind(encoded=False, labels=True),
    "reference_strict": ConditioningKind(),
    LOOSE: ConditioningKind(),
}
COMBINED, RANDOM = ("combined", "random")

# Sizes and cuts: those of the source, but for loose references, which may have their own.
SIZES = ("resolution", "resolution_type", "alignment", "crop", "maximum_canvas", "aspect_sizes")
# Which samples there are follows from the source alone, but for loose references.
LIMITS = (
    "minimum_image_size", "maximum_image_size", "target_downsample_size",
    "minimum_aspect_ratio", "maximum_aspect_ratio", "max_samples",
)  # fmt: skip


@dataclass(frozen=True)
class Bond:
    """What a conditioning backend must know of its source to be read.

    Attributes:
        source: The source.
        seed: Seed of what generators draw.
        cell: Pixels along an edge of one latent cell of the source; 1 where it has no encoder.
    """

    source: SampleBackend
    seed: int = 0
    cell: int = 1


@dataclass(frozen=True, kw_only=True)
class ConditioningBackend(SampleBackend):
    """Pictures that belong to those of a source: paired by path stem, or made from them.

    All types but "reference_loose" are cut exactly as their partners; they have no sizes, crop
    or limits of their own.

    Attributes:
        source: Backend whose samples these belong to, matched by path stem.
        type: controlnet | mask | segmentation | reference_strict: cut exactly as their partners |
            reference_loose: sizes and cuts of their own.
        storage: Where the bytes live; not asked where pictures are generated.
        deliver: latents | pixels | cells: pixels shrunk to one for each latent cell of the source;
            None: latents where there is an image encoder, but mask and segmentation as pixels.
        values: Pixels and cells as uint8 | bool: set from 128 on | float: 0 to 1.
        stored: Whether pixels are kept in the cache; None: generated ones are, where the source is
            encoded, and those of models always.
        missing_partner: A sample without a partner: drop it | error | keep it, with zeros that
            batch.conditioning_valid marks.
        generate: Makes the pictures from the source's own. None reads them from the storage.
        bond: What is known of the source; None until they are paired.
    """

    source: str
    type: Annotated[
        str, OneOf("controlnet", "mask", "segmentation", "reference_strict", "reference_loose")
    ] = "controlnet"
    storage: Storage = field(default_factory=lambda: LocalStorage("."))
    deliver: Annotated[str | None, OneOf("latents", "pixels", "cells")] = None
    values: Annotated[str, OneOf("uint8", "bool", "float")] = "uint8"
    stored: bool | None = None
    missing_partner: Annotated[str, OneOf("drop", "error", "keep")] = "drop"
    generate: Generator | None = None
    bond: Bond | None = None
    # Wider than those of other backends: None is the source's.
    resolution: float | None = None  # type: ignore[assignment]
    resolution_type: ResolutionType | None = None  # type: ignore[assignment]
    alignment: int | None = None  # type: ignore[assignment]
    crop: Crop | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check the settings; a type's own rules are checked once, before it is bonded."""
        super().__post_init__()
        if self.generate is not None and not isinstance(self.generate, Generator):
            raise ValueError(
                f"backend {self.name!r}: generate must be a factory.conditioning.Generator, got "
                f"{self.generate!r}"
            )
        if self.bond is None:
            self._check_own_sizes()

    def _check_own_sizes(self) -> None:
        own = [name for name in (*SIZES, *LIMITS) if getattr(self, name) is not None]
        if own and self.strict:
            raise ValueError(
                f"backend {self.name!r}: {', '.join(own)} cannot be set, since a "
                f"{self.type} picture is cut exactly as its partner; set it for "
                f"data.backends.{self.source} instead, or type={LOOSE} for pictures of a size of "
                "their own"
            )
        if self.generate is not None and not self.strict:
            raise ValueError(
                f"backend {self.name!r}: what is generated is cut as the picture it is made from; "
                "set another type than reference_loose, such as reference_strict"
            )
        if self.generate is not None and (self.filters or self.composite):
            raise ValueError(
                f"backend {self.name!r}: filters and composite are for stored pictures; what is "
                f"generated is made of those that data.backends.{self.source} keeps"
            )

    def _check_sizes(self) -> None:
        if self.bond is not None:
            super()._check_sizes()

    def check_redraws(self) -> None:
        """Do nothing: whether cuts are drawn is its source's affair."""

    def _check_faces(self) -> None:
        pass  # no face is looked for: where the source's crop does, others are cut at random

    @property
    def kind(self) -> ConditioningKind:
        """What its type means."""
        return KINDS[self.type]

    @property
    def strict(self) -> bool:
        """Whether its pictures are cut exactly as their partners."""
        return self.type != LOOSE

    @property
    def wants_latents(self) -> bool:
        """Whether its pictures go through the image encoder, where there is one."""
        return self.kind.encoded if self.deliver is None else self.deliver == "latents"

    @property
    def medium(self) -> MediaType:
        """Which files count."""
        return Pictures(limits=self.limits)

    @property
    def picture_reader(self) -> ReadPicture:
        """How the bytes of a picture become pixels: of labels, without mixing any."""
        mode = "nearest" if self.kind.labels else str(self.decode)
        return ReadPicture(self.storage, mode, self.composite, self.limits)

    @property
    def reader(self) -> MediaReader:
        """How samples become pixels.

        Raises:
            TypeError: They are generated, and the source is not known yet.
        """
        if self.generate is None:
            return self.picture_reader
        if self.bond is None:
            raise TypeError(f"backend {self.name!r} is read once it is paired with its source")
        kind = ReadUngenerated if isinstance(self.generate, BatchGenerator) else ReadGenerated
        return kind(self.bond.source.reader, self.generate, self.bond.seed)

    def bonded(self, source: SampleBackend, seed: int, cell: int = 1) -> "ConditioningBackend":
        """Return the same backend with what it takes from its source.

        Args:
            source: The source.
            seed: Seed of what generators draw.
            cell: Pixels along an edge of one latent cell of the source.
        """
        changes: dict[str, Any] = {
            name: getattr(source, name) for name in SIZES if getattr(self, name) is None
        }
        if self.generate is not None:
            names = ("storage", "prefix", "metadata", "composite", "decode", "limits")
            changes |= {name: getattr(source, name) for name in names}
        return replace(self, **changes, bond=Bond(source, seed, cell))

    def decide(self, facts: Facts, seed: int) -> Decisions:
        """Decide about loose references by their own sizes; what they say does not matter."""
        return decide(
            facts,
            self.geometry,
            FilenameCaptions(),
            name=self.name,
            seed=seed,
            max_samples=self.max_samples,
            filters=self.filters,
        )

    def delivered(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels as batches have them.

        Args:
            pixels: uint8 [..., H, W, 3], or [..., H, W, 1] where they were stored so.

        Returns:
            [..., H, W, C], or with deliver=cells [..., C, h, w]; of the type `values` says.
        """
        pixels = pixels[..., : self.kind.channels]
        if self.deliver == "cells":
            pixels = self._cells(pixels)
        if self.values == "bool":
            return pixels >= _HALF
        return pixels.float() / _GREATEST if self.values == "float" else pixels

    def _cells(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return one value for each cell: the mean of masks, of other labels the middle one's."""
        cell = 1 if self.bond is None else self.bond.cell
        planes = pixels.movedim(-1, -3)
        if self.type != "mask":
            return planes[..., cell // 2 :: cell, cell // 2 :: cell].contiguous()
        blocks = planes.unfold(-2, cell, cell).unfold(-2, cell, cell)
        return blocks.float().mean((-2, -1)).round().to(torch.uint8)


def is_generated(backend: SampleBackend) -> bool:
    """Tell whether a backend's pictures are made from those of its source."""
    return isinstance(backend, ConditioningBackend) and backend.generate is not None


def sampling_of(backend: SampleBackend) -> str:
    """Return whether the samples of a source have all their conditioning at once, or one."""
    if isinstance(backend, ImageBackend | EvalBackend):
        return str(backend.conditioning_sampling)
    return COMBINED


def delivery_problems(
    backend: ConditioningBackend, source: SampleBackend, *, encoded: bool, source_encoded: bool
) -> Iterator[str]:
    """Yield what is wrong with how a backend is delivered beside its source.

    Args:
        backend: The backend.
        source: Its source.
        encoded: Whether its pictures go through an image encoder.
        source_encoded: Whether those of the source do.
    """
    where = f"data.backends.{backend.name}"
    if backend.deliver == "latents" and not encoded:
        yield (
            f"{where}.deliver=latents needs an image encoder, and there is none; choose "
            f"encoder/image=dct or another one, or set {where}.deliver=pixels"
        )
    if backend.deliver == "cells" and not source_encoded:
        yield (
            f"{where}.deliver=cells has one value for each latent cell of {source.name!r}, which "
            f"has no image encoder; set {where}.deliver=pixels"
        )
    own = [f"values={backend.values!s}"] if backend.values != "uint8" else []
    own += [f"stored={str(backend.stored).lower()}"] if backend.stored is not None else []
    if encoded and own:
        yield (
            f"{where}: {' and '.join(own)} is for pixels, and latents are delivered; set "
            f"{where}.deliver=pixels, or leave it out"
        )
    if backend.missing_partner != "drop" and sampling_of(source) == RANDOM:
        yield (
            f"{where}.missing_partner={backend.missing_partner!s} is for sources whose samples "
            "have all sets at once; where one is drawn, it is drawn among those a sample has: set "
            f"{where}.missing_partner=drop"
        )
