"""Encoding of rows that a batch needs and the cache does not have.

They are encoded on the spot and, where the mode keeps them, written. A row that should be there
and is damaged or gone is told, counted, and encoded like any other.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.embeddings import EmbedBackend, TextEmbedBackend
from factory.backends.encode_mode import EncodeMode
from factory.cache.format.recipe import Keys
from factory.cache.gather.gather_rows import Allocator, new_tensor
from factory.cache.maintenance.verify import drop_shard
from factory.cache.store import UnusableRowsError
from factory.cache.write_buffer import EncodedRow, joined_rows
from factory.cache.writer import checked_rows

logger = logging.getLogger("factory")


@dataclass
class EncodeCounts:
    """How many rows were encoded for a batch.

    Attributes:
        encoded: All of them.
        rebuilt: Those whose row in the cache was damaged or gone.
    """

    encoded: int = 0
    rebuilt: int = 0


@dataclass(frozen=True)
class RowRequest:
    """Rows that a batch needs, n of them.

    Attributes:
        keys: Their keys, V16 [n].
        labels: What they are of: storage keys or captions.
        recipe: What they have in common.
    """

    keys: Keys
    labels: Sequence[str]
    recipe: Mapping[str, object]


@dataclass(frozen=True)
class FoundRows:
    """What is there of the rows wanted.

    Attributes:
        rows: The rows; None for those to be encoded.
        lost: Why rows that should be there cannot be used, by their place.
    """

    rows: list[EncodedRow | None]
    lost: Mapping[int, UnusableRowsError]


# Encodes the rows at some places: yields which of them come together, and their fields.
Encode = Callable[[Sequence[int]], Iterable[tuple[Sequence[int], dict[str, torch.Tensor]]]]


@dataclass(frozen=True)
class EncodedRows:
    """The rows that one dataset has in a store, as its mode wants them.

    Attributes:
        embeds: The store, and what encodes for it.
        mode: When rows are encoded.
        dataset: Name of the dataset, for messages.
    """

    embeds: EmbedBackend
    mode: EncodeMode
    dataset: str

    def find(self, request: RowRequest) -> FoundRows:
        """Return the rows that are there, published or not.

        Raises:
            UnusableRowsError: A row is damaged or gone, and `cache.damaged` is "stop".
            StorageError: The cache cannot be read.
        """
        if not self.mode.keeps:
            return FoundRows([None] * len(request.keys), {})
        rows = self.embeds.write_buffer.find(request.keys)
        left = np.flatnonzero([row is None for row in rows])
        left, missing = self._published(request.keys, left)
        lost = self._gather(request.keys, left, rows)
        if lost:
            # Another process may have moved rows to a new shard, and removed the old one.
            self.embeds.store.refresh()
            again = self._gather(request.keys, np.array(sorted(lost)), rows)
            lost = {place: lost[place] for place in again}
        if self.mode.ahead and missing.size:
            lost.update(dict.fromkeys(missing.tolist(), self._absence(request.keys[missing])))
        if lost and self.embeds.cache.damaged == "stop":
            raise next(iter(lost.values()))
        return FoundRows(rows, lost)

    def complete(
        self, request: RowRequest, found: FoundRows, encode: Encode, tally: EncodeCounts
    ) -> dict[str, torch.Tensor]:
        """Return all rows as fields [n, ...], encoding those that were not found.

        A key that comes more than once is encoded once.

        Raises:
            CacheError: The encoder gave rows of another count or shape, or NaN.
            StorageError: Encoded rows cannot be written.
            Exception: The encoder failed; a note says what it was given.
        """
        names = [key.tobytes() for key in request.keys]
        rows = {name: row for name, row in zip(names, found.rows, strict=True) if row is not None}
        missing = {name: n for n, name in reversed(list(enumerate(names))) if name not in rows}
        with self.embeds.write_buffer.encoding if self.mode.keeps else nullcontext():
            places = np.array(sorted(missing.values()), dtype=np.int64)
            if self.mode.keeps:  # another thread may have encoded some meanwhile
                again = self.embeds.write_buffer.find(request.keys[places])
                rows.update({names[n]: r for n, r in zip(places, again, strict=True) if r})
            left = [place for place in places.tolist() if names[place] not in rows]
            rebuilt = [place for place in left if place in found.lost]
            self._tell(request, found, rebuilt)
            for some, fields in encode(left) if left else ():
                tensors = self._taken_in(request, some, fields)
                rows.update({names[n]: EncodedRow(tensors, index) for index, n in enumerate(some)})
        tally.encoded += len(left)
        tally.rebuilt += len(rebuilt)
        return joined_rows([rows[name] for name in names], pad=self.embeds.pads)

    def _taken_in(
        self, request: RowRequest, places: Sequence[int], fields: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Write encoded rows, if they are kept; return them on the CPU."""
        keys, labels = request.keys[list(places)], [request.labels[place] for place in places]
        if self.mode.keeps:
            return self.embeds.write_buffer.add(request.recipe, keys, fields, labels)
        return checked_rows(keys, fields, labels)[1]

    def _gather(
        self, keys: Keys, places: NDArray[np.int64], rows: list[EncodedRow | None]
    ) -> dict[int, UnusableRowsError]:
        """Put the rows of some places there; return why others cannot be used, by place."""
        lost: dict[int, UnusableRowsError] = {}
        while places.size:
            try:
                fields = self.embeds.store.gather(keys[places], pad=self.embeds.pads)
            except UnusableRowsError as error:  # says what was found first, perhaps not all
                lost.update(dict.fromkeys(places[error.places].tolist(), error))
                places = np.delete(places, error.places)
            else:
                for at, place in enumerate(places.tolist()):
                    rows[place] = EncodedRow(fields, at)
                break
        return lost

    def _published(
        self, keys: Keys, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Split places into those whose row is in the store, and those whose is not."""
        store = self.embeds.store
        there = store.contains(keys[places])
        if not there.all() and self.embeds.write_buffer.look():
            there = store.contains(keys[places])
        return places[there], places[~there]

    def _absence(self, keys: Keys) -> UnusableRowsError:
        """Return what a store says of rows that it has not."""
        try:
            self.embeds.store.gather(keys, pad=self.embeds.pads)
        except UnusableRowsError as error:
            return error
        # Published by somebody else in this very moment: no loss, only encoded once too often.
        return UnusableRowsError("rows were not in the cache a moment ago", np.arange(len(keys)))

    def _tell(self, request: RowRequest, found: FoundRows, places: list[int]) -> None:
        """Warn of rows that are rebuilt, those of one shard together."""
        by_cause: dict[int, list[int]] = {}
        for place in places:
            by_cause.setdefault(id(found.lost[place]), []).append(place)
        for some in by_cause.values():
            first = some[0]
            # What the error advises is for a run that stops.
            reason = str(found.lost[first]).partition("; ")[0]
            logger.warning(
                "%s: %d rows of %s cannot be used and are encoded anew, the first that of %r "
                "(key %s): %s",
                self.embeds.name, len(some), self.dataset, request.labels[first],
                request.keys[first].tobytes().hex(), reason,
            )  # fmt: skip


def read_captions(
    embeds: TextEmbedBackend,
    captions: Sequence[str],
    mode: EncodeMode,
    dataset: str,
    tally: EncodeCounts | None = None,
    *,
    allocate: Allocator = new_tensor,
) -> dict[str, torch.Tensor]:
    """Return the fields of captions, [B, ...] in their order, encoding what is not there.

    Args:
        embeds: Their store.
        captions: The captions, B of them.
        mode: When they are encoded.
        dataset: Whose captions they are, for messages.
        tally: Counts what is encoded.
        allocate: Makes the tensors that are gathered.

    Raises:
        UnusableRowsError: A row is damaged or gone, and `cache.damaged` is "stop".
        CacheError: The encoder gave rows of another count or shape, or NaN.
        StorageError: The cache cannot be read or written.
    """
    if mode.keeps:
        try:
            return embeds.gather(captions, allocate=allocate)
        except UnusableRowsError:
            pass  # looked at one by one below
    rows = EncodedRows(embeds, mode, dataset)
    request = RowRequest(embeds.keys(captions), captions, embeds.recipe)

    def encode(places: Sequence[int]) -> Iterable[tuple[list[int], dict[str, torch.Tensor]]]:
        """Encode captions in the groups that their store wants."""
        texts = [captions[place] for place in places]
        for group in embeds.batches(texts):
            some = [places[each] for each in group]
            yield some, embeds.encode([captions[place] for place in some])

    return rows.complete(request, rows.find(request), encode, tally or EncodeCounts())


def of_other_epoch(recipe: Mapping[str, object], dataset: str, epoch: int) -> bool:
    """Tell whether rows are a dataset's for another epoch alone, by their common recipe."""
    return recipe.get("dataset") == dataset and recipe.get("epoch") != epoch


def forget_epochs(embeds: EmbedBackend, dataset: str, but: int) -> None:
    """Remove what was encoded for epochs of a dataset, all but one.

    Another process that still has such a shard open may go on; one that asks for it anew
    encodes its rows again.

    Raises:
        StorageError: The cache cannot be read or written to.
    """
    embeds.write_buffer.discard(lambda recipe: of_other_epoch(recipe, dataset, but))
    embeds.store.refresh()
    for name, record in embeds.store.snapshot().records.items():
        if of_other_epoch(json.loads(record.recipe), dataset, but):
            drop_shard(embeds.store, name)
