"""The contracts of encoders: pixels to latents, captions and pictures to embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

# Characters of a caption that a message shows.
_SHOWN_CHARACTERS = 80


@runtime_checkable
class ImageEncoder(Protocol):
    """Turns pictures of one bucket into rows of equal shape.

    Constructing an encoder loads nothing; weights are loaded at the first `encode` and
    freed by `release`.
    """

    @property
    def fingerprint(self) -> str:
        """Everything that shapes the output: class, settings, weights' revision, dtype."""

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along each edge; target edges are multiples of it."""

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] to fields of rows, at least "latents" [B, C, h, w]."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents [B, C, h, w] back to uint8 RGB [B, H, W, 3]."""

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""


@runtime_checkable
class ClipEncoder(Protocol):
    """An image encoder that takes clips whole, where others get them frame by frame."""

    def encode_clips(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, F, H, W, 3] to fields, at least "latents" [B, C, f, h, w]."""

    def nearest_frames(self, frames: int) -> int:
        """Return the number of frames it takes that is nearest to `frames`, or that itself.

        Asked before any sample is read; reads no weights.
        """

    def clip_bytes(self, width: int, height: int, frames: int) -> int:
        """Return the bytes of a clip's row; reads no weights. Edges in px."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns captions into rows of equal shape.

    Constructing an encoder loads nothing; weights are loaded at the first `encode` and
    freed by `release`.
    """

    @property
    def fingerprint(self) -> str:
        """Everything that shapes the output: class, settings, weights' revision, dtype."""

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to fields of rows, such as "embeds" [B, L, D] and "mask" [B, L].

        A caption's rows do not depend on those it is encoded with, but for their length in a
        `LengthClassEncoder` encoder.
        """

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""


@runtime_checkable
class LengthClassEncoder(Protocol):
    """A text encoder whose rows are longer for longer captions.

    Shorter rows are made equal to longer ones by what means "nothing": zeros and False at the
    end of their first dimension, for every field that has one of that length.
    """

    def length_classes_of(self, captions: Sequence[str]) -> NDArray[np.int64]:
        """Return a number for each caption, int64 [B]; reads no weights.

        Captions of one number have rows of equal shapes if they are encoded together, and no
        others beside them.
        """


@dataclass(frozen=True)
class Truncation:
    """How many captions an encoder has cut.

    Attributes:
        encoder: Which encoder, as messages name it.
        tokens: Tokens it keeps of a caption.
        setting: The setting that says how many.
        captions: Captions encoded.
        cut: How many of them were longer.
        longest: Tokens of the longest one.
        example: The longest one.
    """

    encoder: str
    tokens: int
    setting: str
    captions: int = 0
    cut: int = 0
    longest: int = 0
    example: str = ""

    def __str__(self) -> str:
        """Return a sentence that says what was cut and what would keep it."""
        example = self.example
        if len(example) > _SHOWN_CHARACTERS:
            example = f"{example[:_SHOWN_CHARACTERS]}..."
        return (
            f"{self.encoder} cut {self.cut} of {self.captions} captions to {self.tokens} tokens; "
            f"the longest has {self.longest}: {example!r}; raise {self.setting} to keep more, if "
            "the model allows"
        )


@runtime_checkable
class Truncating(Protocol):
    """A text encoder that notes how many captions it cuts."""

    def truncations(self) -> list[Truncation]:
        """Return what was cut since it was made or last released; empty if nothing was."""


@runtime_checkable
class VisionEncoder(Protocol):
    """Turns pictures into embeddings of one shape, whatever their own, to condition on.

    Constructing an encoder loads nothing; weights are loaded at the first `encode` and
    freed by `release`.
    """

    @property
    def fingerprint(self) -> str:
        """Everything that shapes the output, how pictures are resized before it included."""

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode uint8 RGB [B, H, W, 3] to fields, such as "embeds" [B, L, D], "pooled" [B, D]."""

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""


@runtime_checkable
class Offloading(Protocol):
    """An encoder whose weights can wait in main memory."""

    def offload(self) -> None:
        """Free the device and keep the weights; the next call moves them back."""


@runtime_checkable
class SizedImageEncoder(Protocol):
    """An image encoder that can tell the size of its rows before it makes any."""

    def row_bytes(self, width: int, height: int) -> int:
        """Return the bytes of a picture's row; reads no weights. Edges in px."""


@runtime_checkable
class SizedRowEncoder(Protocol):
    """An encoder of captions, or of pictures, that can tell the size of its rows beforehand."""

    def row_bytes(self) -> int:
        """Return the bytes of a row, the longest there can be; reads no weights.

        Raises:
            ConfigError: They cannot be told.
        """
