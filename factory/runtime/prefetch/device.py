"""Copies the next batch to the trainer's device while it works on this one."""

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, Protocol

from factory.engine.pipeline import Lookahead
from factory.runtime.prefetch.executors import Made, ThreadExecutor, begin

if TYPE_CHECKING:  # loaded where it is needed, for it takes a second
    import torch


class DeviceCopier(Protocol):
    """How batches get onto a device."""

    def begin(self, batch: Any) -> Any:
        """Begin to copy a batch, in a thread of its own; return what `finish` needs."""

    def finish(self, staged: Any) -> Any:
        """Return the batch as the consumer may use it, in the consumer's thread."""


class CudaCopier:
    """Copies through pinned memory on a stream of its own, beside what the trainer computes.

    Attributes:
        pin: Whether it goes through pinned memory.
    """

    def __init__(self, device: "torch.device", *, pin: bool) -> None:
        """Store where to; the stream is made with the first batch.

        Args:
            device: The CUDA device the trainer works on.
            pin: Whether to copy to pinned memory first; else the copy blocks its thread.
        """
        self._device, self.pin = device, pin
        self._stream: Any = None
        # Sources whose copies may be under way: their memory must not be used again before.
        self._copying: deque[tuple[Any, Any]] = deque()

    def begin(self, batch: Any) -> Any:
        """Begin to copy a batch."""
        import torch

        from factory.runtime.batches.batch import each_tensor

        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        source = each_tensor(batch, torch.Tensor.pin_memory) if self.pin else batch
        with torch.cuda.stream(self._stream):
            moved = each_tensor(source, lambda t: t.to(self._device, non_blocking=self.pin))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        self._copying.append((copied, source))
        return moved, copied

    def finish(self, staged: Any) -> Any:
        """Let the consumer's stream wait for the copy, and return the batch on the device."""
        import torch

        from factory.runtime.batches.batch import each_tensor

        moved, copied = staged
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied)

        def used(tensor: "torch.Tensor") -> "torch.Tensor":
            tensor.record_stream(stream)  # its memory is not given to the next copy before
            return tensor

        return each_tensor(moved, used)


class PinnedCopier:
    """Copies to pinned memory, from which a trainer's own copy to the device need not wait."""

    def begin(self, batch: Any) -> Any:
        """Return the batch in pinned memory."""
        import torch

        from factory.runtime.batches.batch import each_tensor

        return each_tensor(batch, torch.Tensor.pin_memory)

    def finish(self, staged: Any) -> Any:
        """Return the batch."""
        return staged


def copier_for(
    device: "torch.device | None", *, pin_memory: bool | None, device_ahead: bool
) -> DeviceCopier | None:
    """Return how batches get onto a device; None where there is nothing to do.

    Args:
        device: Where the trainer works; None where nobody knows.
        pin_memory: Whether to go through pinned memory; None means where there is CUDA.
        device_ahead: Whether the next batch is copied while the trainer works on this one.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    pin = pin_memory is not False
    if device_ahead and device is not None and device.type == "cuda":
        return CudaCopier(device, pin=pin)
    return PinnedCopier() if pin else None


class DevicePrefetcher(Generic[Made]):
    """Stages the next batch, in a thread, while the consumer works on this one."""

    def __init__(self, take: Callable[[], Made | None], copier: DeviceCopier) -> None:
        """Store the parts; nothing is staged before the first batch is asked for.

        Args:
            take: Returns the next batch, waiting for it as long as it takes; None after the
                last one. Woken by whoever closes.
            copier: How batches get onto a device.
        """
        self._take, self._copier = take, copier
        self._ended = False
        self._executor = ThreadExecutor(self._stage, 1, None, name="factory-stage")
        # The one asked for, and one beside it: a device has no room for more.
        self._ahead = Lookahead(partial(begin, self._executor), repeat(None), most=2)

    @property
    def ready(self) -> bool:
        """Whether a batch is staged now."""
        head = self._ahead.head()
        return head is not None and head.done

    def next(self, timeout: float) -> Made | None:
        """Return the next batch; None after the last one, and where this is closed.

        Raises:
            TimeoutError: None came in time.
            Exception: What went wrong with it.
        """
        future = self._ahead.head()
        if future is None:
            return None
        if not future.wait(timeout):
            raise TimeoutError
        self._ahead.pop()
        if future.error is not None:
            raise future.error
        staged, future.made = future.made, None
        made: Made | None = None if staged is None else self._copier.finish(staged)
        return made

    def wake(self) -> None:
        """Let a consumer who waits find out that this is closed."""
        for future in self._ahead.drop():
            future.cancel()

    def close(self, *, wait: bool = True) -> None:
        """Stop the thread; `take` must have been woken."""
        self.wake()
        self._executor.close(wait=wait)

    def _stage(self, _: None) -> Any:
        """Stage one batch; None after the last one, and after an error."""
        if self._ended:
            return None
        self._ended = True  # unless it goes well
        made = self._take()
        if made is None:
            return None
        try:
            staged = self._copier.begin(made)
        except BaseException as error:
            error.add_note("while copying the next batch to the device")
            raise
        self._ended = False
        return staged
