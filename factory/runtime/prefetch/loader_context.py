"""What the loaders of a run share: the worker process, the way to a device, and the totals."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from factory.runtime.batches.batch import Batch
from factory.runtime.batches.buffer_pool import BufferPool
from factory.runtime.batches.collate import batch_bytes
from factory.runtime.batches.request import BatchRequest, FlushRequest
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.device import CudaCopier, DeviceCopier, copier_for
from factory.runtime.prefetch.executors import BatchFuture
from factory.runtime.prefetch.report import FetchTotal
from factory.runtime.prefetch.worker.process import BatchWorker

if TYPE_CHECKING:  # loaded where it is needed, for it takes a second
    import torch


@dataclass(frozen=True)
class RowsOnHost:
    """Stages a batch but for its rows, which the ledger reads: it must not wait for a device.

    Attributes:
        copier: Stages all the rest.
    """

    copier: DeviceCopier

    def begin(self, batch: Batch) -> Any:
        """Begin to copy a batch."""
        # Cloned, since what a batch is a view of, memory of another process, is let go.
        return self.copier.begin(batch), batch.rows.clone()

    def finish(self, staged: Any) -> Batch:
        """Return the batch as the consumer may use it."""
        moved, rows = staged
        batch: Batch = self.copier.finish(moved)
        return replace(batch, rows=rows)


@dataclass
class LoaderContext:
    """Makes the fetchers of a run.

    Attributes:
        worker: The worker process, where there is one.
        here: Which requests are served in this process all the same.
        copier: How batches get onto the device.
        total: What the training's fetchers have done.
        memory: Where the large tensors of batches that are made here come from.
    """

    worker: BatchWorker[Any, Any] | None = None
    here: Callable[[BatchRequest], bool] | None = None
    copier: DeviceCopier | None = None
    total: FetchTotal = field(default_factory=FetchTotal)
    memory: BufferPool = field(default_factory=BufferPool)
    _flushing: BatchFuture[FlushRequest, None] | None = None
    _copied: tuple[Any, ...] | None = field(default=None, init=False)

    def set_device(self, device: "torch.device | None", prefetch: Prefetch) -> None:
        """Say where the trainer works; what is under way to the same device goes on."""
        wanted = (device, prefetch.pins, prefetch.device_ahead)
        if wanted == self._copied:
            return
        self._copied = wanted
        self.copier = copier_for(
            device, pin_memory=prefetch.pins, device_ahead=prefetch.device_ahead
        )
        # Batches are gathered where the device copies from, if they are held until it has.
        self.memory.pin = isinstance(self.copier, CudaCopier) and self.copier.pin

    def fetcher(
        self,
        make: Callable[[BatchRequest], Batch],
        requests: Iterable[BatchRequest],
        prefetch: Prefetch,
    ) -> BatchFetcher[BatchRequest, Batch]:
        """Return a fetcher of some requests; nothing starts."""
        return BatchFetcher(
            make,
            requests,
            prefetch,
            nbytes=batch_bytes,
            worker=self.worker,
            here=self.here,
            copier=None if self.copier is None else RowsOnHost(self.copier),
        )

    def flush(self) -> None:
        """Have the process publish what it has encoded, after the batches it is asked for by now.

        It is not waited for.

        Raises:
            StorageError: It could not, the last time.
        """
        before = self._flushing
        if before is not None and before.error is not None:
            self._flushing = None
            raise before.error
        if self.worker is not None and self.worker.pid is not None:
            self._flushing = BatchFuture(FlushRequest())
            self.worker.submit(self._flushing)

    def close(self) -> None:
        """End the process; the next fetcher starts another one."""
        if self.worker is not None:
            self.worker.close()
