"""The table of a backend's samples: facts and decisions together, asked row by row."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.catalog.caption_draws import choose, dropped
from factory.catalog.captions import Captions
from factory.catalog.decisions import Decisions
from factory.catalog.facts import Facts


@dataclass(frozen=True)
class Cut:
    """How one sample is resized and cut.

    Attributes:
        intermediary: Size resized to (width, height), px.
        crop: Offset of the cut in the resized picture (top, left), px.
        target: Size cut to (width, height), px.
    """

    intermediary: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Catalog:
    """Facts and decisions of one backend.

    Attributes:
        facts: What was measured, n rows sorted by key.
        decisions: What is done with each row.
        captions: The strategy that turns raw texts into captions.
    """

    facts: Facts
    decisions: Decisions
    captions: Captions

    @property
    def identity(self) -> str:
        """Hash of the kept samples' names and versions, 32 hex digits: what rows stand for.

        Two catalogs of equal identity and equal order train on the same samples.
        """
        kept = self.facts.table.select(["key", "etag"]).take(self.decisions.order)
        state = xxhash.xxh3_128()
        for column in kept.itercolumns():
            for text in column.to_pylist():
                state.update(text.encode())
                state.update(b"\0")  # no key or etag holds it
        return state.hexdigest()

    def __len__(self) -> int:
        """Return the number of kept samples."""
        return self.decisions.kept

    def cut(self, row: int) -> Cut:
        """Return how a row is resized and cut."""
        made = self.decisions
        return Cut(_pair(made.intermediary[row]), _pair(made.crop[row]), _pair(made.target[row]))

    def texts(self, row: int) -> tuple[str, ...]:
        """Return every caption of a row; never empty for a kept row."""
        return self.captions.captions(self.facts.key(row), self.facts.text(row))

    def caption(self, row: int, *, seed: int, epoch: int) -> str:
        """Return the caption a row has in an epoch: a function of (seed, epoch, key).

        It is "" where the strategy's dropout strikes.
        """
        key = self.facts.key(row)
        if dropped(self.captions.dropout, seed=seed, epoch=epoch, key=key):
            return ""
        return choose(self.texts(row), seed=seed, epoch=epoch, key=key)

    def all_texts(self) -> Iterator[str]:
        """Yield every caption of every kept row, repeats included."""
        for row in self.decisions.order.tolist():
            yield from self.texts(row)


def _pair(values: NDArray[np.int32]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
