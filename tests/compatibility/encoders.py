"""Encoders without rounding, whose bytes are the same on any machine, and a model of nothing."""

from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule

from factory import Batch

EDGE = 8


@dataclass(frozen=True)
class BlockSums:
    """A picture's cells of 8x8 px, each the sum of its first row of pixels, colour by colour."""

    @property
    def fingerprint(self) -> str:
        return "BlockSums/1"

    @property
    def downscale(self) -> int:
        return EDGE

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        batch, height, width, _ = pixels.shape
        blocks = pixels.reshape(batch, height // EDGE, EDGE, width // EDGE, EDGE, 3)
        sums = blocks[:, :, 0].sum(3, dtype=torch.int16)
        return {"latents": sums.permute(0, 3, 1, 2).contiguous()}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        cells = latents.permute(0, 2, 3, 1) // EDGE
        return cells.to(torch.uint8).repeat_interleave(EDGE, 1).repeat_interleave(EDGE, 2)

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Looks:
    """A picture's embedding: its corners' colours."""

    @property
    def fingerprint(self) -> str:
        return "Looks/1"

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        corners = pixels[:, :: pixels.shape[1] - 1, :: pixels.shape[2] - 1]
        return {"embeds": corners.flatten(1, 2).to(torch.float32), "pooled": pixels[:, 0, 0].half()}

    def release(self) -> None:
        """Nothing is held."""


class OneNumber(LightningModule):
    """A model of one number that keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
