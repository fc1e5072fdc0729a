"""Image encoder that keeps pixels as they are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RawPixels:
    """An image encoder that changes nothing, for pictures that are costly to make.

    Attributes:
        channels: Colours kept: 3, or 1 of pictures that are grey.
    """

    channels: int = 3

    @property
    def fingerprint(self) -> str:
        """The number of colours is all there is."""
        return f"pixels-1:{self.channels}"

    @property
    def downscale(self) -> int:
        """Every pixel is a cell."""
        return 1

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return uint8 [B, H, W, 3] as "latents", uint8 [B, H, W, channels]."""
        return {"latents": pixels[..., : self.channels].contiguous()}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, H, W, channels] as uint8 [B, H, W, 3]."""
        return latents.expand(*latents.shape[:-1], 3)

    def row_bytes(self, width: int, height: int) -> int:
        """Return the bytes of a picture's row."""
        return width * height * self.channels

    def release(self) -> None:
        """Nothing was loaded."""
