"""An encoder that takes its time, importable by a run's config."""

import time
from dataclasses import dataclass

import torch

from factory.encoder.dct import BlockDCT


@dataclass(frozen=True)
class SlowDCT(BlockDCT):
    """Takes a while for each batch, as one of a size that matters does.

    Attributes:
        seconds: How long.
    """

    seconds: float = 0.2

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Wait, then encode."""
        time.sleep(self.seconds)
        return super().encode(pixels)
