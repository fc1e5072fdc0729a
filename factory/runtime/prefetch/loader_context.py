"""What do the loaders of a run share: the process that makes batches, and the way to a device."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from factory.runtime.batches.batch import Batch
from factory.runtime.batches.buffer_pool import BatchMemory
from factory.runtime.batches.collate import batch_bytes
from factory.runtime.batches.request import Part, Publish
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.device import CudaStager, Stager, stager
from factory.runtime.prefetch.future import Ticket
from factory.runtime.prefetch.report import FetchTotal
from factory.runtime.prefetch.worker.process import MakerProcess

if TYPE_CHECKING:  # loaded where it is needed, for it takes a second
    import torch


@dataclass(frozen=True)
class RowsStay:
    """Stages a batch but for its rows, which the ledger reads: it must not wait for a device.

    Attributes:
        stager: Stages all the rest.
    """

    stager: Stager

    def begin(self, batch: Batch) -> Any:
        """Begin to copy a batch."""
        # Cloned, since what a batch is a view of, memory of another process, is let go.
        return self.stager.begin(batch), batch.rows.clone()

    def finish(self, staged: Any) -> Batch:
        """Return the batch as the consumer may use it."""
        moved, rows = staged
        batch: Batch = self.stager.finish(moved)
        return replace(batch, rows=rows)


@dataclass
class Supply:
    """Makes the fetchers of a run.

    Attributes:
        maker: The process that makes batches, where there is one.
        here: Which parts are made in this process all the same.
        stager: How batches get onto the device.
        total: What the training's fetchers have done.
        memory: Where the large tensors of batches that are made here come from.
    """

    maker: MakerProcess[Any, Any] | None = None
    here: Callable[[Part], bool] | None = None
    stager: Stager | None = None
    total: FetchTotal = field(default_factory=FetchTotal)
    memory: BatchMemory = field(default_factory=BatchMemory)
    _publishing: Ticket[Publish, None] | None = None
    _staged: tuple[Any, ...] | None = field(default=None, init=False)

    def stage_for(self, device: "torch.device | None", prefetch: Prefetch) -> None:
        """Say where the trainer works; what is under way to the same device goes on."""
        wanted = (device, prefetch.pins, prefetch.device_ahead)
        if wanted == self._staged:
            return
        self._staged = wanted
        self.stager = stager(device, pin_memory=prefetch.pins, device_ahead=prefetch.device_ahead)
        # Batches are gathered where the device copies from, if they are held until it has.
        self.memory.pin = isinstance(self.stager, CudaStager) and self.stager.pin

    def fetcher(
        self, make: Callable[[Part], Batch], parts: Iterable[Part], prefetch: Prefetch
    ) -> BatchFetcher[Part, Batch]:
        """Return a fetcher of some parts; nothing starts."""
        return BatchFetcher(
            make,
            parts,
            prefetch,
            nbytes=batch_bytes,
            maker=self.maker,
            here=self.here,
            stager=None if self.stager is None else RowsStay(self.stager),
        )

    def publish(self) -> None:
        """Have the process publish what it has encoded, after the batches it is asked for by now.

        It is not waited for.

        Raises:
            StorageError: It could not, the last time.
        """
        before = self._publishing
        if before is not None and before.error is not None:
            self._publishing = None
            raise before.error
        if self.maker is not None and self.maker.pid is not None:
            self._publishing = Ticket(Publish())
            self.maker.submit(self._publishing)

    def close(self) -> None:
        """End the process; the next fetcher starts another one."""
        if self.maker is not None:
            self.maker.close()
