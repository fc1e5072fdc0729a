"""Precomputing: encodes what a store of embeddings lacks, before training begins."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from factory.backends.embeddings import EmbedBackend, PictureEmbedBackend, TextEmbedBackend
from factory.backends.pixels import Picture
from factory.backends.prepared import PreparedBackend
from factory.cache.format.recipe import Keys, canonical
from factory.cache.maintenance.lease import in_turn
from factory.cache.row_locations import LocationFiles
from factory.engine.engine import Engine, Worker
from factory.metrics.stages import progress
from factory.registry.encode_worker import (
    CaptionWorker,
    EncodeBatch,
    EncodeReport,
    PictureWorker,
    Unit,
)

# Samples of a unit at most: of pictures of 1024 x 1024 px a shard of the default size, and
# about a minute of a GPU's work, which is what is lost with an encoder that dies.
UNIT_SAMPLES = 2048
# Units for each copy of a worker where there is less to do: none is idle for long at the end.
UNITS_EACH = 4

Sample = TypeVar("Sample")


@dataclass
class EncodeSummary:
    """What became of the samples that a store was to hold.

    Attributes:
        encoded: How many were encoded.
        cached: How many had rows already.
        bytes: Size of the rows that were made.
        errors: Why others cannot be read, by their row in the catalog.
    """

    encoded: int = 0
    cached: int = 0
    bytes: int = 0
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, report: EncodeReport) -> None:
        """Count what is told of some of them."""
        self.encoded += report.encoded
        self.bytes += report.bytes
        self.errors.update(report.errors)

    def counts(self) -> dict[str, int]:
        """Return the numbers by name, for a stage of telemetry; of the rarer ones what is not 0."""
        rarer = {"bytes": self.bytes, "unreadable": len(self.errors)}
        some = {name: count for name, count in rarer.items() if count}
        return {"encoded": self.encoded, "cached": self.cached, **some}


def fill_captions(
    embeds: TextEmbedBackend, captions: Iterable[str], engine: Engine
) -> EncodeSummary:
    """Encode the captions that are not in the store yet.

    Raises:
        CacheError: The encoder gave rows of another count or shape, or NaN.
    """
    wanted = list(dict.fromkeys(captions))
    keys = embeds.keys(wanted)
    lacking = np.flatnonzero(~embeds.store.contains(keys))
    filled = EncodeSummary()
    with _turn(embeds, "captions", canonical(embeds.recipe), keys[lacking]) as still:
        places = lacking[still]
        missing = [wanted[n] for n in places.tolist()]
        portions = (
            EncodeBatch([missing[n] for n in some], keys[places[some]])
            for some in embeds.batches(missing)
        )
        if missing:
            units = _joined(portions, _unit_samples(len(missing), engine))
            title = f"encode {embeds.name}", len(missing), "captions"
            _work(filled, CaptionWorker(embeds), units, engine, title)
            embeds.store.refresh()
    filled.cached = len(wanted) - len(places)
    return filled


@contextmanager
def _turn(embeds: EmbedBackend, what: str, recipe: str, keys: Keys) -> Iterator[NDArray[np.bool_]]:
    """Wait for other processes that encode the same; yield which keys have no rows then, bool [n].

    Args:
        embeds: The store.
        what: What is encoded, for messages.
        recipe: Tells this work from other work on the same store, which goes on beside it.
        keys: Keys without rows, V16 [n].
    """
    store = embeds.store

    def still() -> NDArray[np.bool_]:
        store.refresh()
        return ~store.contains(keys)

    if not len(keys):
        yield np.zeros(0, np.bool_)
        return
    folder = f"{store.folder}/encoding/{xxhash.xxh3_64_hexdigest(recipe.encode())}"
    work = f"encoding {what} to {embeds.name!r}"
    with in_turn(store.storage, folder, work, lambda: int(np.count_nonzero(still()))):
        yield still()


def fill_pictures(
    source: PreparedBackend,
    embeds: PictureEmbedBackend,
    engine: Engine,
    title: str = "",
    kept: LocationFiles | None = None,
) -> EncodeSummary:
    """Encode the kept pictures of a backend that are not in a store of embeddings yet.

    While one batch is encoded, the next ones are read and decoded and earlier ones written;
    see `PictureWorker`. Pictures are described as there is room for them: all of a large
    backend need not be in memory, only 24 bytes for each that is missing. No key is made where
    it is kept where all rows lie.

    Args:
        source: The backend.
        embeds: The store.
        engine: Where it is done.
        title: What progress calls it; the backend's name if empty.
        kept: Where it is kept on this machine where rows lie; None keeps it in memory.

    Raises:
        StorageError: The storage failed for reasons that are not one picture's own.
        CacheError: The encoder gave rows of another count or shape, or NaN.
    """
    lacking, keys = missing_pictures(source, embeds, kept)
    reader, filled = source.backend.reader, EncodeSummary()
    recipe = f"{source.name}/{canonical(embeds.recipe(reader))}"
    with _turn(embeds, source.name, recipe, keys) as still:
        places, keys = lacking[still], keys[still]
        if len(places):
            frames = source.catalog.decisions.frames or 1
            # Each frame of a clip is one picture to the encoder.
            portion = max(1, embeds.batch_size // frames)
            most = max(portion, _unit_samples(len(places), engine) // portion * portion)
            units = _picture_units(source, places, keys, portion, most)
            words = f"encode {title or source.name}", len(places), "pictures"
            _work(filled, PictureWorker(embeds, reader), units, engine, words)
            embeds.store.refresh()
    filled.cached = source.catalog.decisions.kept - len(places)
    return filled


def missing_pictures(
    source: PreparedBackend, embeds: PictureEmbedBackend, kept: LocationFiles | None = None
) -> tuple[NDArray[np.int64], Keys]:
    """Return which kept pictures have no embeddings, and the keys these would have.

    Args:
        source: The backend.
        embeds: The store.
        kept: Where it is kept on this machine where rows lie; None keeps it in memory.

    Returns:
        Their places in `Decisions.order`, ascending, int64 [missing]; and V16 [missing].

    Raises:
        StorageError: The cache cannot be read.
    """
    found = source.find(embeds, kept)
    return found.lacking, found.keys


def _work(
    filled: EncodeSummary,
    worker: Worker[Unit[Sample], EncodeReport],
    units: Iterable[Unit[Sample]],
    engine: Engine,
    title: tuple[str, int, str],
) -> None:
    with progress(*title) as advance, closing(engine.work(worker, units)) as reports:
        for report in reports:
            filled.add(report)
            advance(report.samples)


def _unit_samples(missing: int, engine: Engine) -> int:
    return min(UNIT_SAMPLES, math.ceil(missing / (UNITS_EACH * engine.copies())))


def _joined(portions: Iterable[EncodeBatch[Sample]], most: int) -> Iterator[Unit[Sample]]:
    """Join portions to units of at most so many samples, or of a single portion."""
    unit: list[EncodeBatch[Sample]] = []
    for portion in portions:
        if unit and sum(len(p.keys) for p in unit) + len(portion.keys) > most:
            yield unit
            unit = []
        unit.append(portion)
    if unit:
        yield unit


def _picture_units(
    source: PreparedBackend, places: NDArray[np.int64], keys: Keys, portion: int, most: int
) -> Iterator[Unit[Picture]]:
    """Yield the missing pictures as units, each of one bucket: its rows become a shard."""
    decisions = source.catalog.decisions
    ends = np.searchsorted(places, decisions.offsets)
    for first, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        for start in range(first, end, most):
            span = slice(start, min(start + most, end))
            pictures = source.pictures(decisions.order[places[span]])
            yield list(_portions(pictures, keys[span], portion))


def _portions(samples: Sequence[Sample], keys: Keys, size: int) -> Iterator[EncodeBatch[Sample]]:
    for start in range(0, len(samples), size):
        yield EncodeBatch(samples[start : start + size], keys[start : start + size])
