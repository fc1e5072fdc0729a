"""Crops of samples: how rows are resized and cut, computed from their facts on demand.

Cuts are not kept: those of 100 million samples would take gigabytes, those of a batch take a
fraction of a millisecond.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from factory.catalog.arrow_columns import Column, add_to_hash, hash_texts, uniform_draws
from factory.catalog.facts import FOCUS, Facts
from factory.media.geometry.geometry import DRAWS, Geometry

Ints: TypeAlias = NDArray[np.int32]
# Takes widths and heights, int32 [n], and returns n rows of equally many numbers.
Decide: TypeAlias = Callable[[Ints, Ints], Ints]

# 24 bytes each, and a hundred for the dictionary: some 8 MiB when all are taken.
_MOST = 65_536


class SizeMemo:
    """Remembers decisions by size; safe to ask from several threads. A pickled one is empty."""

    def __init__(self, columns: int) -> None:
        """Begin with nothing; decisions are so many numbers each."""
        self._columns = columns
        self._lock = threading.Lock()
        self._known = self._empty()

    def of(self, width: Ints, height: Ints, decide: Decide) -> Ints:
        """Return what is decided about some sizes, int32 [n, columns]."""
        codes = (width.astype(np.int64) << 32 | height).tolist()
        places, made = self._known  # both at once: they belong together
        try:
            return made[[places[code] for code in codes]]
        except KeyError:
            found = decide(width, height)
            self._add(codes, found)
            return found

    def _add(self, codes: list[int], found: Ints) -> None:
        with self._lock:
            if len(self._known[0]) + len(codes) > _MOST:
                self._known = self._empty()
            places, made = self._known
            for code, decision in zip(codes, found, strict=True):
                if code not in places:
                    # The numbers first: whoever sees the place may read them at once.
                    made[len(places)] = decision
                    places[code] = len(places)

    def _empty(self) -> tuple[dict[int, int], Ints]:
        return {}, np.zeros((_MOST, self._columns), dtype=np.int32)

    def __reduce__(self) -> tuple[type["SizeMemo"], tuple[int]]:
        """Leave behind what is remembered: it is quicker made than sent."""
        return SizeMemo, (self._columns,)


# Sizes and offsets of a cut: three pairs.
_NUMBERS = 6
# As many rows as a batch has; more of them are decided together for less than looking each up.
_FEW = 1024


@dataclass(frozen=True)
class SampleCrop:
    """How one sample is resized and cut.

    Attributes:
        intermediary: Size resized to (width, height), px.
        offset: Offset of the cut in the resized picture (top, left), px.
        target: Size cut to (width, height), px.
    """

    intermediary: tuple[int, int]
    offset: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class CropArrays:
    """How some samples are resized and cut, column by column.

    Attributes:
        intermediary: Sizes resized to (width, height), px, int32 [n, 2].
        offset: Offsets of the cuts in the resized pictures (top, left), px, int32 [n, 2].
        target: Sizes cut to (width, height), px, int32 [n, 2].
    """

    intermediary: NDArray[np.int32]
    offset: NDArray[np.int32]
    target: NDArray[np.int32]

    def each(self) -> list[SampleCrop]:
        """Return one `SampleCrop` a row."""
        columns = (self.intermediary, self.offset, self.target)
        pairs = (map(tuple, column.tolist()) for column in columns)
        return list(map(SampleCrop, *pairs))


class Crops(Protocol):
    """Answers how rows of a catalog are cut."""

    @property
    def identity(self) -> str:
        """What the cuts follow from: where it is equal, equal rows are cut alike."""

    def of(self, rows: NDArray[np.int64], epoch: int = 0) -> CropArrays:
        """Return the cuts that some rows have in an epoch, in their order."""


@dataclass(frozen=True)
class OwnCrops:
    """Cuts that follow from the samples' own sizes.

    Attributes:
        facts: The catalog.
        geometry: How targets and cuts follow from sizes.
        seed: Seed of random crops.
    """

    facts: Facts
    geometry: Geometry
    seed: int = 0
    _memo: SizeMemo = field(
        default_factory=lambda: SizeMemo(_NUMBERS), init=False, repr=False, compare=False
    )

    @cached_property
    def identity(self) -> str:
        """Hash of the settings, the seed, every size, and every key where cuts are random."""
        state = xxhash.xxh3_128(f"{self.geometry}/{self.seed}".encode())
        focus = [n for n in FOCUS if n in self.facts.extra] if self.geometry.uses_focus else []
        for name in ("width", "height", *focus):
            for chunk in self.facts.table[name].chunks:
                state.update(np.ascontiguousarray(chunk.fill_null(-1).to_numpy()).data)
        if self.geometry.uses_random:
            for chunk in self.facts.table["key"].chunks:
                add_to_hash(state, chunk)
        return state.hexdigest()

    def of(self, rows: NDArray[np.int64], epoch: int = 0) -> CropArrays:
        """Return the cuts that some rows have in an epoch, in their order."""
        width, height = self.facts.take("width", rows), self.facts.take("height", rows)
        if len(rows) <= _FEW and not self.geometry.uses_random and not self.geometry.uses_focus:
            return _columns_of(self._memo.of(width, height, self._by_size))
        shapes = self.geometry.decide(width, height, self._draws(rows, epoch), self._focus(rows))
        return CropArrays(shapes.intermediary, shapes.crop, shapes.target)

    def _by_size(self, width: NDArray[np.int32], height: NDArray[np.int32]) -> NDArray[np.int32]:
        shapes = self.geometry.decide(width, height)
        return np.concatenate([shapes.intermediary, shapes.crop, shapes.target], axis=1)

    def _draws(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.float64] | None:
        if not self.geometry.uses_random:
            return None  # no key need be read
        keys = pa.array(self.facts.texts("key", rows), pa.large_string())
        return draws(self.geometry, keys, self.seed, epoch)

    def _focus(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return what the cuts are centred on, float32 [n, 2]; NaN where nothing was found."""
        if not self.geometry.uses_focus or FOCUS[0] not in self.facts.extra:
            return None
        focus = np.stack([self.facts.take(name, rows) for name in FOCUS], axis=1)
        return np.where(focus >= 0, focus, np.float32(np.nan))


def _columns_of(numbers: NDArray[np.int32]) -> CropArrays:
    """Return cuts of their six numbers a row, int32 [n, 6]."""
    return CropArrays(numbers[:, 0:2], numbers[:, 2:4], numbers[:, 4:6])


@dataclass(frozen=True)
class PartnerCrops:
    """Cuts of conditioning samples: those of the source samples they belong to.

    Attributes:
        source: Cuts of the source.
        rows: Row of the source for each row here, int64 [n].
    """

    source: Crops
    rows: NDArray[np.int64]

    @cached_property
    def identity(self) -> str:
        """Hash of the source's, and of which row each belongs to."""
        state = xxhash.xxh3_128(self.source.identity.encode())
        state.update(np.ascontiguousarray(self.rows).data)
        return state.hexdigest()

    def of(self, rows: NDArray[np.int64], epoch: int = 0) -> CropArrays:
        """Return the cuts that some rows have in an epoch, in their order."""
        return self.source.of(self.rows[rows], epoch)


def draws(
    geometry: Geometry, keys: Column, seed: int, epoch: int = 0
) -> NDArray[np.float64] | None:
    """Return a sample's random numbers, float64 [n, 3]; None where nothing is random.

    They follow from the seed, the epoch and the sample's key alone, so a sample keeps its cut
    when others come or go. The first number, which chooses the aspect, is that of every epoch:
    a sample's bucket is part of the plan.
    """
    if not geometry.uses_random:
        return None
    hashes = hash_texts(keys)
    numbers = uniform_draws(hashes, DRAWS, seed=seed)
    if epoch:
        numbers[:, 1:] = uniform_draws(hashes, DRAWS, seed=seed, epoch=epoch)[:, 1:]
    return numbers
