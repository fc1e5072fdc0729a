"""Pixels of some rows of a source, as batches have them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.engine.engine import Engine


def pixels_of(source: PreparedBackend, rows: NDArray[Any], engine: Engine) -> torch.Tensor:
    """Return the samples of some rows, uint8 [B, H, W, 3] or [B, F, H, W, 3]."""
    samples = []
    for sample in source.samples(rows, engine):
        assert not isinstance(sample, UnusableSample), sample
        samples.append(sample)
    return torch.from_numpy(np.stack(samples))
