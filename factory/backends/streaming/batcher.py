"""Global batches of a stream, assembled in order."""

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from factory.backends.streaming.backend import StreamBackend
from factory.backends.streaming.blocks import BlockPosition, Outcome, ShardBlocks, StreamSample
from factory.errors import EmptyBackendError, ResumeError
from factory.storage.huggingface_stream import RowStream

logger = logging.getLogger("factory")


@dataclass(frozen=True)
class StreamBatch:
    """One global batch of a stream.

    Attributes:
        number: Its number since the run began, from 0.
        bucket: Name of its bucket.
        samples: Its samples, as many as the global batch has.
        duplicates: How many of them only fill it.
    """

    number: int
    bucket: str
    samples: tuple[StreamSample, ...]
    duplicates: int


@dataclass(frozen=True)
class StreamPosition:
    """Where a stream stands after some batches: enough to go on exactly.

    Attributes:
        made: Batches made so far.
        pass_index: The pass over the dataset, from 0.
        taken: Rows of the pass that were taken.
        fruitful: Whether this pass has given a sample yet.
        waiting: Positions of the samples that wait, ascending.
        place: Beginning of the first block that must be read again.
        counts: Rows, samples and batches so far, by what became of them.
    """

    made: int = 0
    pass_index: int = 0
    taken: int = 0
    fruitful: bool = False
    waiting: tuple[int, ...] = ()
    place: BlockPosition = field(default_factory=BlockPosition)
    counts: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        place = vars(self.place)
        return {**vars(self), "waiting": list(self.waiting), "place": dict(place)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StreamPosition":
        """Return the mark that `to_dict` described."""
        place = BlockPosition(**values["place"])
        return cls(**{**values, "waiting": tuple(values["waiting"]), "place": place})


class BucketBuffer:
    """Samples in one queue a bucket, in the order they came.

    What is due is a function of the samples that wait and of the rows read alone, so that
    queues built again from positions go on alike.
    """

    def __init__(self, batch_size: int, rows: int, nbytes: int) -> None:
        """Begin empty.

        Args:
            batch_size: Samples that make a bucket due.
            rows: Rows after which a sample's bucket is due.
            nbytes: Bytes held after which the bucket that has waited longest is due.
        """
        self._batch_size, self._rows, self._limit = batch_size, rows, nbytes
        self._queues: dict[str, deque[StreamSample]] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        """Return the number of samples waiting."""
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[StreamSample]:
        """Yield what waits, bucket by bucket."""
        for queue in self._queues.values():
            yield from queue

    def add(self, sample: StreamSample) -> None:
        """Let one more sample wait."""
        self._queues.setdefault(sample.bucket, deque()).append(sample)
        self.nbytes += len(sample.data)

    def oldest(self) -> str | None:
        """Return the bucket that has waited longest; None where nothing waits."""
        return min(self._queues, key=lambda name: self._queues[name][0].position, default=None)

    def due(self, position: int) -> str | None:
        """Return the bucket that must go out before the row at a position is taken.

        A full one; else the one that has waited longest, if that is too long or if all
        together hold too much.
        """
        for name, queue in self._queues.items():
            if len(queue) >= self._batch_size:
                return name
        oldest = self.oldest()
        if oldest is None:
            return None
        too_long = position - self._queues[oldest][0].position >= self._rows
        return oldest if too_long or self.nbytes > self._limit else None

    def take(self, bucket: str) -> list[StreamSample]:
        """Remove and return the first samples of a bucket, at most a batch."""
        queue = self._queues[bucket]
        taken = [queue.popleft() for _ in range(min(len(queue), self._batch_size))]
        if not queue:
            del self._queues[bucket]
        self.nbytes -= sum(len(sample.data) for sample in taken)
        return taken


class StreamBatcher:
    """Makes the batches of a stream in order; pass follows pass without end.

    Attributes:
        made: Batches made so far.
        rows_read: Rows that were read by this object, those read again after a mark included.
    """

    def __init__(
        self,
        backend: StreamBackend,
        stream: RowStream,
        *,
        batch_size: int,
        seed: int,
        mark: StreamPosition | None = None,
    ) -> None:
        """Go on after a mark: read again the blocks in which samples wait.

        Raises:
            ResumeError: The samples that should wait are not there: the dataset changed.
            StorageError: The dataset cannot be read.
        """
        mark = mark or StreamPosition()
        self._backend, self._stream = backend, stream
        self._batch_size, self._seed = batch_size, seed
        self.made, self._pass, self._fruitful = mark.made, mark.pass_index, mark.fruitful
        self._counts = Counter(mark.counts)
        limit = int(backend.buffer_mb * 2**20)
        self._details: dict[str, str] = {}
        self._waiting = BucketBuffer(batch_size, backend.buffer, limit)
        self._places: dict[int, BlockPosition] = {}
        self._block: Sequence[Outcome] = ()
        self._taken, self._block_end = mark.taken, mark.place.block * backend.block
        self._blocks = self._open(mark.place)
        self.rows_read = 0
        self._replay(mark)

    def __next__(self) -> StreamBatch:
        """Return the next batch.

        Raises:
            EmptyBackendError: A whole pass gave no sample; says what its rows were dropped for.
            StorageError: The dataset cannot be read.
        """
        while True:
            bucket = self._waiting.due(self._taken)
            if bucket is None and not self._take():
                bucket = self._waiting.oldest()
                if bucket is None:
                    self._begin_pass()
            if bucket is not None:
                return self._emit(bucket)

    @property
    def pass_index(self) -> int:
        """The pass over the dataset that is read, from 0."""
        return self._pass

    def mark(self) -> StreamPosition:
        """Return where the stream stands now."""
        waiting = tuple(sorted(sample.position for sample in self._waiting))
        needed = min([*waiting[:1], self._taken]) // self._backend.block
        for block in [block for block in self._places if block < needed]:
            del self._places[block]
        place = self._places.get(needed, self._blocks.place)
        counts = dict(self._counts)
        return StreamPosition(
            self.made, self._pass, self._taken, self._fruitful, waiting, place, counts
        )

    def close(self) -> None:
        """Let go of the file that is open."""
        self._blocks.close()

    def _open(self, place: BlockPosition) -> ShardBlocks:
        return ShardBlocks(
            self._backend, self._stream, seed=self._seed, pass_index=self._pass, place=place
        )

    def _replay(self, mark: StreamPosition) -> None:
        wanted = set(mark.waiting)
        while self._block_end < mark.taken and self._next_block():
            for outcome in self._block:
                if isinstance(outcome, StreamSample) and outcome.position in wanted:
                    self._waiting.add(outcome)
        if len(self._waiting) != len(wanted) or self._block_end < mark.taken:
            raise ResumeError(
                f"backend {self._backend.name!r}: rows that the checkpoint says are waiting are "
                f"not in {self._backend.storage.identity} any more; restore the dataset (pin it "
                f"with storage.revision), or start without ckpt_path"
            )

    def _next_block(self) -> bool:
        """Read the next block; False at the end of the pass."""
        place = self._blocks.place
        before = self._blocks.rows_read
        self._block = self._blocks.read()
        self.rows_read += self._blocks.rows_read - before
        if self._block:
            self._places[place.block] = place
            self._block_end += len(self._block)
        return bool(self._block)

    def _take(self) -> bool:
        """Let the next row wait, or count why it is dropped; False at the end of the pass."""
        if self._taken == self._block_end and not self._next_block():
            return False
        outcome = self._block[self._taken - self._block_end]  # counted from the block's end
        self._taken += 1
        self._counts["rows"] += 1
        if isinstance(outcome, StreamSample):
            self._waiting.add(outcome)
            self._fruitful = True
        else:
            self._drop(outcome)
        return True

    def _drop(self, why: str) -> None:
        """Count a row that is dropped; the first one of each reason is told with its detail."""
        reason, _, detail = why.partition(": ")
        self._counts[f"dropped: {reason}"] += 1
        if detail and reason not in self._details:
            self._details[reason] = detail
            logger.warning("stream %s drops rows as %s: %s", self._backend.name, reason, detail)

    def _examples(self) -> str:
        return "".join(f"; {reason}: {detail}" for reason, detail in self._details.items())

    def _emit(self, bucket: str) -> StreamBatch:
        taken = self._waiting.take(bucket)
        missing = self._batch_size - len(taken)
        samples = tuple(taken[n % len(taken)] for n in range(self._batch_size))
        self._counts["batches"] += 1
        self._counts["repeated to fill"] += missing
        batch = StreamBatch(self.made, bucket, samples, missing)
        self.made += 1
        return batch

    def _begin_pass(self) -> None:
        if not self._fruitful:
            raise EmptyBackendError(
                f"backend {self._backend.name!r}: no row of {self._backend.storage.identity} "
                f"gives a sample: {summary(self._counts) or 'it has no rows'}{self._examples()}"
            )
        self._blocks.close()
        self._pass += 1
        self._counts["passes"] += 1
        self._fruitful = False
        self._taken = self._block_end = 0
        self._places.clear()
        self._blocks = self._open(BlockPosition())


def summary(counts: dict[str, int]) -> str:
    """Return "1200 rows, 75 batches, 3 dropped: truncated" from counts, without zeros."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
