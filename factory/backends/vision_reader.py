"""Reader of image embeddings for one batch: gathered, or encoded again where they were lost."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from factory.backends.encode_missing import EncodeCounts, EncodedRows, RowRequest
from factory.backends.encode_mode import EncodeMode
from factory.backends.image_reader import beyond_repair
from factory.backends.prepared import PreparedBackend, UnusableSample
from factory.cache.gather.gather_rows import Allocator
from factory.cache.store import UnusableRowsError
from factory.catalog.crops import CropArrays
from factory.engine.engine import Engine


@dataclass(frozen=True)
class VisionReader:
    """Reads the image embeddings of one batch.

    Attributes:
        engine: Decodes pictures whose row was lost.
        tally: Counts those.
        allocate: Makes the tensors that rows are gathered into.
    """

    engine: Engine
    tally: EncodeCounts
    allocate: Allocator

    def read(
        self, source: PreparedBackend, rows: NDArray[np.int64], crops: CropArrays | None = None
    ) -> dict[str, torch.Tensor]:
        """Return image embeddings of some rows in their order: fields [B, ...]; empty for none.

        They are encoded once, beforehand: where cuts are drawn anew in each epoch, they are of
        those of the first one.

        Args:
            source: The backend.
            rows: Rows of its catalog, int64 [B].
            crops: How they are cut, where that is known already.

        Raises:
            UnusableRowsError: A row is missing or damaged, and the picture cannot be encoded
                again, or `cache.damaged` is "stop".
            StorageError: A storage cannot be read.
        """
        vision, reader = source.vision, source.backend.reader
        if vision is None:
            return {}
        crops = None if source.redraws else crops
        with suppress(UnusableRowsError):  # looked at one by one below
            return source.gather(vision, rows, crops, allocate=self.allocate)
        pictures = source.columns(rows, crops)
        keys = vision.keys(reader, pictures)
        wanted = RowRequest(keys, pictures.keys, vision.recipe(reader))
        encoded = EncodedRows(vision, EncodeMode.precompute, source.name)
        found = encoded.find(wanted)

        def encode(
            places: Sequence[int],
        ) -> Iterator[tuple[Sequence[int], dict[str, torch.Tensor]]]:
            """Encode what was lost, pictures of one shape together."""
            outcomes = source.samples(rows[list(places)], self.engine)
            alike: dict[tuple[int, ...], dict[int, NDArray[np.uint8]]] = {}
            for place, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, UnusableSample):
                    raise beyond_repair(found.lost[place], outcome)
                alike.setdefault(outcome.shape, {})[place] = outcome
            for some in alike.values():
                labels = [wanted.labels[place] for place in some]
                pixels = torch.from_numpy(np.stack(list(some.values())))
                yield list(some), vision.encode(pixels, labels)

        return encoded.complete(wanted, found, encode, self.tally)
