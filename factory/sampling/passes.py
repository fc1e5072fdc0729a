"""Passes over one backend: the rows of its n-th batch in an epoch."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from factory.errors import PlanError
from factory.sampling.active_window import ActiveWindow
from factory.sampling.permutation import Permutation, derive_key, images_by_row

ShortBatch = Literal["fill", "short", "drop"]

# Shuffles kept ready, of the passes in progress: 32 KiB each at most, so 8 MiB a backend. Where
# there are many buckets, those of two passes are kept.
KEPT_SHUFFLES = 256
# Batches made at once where they are asked for in order, and rows of them: half a millisecond,
# in which the cost of calling numpy is shared by all of them.
BLOCK_BATCHES = 64
BLOCK_ROWS = 4096


def _is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and isfinite(value)


@dataclass(frozen=True, eq=False)
class PlanBackend:
    """What the plan must know of one backend.

    Attributes:
        name: The backend's name.
        order: Row ids sorted by bucket, integers [n]; may be a memory map, and is never copied.
        offsets: Start of each bucket in `order`, then n: int64 [len(buckets) + 1].
        buckets: Names of the buckets, such as "128x96".
        probability: Share it asks for, relative to the others, 0 or more.
        repeats: Passes over its samples in an epoch beyond the first, 0 or more.
        window: When it takes part.
        batch_size: Samples of its global batches; None for the plan's.
        identity: Names the samples behind the row ids, such as a catalog's checksum; part of
            the fingerprint.
        sequential: Whether its batches come one after another, as of a stream: nothing is
            shuffled, and a row id is a sample's number in the epoch. Such a backend has one
            bucket, of whole batches, and an identity that tells it from others.
        slider_strength: Above 0, below 0 or 0: groups of backends of equal sign take turns, as
            soon as one is not 0. None is neutral, and says nothing in batches.
    """

    name: str
    order: NDArray[Any]
    offsets: NDArray[np.int64]
    buckets: tuple[str, ...]
    probability: float = 1.0
    repeats: int = 0
    window: ActiveWindow = field(default_factory=ActiveWindow)
    batch_size: int | None = None
    identity: str = ""
    sequential: bool = False
    slider_strength: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            PlanError: A setting is out of range, the backend has no sample, or the offsets do
                not cut `order` into the buckets.
        """
        where = f"backend {self.name!r}"
        if not 0 <= self.probability < float("inf"):
            raise PlanError(f"{where}: probability must be 0 or more, got {self.probability}")
        if self.repeats < 0:
            raise PlanError(
                f"{where}: repeats must be 0 or more, got {self.repeats}; it counts passes "
                "beyond the first, so 0 trains on every sample once an epoch"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise PlanError(f"{where}: batch_size must be 1 or more, got {self.batch_size}")
        strength = self.slider_strength
        if strength is not None and not _is_number(strength):
            raise PlanError(f"{where}: slider_strength must be a number or null, got {strength!r}")
        if len(self.order) == 0:
            raise PlanError(
                f"{where} is empty: no sample is left; remove it or correct its filters"
            )
        if len(set(self.buckets)) != len(self.buckets):
            raise PlanError(f"{where}: two buckets have one name in {self.buckets}")
        sizes = np.diff(self.offsets)
        ends = [int(end) for end in self.offsets[[0, -1]]] if sizes.size else []
        if len(sizes) != len(self.buckets) or ends != [0, len(self.order)] or sizes.min() < 0:
            raise PlanError(
                f"{where}: offsets must rise from 0 to {len(self.order)} in "
                f"{len(self.buckets) + 1} numbers, one more than buckets; got "
                f"{np.asarray(self.offsets).tolist()}"
            )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Samples of each bucket, int64 [len(buckets)]."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class PassBatch:
    """One batch of one pass.

    Attributes:
        bucket: Name of its bucket.
        rows: Row ids, int64 [B].
        duplicates: How many of them are there only to fill the batch.
        pass_index: The pass it belongs to, from 0.
    """

    bucket: str
    rows: NDArray[np.int64]
    duplicates: int
    pass_index: int


@dataclass(frozen=True)
class PassCounts:
    """What some batches of a backend amount to: counts of samples.

    Attributes:
        rows: Samples given, duplicates included.
        duplicates: Samples given only to fill short batches.
        dropped: Samples that completed passes left out for want of a full batch.
    """

    rows: int
    duplicates: int
    dropped: int


class Passes:
    """The batches of one backend: every pass visits every row once, in an order of its own.

    Rows of a bucket are shuffled and cut into batches; the batches of all buckets are
    shuffled again. Both shuffles are index bijections, so any batch is found directly.
    """

    def __init__(
        self, backend: PlanBackend, batch_size: int, short_batch: ShortBatch, seed: int
    ) -> None:
        """Count the batches of a pass.

        Args:
            backend: The backend.
            batch_size: Samples of a global batch, unless the backend sets its own.
            short_batch: What becomes of a last batch below that size: filled up from its
                bucket, left short, or dropped.
            seed: Seed of the plan.

        Raises:
            PlanError: No bucket fills a batch and short ones are dropped, or a wrong option.
        """
        if short_batch not in get_args(ShortBatch):
            allowed = ", ".join(get_args(ShortBatch))
            raise PlanError(f"short_batch must be one of {allowed}; got {short_batch!r}")
        self.backend = backend
        self.batch_size = backend.batch_size or batch_size
        self.short_batch = short_batch
        self.seed = seed
        sizes = backend.sizes
        self._rest = sizes % self.batch_size
        per_bucket = sizes // self.batch_size
        if short_batch != "drop":
            per_bucket = per_bucket + (self._rest > 0)
        self._ends = np.cumsum(per_bucket)
        self.per_pass = int(self._ends[-1])
        self.per_epoch = self.per_pass * (backend.repeats + 1)
        if not self.per_pass:
            raise PlanError(
                f"backend {backend.name!r}: short_batch=drop leaves nothing, because no bucket "
                f"holds a batch of {self.batch_size} (the largest holds {sizes.max()}); set "
                f"short_batch=fill, or batch_size={sizes.max()} or less. Repeats do not help: "
                "each pass is cut into batches by itself"
            )
        self._sizes, self._starts = sizes, self._ends - per_bucket
        self._shuffles: dict[tuple[int | str, ...], Permutation] = {}
        self._kept = max(KEPT_SHUFFLES, 2 * len(sizes) + 2)
        self._block = max(min(BLOCK_BATCHES, BLOCK_ROWS // self.batch_size), 1)
        # The batch after the one asked for last, and those made in advance, by (epoch, number).
        self._next = (-1, -1)
        self._ahead: dict[tuple[int, int], PassBatch] = {}

    def batch(self, epoch: int, number: int) -> PassBatch:
        """Return a batch of an epoch; its rows are the caller's own.

        Batches asked for in their order are made some at a time and kept until they are
        asked for; what is returned is the same.

        Args:
            epoch: The epoch, from 0.
            number: The batch, from 0; `per_epoch` and above for passes beyond the repeats.
        """
        if self.backend.sequential:
            rows = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
            return PassBatch(self.backend.buckets[0], rows, 0, number // self.per_pass)
        place = (epoch, number)
        follows, self._next = place == self._next, (epoch, number + 1)
        ahead = self._ahead
        made = ahead.get(place)
        if made is None:
            count = self._block if follows else 1
            pass_index, first = divmod(number, self.per_pass)
            batches = self._make(epoch, pass_index, first, min(count, self.per_pass - first))
            made = batches[0]
            if follows:
                self._ahead = {(epoch, number + at): each for at, each in enumerate(batches)}
        return PassBatch(made.bucket, made.rows.copy(), made.duplicates, made.pass_index)

    def _make(self, epoch: int, pass_index: int, first: int, count: int) -> list[PassBatch]:
        """Return `count` batches of a pass in a row, from its `first`."""
        drawn = self._shuffle(self.per_pass, epoch, pass_index, "batches")(
            np.arange(first, first + count)
        )
        buckets = np.searchsorted(self._ends, drawn, side="right")
        sizes = self._sizes[buckets]
        starts = (drawn - self._starts[buckets]) * self.batch_size
        missing = np.maximum(starts + self.batch_size - sizes, 0).tolist()
        # Past the end of the shuffled bucket it goes on from its beginning: as random as
        # any other choice, and no row comes twice unless the bucket is below one batch.
        indices = (starts[:, None] + np.arange(self.batch_size)) % sizes[:, None]
        names = [self.backend.buckets[bucket] for bucket in buckets.tolist()]
        shuffles = [
            self._shuffle(size, epoch, pass_index, "rows", name)
            for size, name in zip(sizes.tolist(), names, strict=True)
        ]
        shuffled = images_by_row(shuffles, indices) + self.backend.offsets[buckets][:, None]
        rows = np.asarray(self.backend.order[shuffled], dtype=np.int64)
        if self.short_batch == "fill":
            each = zip(names, rows, missing, strict=True)
            return [PassBatch(name, mine, less, pass_index) for name, mine, less in each]
        return [
            PassBatch(name, mine[: self.batch_size - less], 0, pass_index)
            for name, mine, less in zip(names, rows, missing, strict=True)
        ]

    def tally(self, epoch: int, batches: int) -> PassCounts:
        """Count what the first batches of an epoch amount to, 0 <= batches <= per_epoch."""
        passes, begun = divmod(batches, self.per_pass)
        short = np.flatnonzero(self._rest)
        if self.short_batch == "drop":
            dropped = passes * int(self._rest.sum())
            return PassCounts(batches * self.batch_size, 0, dropped)
        times = np.full(len(short), passes)
        if begun:
            shuffle = self._shuffle(self.per_pass, epoch, passes, "batches")
            times += shuffle.inverse(self._ends[short] - 1) < begun
        missing = int((times * (self.batch_size - self._rest[short])).sum())
        rows = batches * self.batch_size
        if self.short_batch == "fill":
            return PassCounts(rows, missing, 0)
        return PassCounts(rows - missing, 0, 0)

    def _shuffle(self, size: int, epoch: int, pass_index: int, *what: str) -> Permutation:
        name: tuple[int | str, ...] = (epoch, pass_index, *what)
        found = self._shuffles.get(name)
        if found is None:
            if len(self._shuffles) >= self._kept:
                self._shuffles.clear()
            key = derive_key(self.seed, epoch, self.backend.name, pass_index, *what)
            found = self._shuffles[name] = Permutation(size, key)
        return found
