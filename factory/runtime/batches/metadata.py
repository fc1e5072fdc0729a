"""What is known of the samples of a batch before one of them is read?

Their names, captions and crops, and where their captions' rows lie: all of it follows from the
catalog. Asked for a batch of sixteen it takes as long as copying its rows; asked for several
batches at once, hardly longer. Those that come one after another are therefore described together,
by whoever makes the first of them; and what they need of a disk is asked of it at once.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.conditioning_sets import partner_rows
from factory.backends.prepared import PreparedBackend
from factory.cache.gather.row_refs import GatherPlan
from factory.catalog.crops import CropArrays
from factory.runtime.batches.sent_once import SentOnce

# Describes rows, int64 [n], of one backend in one epoch.
Describe: TypeAlias = "Callable[[NDArray[np.int64]], Outline]"
# Samples described together: what a call costs whatever it is asked is then little for each. More
# than these gain nothing, and whoever needs the next batch waits until all are described.
TOGETHER = 1024
# The same at the beginning, and twice as many each time: the first batch comes soon.
AT_FIRST = 64


@dataclass(frozen=True, eq=False)
class Outline:
    """What is known of B samples of one backend.

    Attributes:
        rows: Their rows in the catalog, int64 [B].
        keys: Storage keys.
        captions: The captions they have in the epoch.
        original_size: Source sizes (width, height), px, int32 [B, 2].
        crops: How they are resized and cut.
        latents: Where the rows of the latents lay when this was made; None where nobody has looked.
        text: Where those of the captions lay.
    """

    rows: NDArray[np.int64]
    keys: list[str]
    captions: list[str]
    original_size: NDArray[np.int32]
    crops: CropArrays
    latents: GatherPlan | None
    text: GatherPlan | None

    @classmethod
    def of(
        cls, source: PreparedBackend, rows: NDArray[np.int64], *, seed: int, epoch: int
    ) -> "Outline":
        """Describe some rows of a backend in an epoch; have a disk begin to read what is theirs.

        Args:
            source: The backend.
            rows: Rows of its catalog, int64 [B].
            seed: Seed of the choice among a sample's captions.
            epoch: The epoch.
        """
        facts = source.catalog.facts
        keys = facts.keys(rows)
        sample_captions = source.catalog.sample_captions(rows, seed=seed, epoch=epoch, keys=keys)
        text = source.locate_text(sample_captions)
        latents, vision = (source.located(each, rows) for each in (source.latents, source.vision))
        beside = _beside(source, rows, seed=seed, epoch=epoch)
        for located in (latents, vision, text, *beside):
            if located is not None:
                located.willneed()
        size = np.stack([facts.take("width", rows), facts.take("height", rows)], axis=1)
        return cls(
            rows,
            keys,
            sample_captions.captions,
            size.astype(np.int32),
            source.crops(rows, epoch),
            latents,
            text,
        )

    def told(self) -> dict[str, Any]:
        """Return the fields of `Batch` that say these things."""
        return {
            "rows": torch.from_numpy(self.rows),
            "keys": self.keys,
            "captions": self.captions,
            "original_size": torch.from_numpy(self.original_size),
            "target_size": torch.from_numpy(self.crops.target),
            "crop_top_left": torch.from_numpy(self.crops.offset),
        }

    def split(self, counts: Sequence[int]) -> "Iterator[Outline]":
        """Yield the first samples, those that follow, and so on: so many each."""
        end = 0
        parts = (
            repeat(None) if each is None else each.split(counts)
            for each in (self.latents, self.text)
        )
        for count, latents, text in zip(counts, *parts, strict=False):
            some = slice(end, end := end + count)
            crops = self.crops
            yield Outline(
                self.rows[some],
                self.keys[some],
                self.captions[some],
                self.original_size[some],
                CropArrays(crops.intermediary[some], crops.offset[some], crops.target[some]),
                latents,
                text,
            )


def _beside(
    source: PreparedBackend, rows: NDArray[np.int64], *, seed: int, epoch: int
) -> Iterator[GatherPlan | None]:
    """Yield where the rows of the partners lie that some samples have in an epoch."""
    for name, partners in partner_rows(source, rows, seed=seed, epoch=epoch).items():
        partner, there = source.conditioning[name][0], partners[partners >= 0]
        for embeds in (partner.latents, partner.vision):
            yield partner.located(embeds, there)


class Neighbours(SentOnce):
    """Samples of several batches of one backend and epoch, described by the first who asks.

    In each process anew: to another one only the rows are sent.
    """

    def __init__(self, rows: Sequence[NDArray[np.int64]]) -> None:
        """Hold the rows of each batch; nothing is described."""
        self._rows: list[NDArray[np.int64]] = list(rows)
        self._found: dict[int, Outline] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the rows alone."""
        return Neighbours, (self._rows,)

    def outline(self, batch: int, describe: Describe) -> Outline:
        """Return what is known of one batch; it is given once, and made anew if asked again."""
        with self._lock:
            if self._found is None:
                whole = describe(np.concatenate(self._rows))
                self._found = dict(enumerate(whole.split([len(rows) for rows in self._rows])))
            known = self._found.pop(batch, None)
        # A copy: whoever is given an outline may write to it.
        return describe(self._rows[batch].copy()) if known is None else known
