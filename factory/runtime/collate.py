"""From planned rows to the batch a training step receives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.source import Source
from factory.backends.stream_source import StreamSource
from factory.bulk import Engine
from factory.runtime.batch import Batch
from factory.runtime.stream_batch import stream_batch
from factory.sampling.plan import PlanStep


@dataclass(frozen=True)
class Collate:
    """Puts batches together; safe to call from several threads.

    Attributes:
        sources: The backends made ready, by name.
        engine: Reads pixels where no image encoder is set.
        seed: Seed of the choice among a sample's captions.
        streams: The streams, by name.
    """

    sources: Mapping[str, Source]
    engine: Engine
    seed: int
    streams: Mapping[str, StreamSource] = field(default_factory=dict)

    def __call__(
        self,
        step: PlanStep,
        rows: NDArray[np.int64],
        valid: NDArray[np.bool_] | None = None,
    ) -> Batch:
        """Return the batch of some rows of a planned step, in their order.

        Args:
            step: The planned step.
            rows: This rank's share of its rows, int64 [B].
            valid: Which of them count, bool [B]; None means all.

        Raises:
            CacheError: A latent or embedding is missing or damaged.
            MediaError: A picture is damaged (only where pixels are read).
            StorageError: A picture, or a stream, cannot be read.
        """
        stream = self.streams.get(step.backend)
        if stream is not None:
            return stream_batch(stream, step, rows, self.engine, self.seed)
        source = self.sources[step.backend]
        catalog = source.catalog
        captions = [catalog.caption(row, seed=self.seed, epoch=step.epoch) for row in rows.tolist()]
        latents, pixels = None, None
        if source.latents is None:
            pixels = source.read_pixels(rows, self.engine)
        else:
            latents = source.read_latents(rows)["latents"]
        facts, cuts = catalog.facts, catalog.cuts(rows)
        size = np.stack([facts.take("width", rows), facts.take("height", rows)], axis=1)
        return Batch(
            backend=step.backend,
            bucket=step.bucket,
            epoch=step.epoch,
            step=step.step,
            keys=facts.texts("key", rows),
            captions=captions,
            original_size=torch.from_numpy(size.astype(np.int32)),
            target_size=torch.from_numpy(cuts.target),
            crop_top_left=torch.from_numpy(cuts.crop),
            valid=_valid(valid, len(rows)),
            latents=latents,
            pixels=pixels,
            text=source.read_text(captions),
            conditioning=_conditioning(source, rows, self.engine),
            slider_strength=step.slider_strength,
        )


def _valid(valid: NDArray[np.bool_] | None, count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool) if valid is None else torch.from_numpy(valid)


def _conditioning(
    source: Source, rows: NDArray[np.int64], engine: Engine
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (partner, partner_rows) in source.conditioning.items():
        chosen = partner_rows[rows]
        if partner.latents is None:
            tensors[name] = partner.read_pixels(chosen, engine)
        else:
            tensors[name] = partner.read_latents(chosen)["latents"]
    return tensors


def batch_bytes(batch: Batch) -> int:
    """Return how many bytes the tensors of a batch hold."""
    tensors: Sequence[torch.Tensor | None] = [
        batch.latents,
        batch.pixels,
        *batch.text.values(),
        *batch.conditioning.values(),
    ]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
