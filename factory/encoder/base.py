"""The contracts of encoders: pixels to latents, captions to embeddings."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class ImageEncoder(Protocol):
    """Turns pictures of one bucket into rows of equal shape.

    Constructing an encoder loads nothing; weights are loaded at the first `encode` and
    let go by `release`.
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
class TextEncoder(Protocol):
    """Turns captions into rows of equal shape.

    Constructing an encoder loads nothing; weights are loaded at the first `encode` and
    let go by `release`.
    """

    @property
    def fingerprint(self) -> str:
        """Everything that shapes the output: class, settings, weights' revision, dtype."""

    def encode(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode captions to fields of rows, at least "embeds" [B, L, D] and "mask" [B, L]."""

    def release(self) -> None:
        """Free weights and device memory; the next call loads them again."""


@runtime_checkable
class ForetoldImages(Protocol):
    """An image encoder that can tell the size of its rows before it makes any."""

    def row_bytes(self, width: int, height: int) -> int:
        """Return the bytes of a picture's row; reads no weights. Edges in px."""


@runtime_checkable
class ForetoldTexts(Protocol):
    """A text encoder that can tell the size of its rows before it makes any."""

    def row_bytes(self) -> int:
        """Return the bytes of a caption's row; reads no weights."""
