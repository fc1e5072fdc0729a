"""The catalog of one backend: its facts and decisions, read row by row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from factory.catalog.arrow_columns import add_to_hash
from factory.catalog.captions.draws import choose, dropped
from factory.catalog.captions.sources import Captions
from factory.catalog.crops import CropArrays, Crops, SampleCrop
from factory.catalog.decisions import Decisions
from factory.catalog.facts import MANY_ROWS, Facts


@dataclass(frozen=True, eq=False)
class SampleCaptions:
    """The captions of n samples in an epoch.

    Attributes:
        rows: Their rows, int64 [n].
        captions: What each has.
        own: Which of these are the sample's one raw text, trimmed, in every epoch: bool [n].
    """

    rows: NDArray[np.int64]
    captions: list[str]
    own: NDArray[np.bool_]


@dataclass(frozen=True)
class Catalog:
    """Facts and decisions of one backend.

    Attributes:
        facts: What was measured, n rows sorted by key.
        decisions: What is done with each row.
        captions: The strategy that turns raw texts into captions.
        shapes: How rows are resized and cut.
    """

    facts: Facts
    decisions: Decisions
    captions: Captions
    shapes: Crops

    @cached_property
    def identity(self) -> str:
        """Hash of the kept samples' names and versions, 32 hex digits: what rows stand for.

        Two catalogs of equal identity and equal order train on the same samples. Every key is
        read for it, once.
        """
        return self._hash(["key", "etag"])

    @cached_property
    def texts_identity(self) -> str:
        """Hash of the kept samples' raw texts, 32 hex digits; every one is read for it, once."""
        return self._hash(["text"])

    def _hash(self, columns: list[str]) -> str:
        """Hash columns of the facts, of the kept rows."""
        state = xxhash.xxh3_128()
        for first, rows in self.facts.chunks():
            kept = self.decisions.reason[first : first + rows.num_rows] == 0
            chosen = rows.select(columns)
            chosen = chosen if kept.all() else chosen.filter(pa.array(kept))
            for column in chosen.columns:
                add_to_hash(state, column)
        return state.hexdigest()

    def __len__(self) -> int:
        """Return the number of kept samples."""
        return self.decisions.kept

    def crop(self, row: int, epoch: int = 0) -> SampleCrop:
        """Return how a row is resized and cut in an epoch."""
        return self.crops(np.array([row]), epoch).each()[0]

    def crops(self, rows: NDArray[np.int64], epoch: int = 0) -> CropArrays:
        """Return how some rows are resized and cut in an epoch, in their order.

        Args:
            rows: Rows of the catalog, int64 [n].
            epoch: Epoch that random cuts are drawn for; most backends keep those of epoch 0.
        """
        return self.shapes.of(np.asarray(rows, dtype=np.int64), epoch)

    def texts(self, row: int) -> tuple[str, ...]:
        """Return every caption of a row; never empty for a kept row."""
        return self.captions.captions(self.facts.key(row), self.facts.text(row))

    def caption(self, row: int, *, seed: int, epoch: int) -> str:
        """Return the caption a row has in an epoch; see `sample_captions`."""
        return self.sample_captions(np.array([row]), seed=seed, epoch=epoch).captions[0]

    def sample_captions(
        self,
        rows: NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
        keys: Sequence[str] | None = None,
    ) -> SampleCaptions:
        """Return the captions some rows have in an epoch: functions of (seed, epoch, key).

        They are "" where the strategy's dropout strikes.

        Args:
            rows: Kept rows, int64 [n].
            seed: Seed of the choice among a sample's captions.
            epoch: The epoch, from 0.
            keys: Their storage keys, where these are known already.
        """
        keys = self.facts.keys(rows) if keys is None else keys
        raws = self.facts.texts("text", rows)
        every, dropout = self.captions.captions, self.captions.dropout
        found = self.captions.plain(raws)
        own = np.fromiter(map(bool, found), np.bool_, len(found))
        if own.all() and not dropout:
            return SampleCaptions(rows, found, own)
        for place, (key, raw) in enumerate(zip(keys, raws, strict=True)):
            if dropout and dropped(dropout, seed=seed, epoch=epoch, key=key):
                found[place], own[place] = "", False
            elif not found[place]:
                texts = every(key, raw or ())
                found[place] = choose(texts, seed=seed, epoch=epoch, key=key)
        return SampleCaptions(rows, found, own)

    def own_captions(self, rows: NDArray[np.int64]) -> list[str]:
        """Return each row's `SampleCaptions.own` caption, "" for those that have none."""
        # So few at once that their lists do not set off the garbage collector.
        starts = range(0, len(rows), MANY_ROWS - 1)
        parts = (self.facts.texts("text", rows[at : at + MANY_ROWS - 1]) for at in starts)
        return [text for raws in parts for text in self.captions.plain(raws)]

    def all_texts(self) -> Iterator[str]:
        """Yield every caption of every kept row in the order of rows, repeats included."""
        for first, rows in self.facts.chunks():
            kept = np.flatnonzero(self.decisions.reason[first : first + rows.num_rows] == 0)
            chosen = rows.select(["key", "text"]).take(pa.array(kept))
            pairs = zip(chosen["key"].to_pylist(), chosen["text"].to_pylist(), strict=True)
            for key, text in pairs:
                yield from self.captions.captions(key, text or ())
