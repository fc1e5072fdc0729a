"""An encoder that takes its process with it, importable where it is used."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from factory.encoder.dct import BlockDCT


@dataclass(frozen=True)
class DeadlyDCT(BlockDCT):
    """An encoder whose process is killed the first time it has a batch.

    Attributes:
        mark: A file that tells it has been.
    """

    mark: str = ""

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode, or die."""
        try:
            Path(self.mark).touch(exist_ok=False)
        except FileExistsError:
            return super().encode(pixels)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
