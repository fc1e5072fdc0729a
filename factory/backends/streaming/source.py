"""A stream made ready: its batches by number, and a state to resume from."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from factory.backends.embeddings import ImageEmbedBackend, TextEmbedBackend, VisionEmbedBackend
from factory.backends.streaming.backend import StreamBackend
from factory.backends.streaming.batcher import StreamBatch, StreamBatcher, StreamPosition, summary
from factory.backends.streaming.blocks import CLOSE_S
from factory.errors import PlanError, StorageError
from factory.storage.huggingface_stream import RowStream

logger = logging.getLogger("factory")

# Batches that are kept for whoever asks again: another micro-batch, or a slower thread. With
# more threads than this some batches are made twice, and none is wrong.
KEPT_BATCHES = 8
# Places a checkpoint may ask for: the trainer lies behind what is prefetched by fewer batches.
KEPT_MARKS = 256


class StreamSource:
    """Gives the batches of a stream by epoch and number, whoever asks for which one first.

    Batches are numbered through all epochs and made in that order: an epoch goes on where the
    one before ended, which is after its last batch unless `end_epoch` said otherwise. One
    that was made before and is not kept any more is made again, from the nearest mark. Safe
    to ask from several threads.

    Attributes:
        backend: The backend.
        latents: What encodes its pictures; None gives pixels.
        text: What encodes its captions; None gives texts only.
        vision: What encodes its pictures to condition on; None for none.
    """

    def __init__(
        self,
        backend: StreamBackend,
        *,
        batch_size: int,
        seed: int,
        latents: ImageEmbedBackend | None = None,
        text: TextEmbedBackend | None = None,
        vision: VisionEmbedBackend | None = None,
    ) -> None:
        """Store the parts; nothing is opened before it is needed.

        Raises:
            PlanError: The buffer does not hold a global batch.
        """
        if backend.buffer < batch_size:
            raise PlanError(
                f"data.backends.{backend.name}.buffer={backend.buffer} holds no batch of "
                f"{batch_size} samples; set it to {batch_size * 16} or more"
            )
        self.backend, self.latents, self.text = backend, latents, text
        self.vision = vision
        self._batch_size, self._seed = batch_size, seed
        self._lock = threading.Lock()
        self._stream: RowStream | None = None
        self._assembly: StreamBatcher | None = None
        self._kept: OrderedDict[int, StreamBatch] = OrderedDict()
        self._marks: dict[int, StreamPosition] = {0: StreamPosition()}
        # Number of the first batch of epochs that do not simply follow a whole one.
        self._firsts: dict[int, int] = {0: 0}
        self._read_before = 0
        self._per_pass: int | None = None
        self._hangs = False

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @property
    def rows_read(self) -> int:
        """Rows read in this process, those read again included."""
        now = 0 if self._assembly is None else self._assembly.rows_read
        return self._read_before + now

    @property
    def counts(self) -> dict[str, int]:
        """What became of the rows so far: rows, batches, passes, each reason of dropping."""
        marks = self._seen()
        return dict(marks[max(marks)].counts)

    def batches_per_pass(self) -> int:
        """Return the global batches of one pass in an epoch, at least one.

        Raises:
            StorageError: The dataset cannot be opened.
            PlanError: It does not say how many rows it has, and `samples` is not set.
        """
        if self._per_pass is None:
            with self._lock:
                samples = self.backend.epoch_samples(self._open())
                self._per_pass = max(1, samples // self._batch_size)
        return self._per_pass

    def batch(self, epoch: int, number: int) -> StreamBatch:
        """Return a global batch.

        Args:
            epoch: The epoch, from 0.
            number: The batch of this backend in the epoch, from 0.

        Raises:
            StorageError: The dataset cannot be read.
            EmptyBackendError: No row of it gives a sample.
            ResumeError: It is not the dataset that the checkpoint was written with.
        """
        wanted = self.ordinal(epoch, number)
        with self._lock:
            found = self._kept.get(wanted)
            if found is not None:
                return found
            try:
                return self._make(wanted)
            except BaseException:
                self._close_batcher()  # what it has begun to read is lost; a mark knows where
                raise

    def ordinal(self, epoch: int, number: int) -> int:
        """Return a batch's number since the run began, epochs taken for whole ones."""
        known = max((each for each in self._firsts if each <= epoch), default=0)
        whole = self.batches_per_pass() * (self.backend.repeats + 1)
        return self._firsts.get(known, 0) + (epoch - known) * whole + number

    def end_epoch(self, epoch: int, number: int) -> None:
        """Note that an epoch ended after so many batches: the next one goes on from there."""
        self._firsts[epoch + 1] = self.ordinal(epoch, number)

    def state_dict(self, epoch: int, number: int) -> dict[str, Any]:
        """Return where to go on from so that the next batch is this one, as plain values."""
        wanted = self.ordinal(epoch, number)
        own = {"identity": self.backend.identity, "seed": self._seed}
        return {**own, "batch": wanted, "mark": _nearest(self._seen(), wanted).to_dict()}

    def load_state_dict(self, state: dict[str, Any] | None, epoch: int, number: int) -> None:
        """Go on from a state, so that the batch it was taken before is the one given here.

        Without a state, or with one of other settings, that batch is the stream's first.

        Args:
            state: What `state_dict` returned.
            epoch: The epoch the run stands in, from 0.
            number: The batch of this backend in it that comes next, from 0.

        Raises:
            StorageError: A read of before hangs.
        """
        batch, mark = 0, StreamPosition()
        own = (self.backend.identity, self._seed)
        if state is not None and (state["identity"], state["seed"]) == own:
            batch, mark = state["batch"], StreamPosition.from_dict(state["mark"])
        else:
            logger.warning(
                "stream %s begins anew: %s", self.name,
                "the checkpoint has none" if state is None else "its settings are others now",
            )  # fmt: skip
        if not self._lock.acquire(timeout=CLOSE_S):
            raise StorageError(
                f"stream {self.name} hangs in a read that began before the checkpoint was loaded; "
                "start the program anew to go on from it"
            )
        try:
            self._close_batcher()
            self._kept.clear()
            self._firsts = {epoch: batch - number}
            self._marks = {mark.made: mark}
        finally:
            self._lock.release()

    def pause(self) -> None:
        """Let go of the file that is read; the next batch reads on from the nearest mark.

        A batch that hangs in the making is not waited for, and by no second call at all.
        """
        if not self._lock.acquire(timeout=0 if self._hangs else CLOSE_S):
            self._hangs = True
            logger.warning("stream %s hangs in a read, which is left to end by itself", self.name)
            return
        try:
            self._hangs = False
            self._close_batcher()
            self._kept.clear()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of all that is open; the source may be used again."""
        self.pause()
        self._stream = None

    def _seen(self) -> dict[int, StreamPosition]:
        """Return the marks as they are now; a batch that hangs in the making holds up nobody."""
        return dict(self._marks)  # copied in one step of the interpreter

    def _open(self) -> RowStream:
        if self._stream is None:
            self._stream = self.backend.open()
        return self._stream

    def _make(self, wanted: int) -> StreamBatch:
        assembly = self._reach(wanted)
        while True:
            passes = assembly.pass_index
            batch = next(assembly)
            mark = assembly.mark()
            if assembly.pass_index > passes:
                logger.info("stream %s begins anew: %s", self.name, summary(mark.counts))
            self._marks[assembly.made] = mark
            while len(self._marks) > KEPT_MARKS:
                del self._marks[min(self._marks)]
            if wanted - batch.number < KEPT_BATCHES:
                self._kept[batch.number] = batch
            while len(self._kept) > KEPT_BATCHES:
                self._kept.popitem(last=False)
            if batch.number == wanted:
                return batch

    def _reach(self, wanted: int) -> StreamBatcher:
        """Return an assembly that has not made the batch yet, the one at work if possible."""
        if self._assembly is None or self._assembly.made > wanted:
            mark = _nearest(self._marks, wanted)
            self._close_batcher()
            self._assembly = StreamBatcher(
                self.backend,
                self._open(),
                batch_size=self._batch_size,
                seed=self._seed,
                mark=mark,
            )
        return self._assembly

    def _close_batcher(self) -> None:
        if self._assembly is not None:
            self._read_before += self._assembly.rows_read
            self._assembly.close()
            self._assembly = None


def _nearest(marks: Mapping[int, StreamPosition], wanted: int) -> StreamPosition:
    """Return the last mark that does not lie behind a batch."""
    made = max((made for made in marks if made <= wanted), default=None)
    return StreamPosition() if made is None else marks[made]
