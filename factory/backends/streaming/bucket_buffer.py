"""Buffer of a stream's samples by bucket, until a bucket has a full batch."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from factory.backends.pixels import Picture


@dataclass(frozen=True, slots=True)
class StreamSample:
    """One sample of a stream, as it waits.

    Attributes:
        position: Its number in the pass, in reading order, dropped rows counted.
        bucket: Name of its bucket.
        picture: How it is cut.
        size: Its width and height, px.
        data: Its bytes as the dataset holds them.
        captions: Every caption it may be trained with.
    """

    position: int
    bucket: str
    picture: Picture
    size: tuple[int, int]
    data: bytes
    captions: tuple[str, ...]


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
