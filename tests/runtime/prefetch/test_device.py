"""One batch ahead on the device: what is staged when, by whom, and what becomes of errors."""

import threading
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from factory.errors import FetchError
from factory.runtime.batches.batch import each_tensor
from factory.runtime.batches.buffer_pool import BufferPool
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.device import CudaCopier, copier_for
from tests.runtime.traces import left, traces
from tests.runtime.work import batch


class FakeDevice:
    """Notes which batch is copied when, in which thread."""

    def __init__(self, fail_at: int | None = None) -> None:
        """Begin with nothing copied."""
        self.began: SimpleQueue[int] = SimpleQueue()
        self.threads: set[str] = set()
        self.fail_at = fail_at

    def begin(self, number: int) -> tuple[str, int]:
        """Note that a batch is copied."""
        if number == self.fail_at:
            raise RuntimeError("out of memory")
        self.threads.add(threading.current_thread().name)
        self.began.put(number)
        return "copied", number

    def finish(self, staged: tuple[str, int]) -> int:
        """Note whose thread takes it."""
        self.threads.add(threading.current_thread().name)
        return staged[1]


def fetch(device: FakeDevice, make: Any = lambda n: n, jobs: int = 20, **settings: Any) -> Any:
    return BatchFetcher(make, range(jobs), Prefetch(**settings), copier=device)


@pytest.fixture(autouse=True)
def no_trace_left() -> Any:
    before = traces()
    yield
    assert not left(before)


@pytest.mark.parametrize(("batches", "workers"), [(1, 1), (4, 2)])
def test_every_batch_goes_through_in_order(batches: int, workers: int) -> None:
    device = FakeDevice()
    fetcher = fetch(device, batches=batches, workers=workers)
    assert list(fetcher) == list(range(20))
    assert fetcher.report.delivered == 20
    assert device.threads == {"factory-stage_0", threading.current_thread().name}


def test_the_next_one_is_copied_before_it_is_asked_for_and_no_other() -> None:
    device = FakeDevice()
    batches = iter(fetch(device))
    assert next(batches) == 0
    # Waits for the copy of the second one, which nobody has asked for.
    assert [device.began.get(timeout=10) for _ in range(2)] == [0, 1]
    for number in range(1, 10):
        assert next(batches) == number
        assert device.began.get(timeout=10) == number + 1
        assert device.began.empty()
    batches.close()  # type: ignore[attr-defined]


def test_an_error_of_a_batch_comes_in_its_turn() -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError) as caught:
        seen.extend(fetch(FakeDevice(), make=lambda n: 1 // (3 - n)))
    assert seen == [0, 0, 1]
    assert caught.value.__notes__ == ["while making the batch of 3"]


def test_so_does_an_error_of_the_copy() -> None:
    seen: list[int] = []
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        seen.extend(fetch(FakeDevice(fail_at=2)))
    assert seen == [0, 1]
    assert caught.value.__notes__ == ["while copying the next batch to the device"]


def test_a_stall_names_the_batch_that_is_missing() -> None:
    release = threading.Event()

    def make(job: int) -> int:
        release.wait(30)
        return job

    before = set(threading.enumerate())
    fetcher = fetch(FakeDevice(), make=make, timeout_s=0.05, workers=1)
    try:
        with pytest.raises(FetchError, match="0 is still in the making"):
            next(iter(fetcher))
    finally:
        release.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_closed_while_the_consumer_waits() -> None:
    begun, release = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def make(job: int) -> int:
        begun.set()
        release.wait(30)
        return job

    fetcher = fetch(FakeDevice(), make=make)

    def consume() -> None:
        try:
            next(iter(fetcher))
        except FetchError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    begun.wait(10)
    closing = threading.Thread(target=fetcher.close)
    closing.start()
    release.set()
    consumer.join(10)
    closing.join(10)
    assert "closed" in str(errors[0])


def test_without_cuda_batches_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for pin in (None, True, False):
        assert copier_for(torch.device("cpu"), pin_memory=pin, device_ahead=True) is None


@pytest.mark.parametrize(
    ("device", "pin", "ahead", "kind"),
    [
        ("cuda", None, True, "CudaCopier"),
        ("cuda", False, True, "CudaCopier"),
        ("cuda", None, False, "PinnedCopier"),
        ("cpu", True, True, "PinnedCopier"),
        ("cuda", False, False, "NoneType"),
    ],
)
def test_with_cuda_what_is_set_decides(
    monkeypatch: pytest.MonkeyPatch, device: str, pin: bool | None, ahead: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = copier_for(torch.device(device), pin_memory=pin, device_ahead=ahead)
    assert type(chosen).__name__ == kind


def test_every_tensor_of_a_batch_is_changed_and_nothing_else() -> None:
    made = batch(3)
    moved = each_tensor([made, (made, 5)], lambda tensor: tensor + 1 if tensor.ndim else tensor)
    first, (second, number) = moved
    assert number == 5
    assert first.keys == made.keys
    assert first.pixels is None
    for one in (first, second):
        assert torch.equal(one.latents, made.latents + 1)
        assert torch.equal(one.text["embeds"], made.text["embeds"] + 1)
        assert torch.equal(one.conditioning["depth"], made.conditioning["depth"] + 1)
    assert int(made.crop_top_left[0, 0]) == 3


class FakeCopies:
    """Stands in for CUDA's streams and events: copies end when they are told to."""

    def __init__(self) -> None:
        """Begin with no copy under way."""
        self.done: list[bool] = []

    def event(self) -> Any:
        """Return the event of the next copy."""
        number = len(self.done)
        self.done.append(False)
        fake = self

        class Event:
            def record(self, stream: Any) -> None: ...

            def query(self) -> bool:
                return fake.done[number]

        return Event()


def test_memory_is_not_used_again_while_the_device_copies_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies, memory = FakeCopies(), BufferPool()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", copies.event)
    # Not copied at once, as by a device: the staged tensor is another one.
    device = CudaCopier(torch.device("cpu"), pin=False)

    def made(number: int) -> torch.Tensor:
        return memory.tensor((1 << 17,), dtype=torch.uint8).fill_(number)

    first = made(1)
    place = first.data_ptr()
    staged = device.begin({"latents": first})
    del first
    moved, _ = staged
    del staged, moved
    assert made(2).data_ptr() != place  # still being copied from
    copies.done[0] = True
    device.begin({"latents": torch.zeros(1)})
    assert place in {tensor.data_ptr() for tensor in [made(3), made(4)]}
