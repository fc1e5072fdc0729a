"""What a fetcher promises, whoever makes the batches: one suite for all three modes."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.errors import FetchError, MediaError, PlanError
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.worker.process import BatchWorker
from tests.runtime.traces import left, traces
from tests.runtime.work import Opened, batch, name, open_gate, perform

Fetch = Callable[..., BatchFetcher[Any, Any]]
pytestmark = pytest.mark.parametrize("mode", ["thread", "process", "inline"], scope="module")


@pytest.fixture(scope="module")
def worker(mode: str) -> Iterator[BatchWorker[Any, Any] | None]:
    """Start one process for all tests of its mode, as a run does for all its loaders."""
    before = traces()
    made = None if mode != "process" else BatchWorker(Opened(), workers=2, timeout_s=60)
    if made is not None:
        assert list(fetcher(mode, made, [("give", 0)])) == [0]
    yield made
    if made is not None:
        made.close()
    assert not left(before)


def fetcher(
    mode: str, worker: BatchWorker[Any, Any] | None, jobs: Any, **settings: Any
) -> BatchFetcher[Any, Any]:
    prefetch = Prefetch(mode=mode, timeout_s=settings.pop("timeout_s", 60), **settings)
    return BatchFetcher(perform, jobs, prefetch, describe=name, worker=worker)


@pytest.fixture
def fetch(mode: str, worker: BatchWorker[Any, Any] | None) -> Iterator[Fetch]:
    # The process stays, and keeps the memory it shares for the batches that come next.
    kept = {"files", "mapped"} if mode == "process" else set()
    before = traces()
    yield lambda jobs, **settings: fetcher(mode, worker, jobs, **settings)
    assert not left(before).keys() - kept


def give(count: int) -> list[tuple[str, int]]:
    return [("give", number) for number in range(count)]


def test_delivers_in_order(fetch: Fetch) -> None:
    fetching = fetch(give(50))
    assert list(fetching) == list(range(50))
    assert fetching.delivered == 50


def test_nothing_to_do_is_no_error(fetch: Fetch) -> None:
    assert list(fetch([])) == []


@pytest.mark.parametrize(("batches", "workers"), [(1, 1), (2, 3), (9, 4)])
def test_bounds_change_nothing_about_the_order(fetch: Fetch, batches: int, workers: int) -> None:
    assert list(fetch(give(30), batches=batches, workers=workers)) == list(range(30))


def test_a_batch_arrives_as_it_was_made(fetch: Fetch) -> None:
    for number, made in enumerate(fetch([("batch", n) for n in range(6)])):
        wanted = batch(number)
        assert made.keys == wanted.keys
        assert made.captions == wanted.captions
        assert made.replaced == ()
        assert made.latents.dtype == torch.bfloat16
        for field in ("original_size", "target_size", "valid", "latents", "rows"):
            assert torch.equal(getattr(made, field), getattr(wanted, field)), field
        assert made.text.keys() == wanted.text.keys()
        for field, tensor in wanted.text.items():
            assert made.text[field].dtype == tensor.dtype
            assert torch.equal(made.text[field], tensor)
        assert torch.equal(made.conditioning["depth"], wanted.conditioning["depth"])
        made.latents.zero_()  # the consumer's own


def test_an_error_keeps_its_type_and_its_place_and_names_the_job(fetch: Fetch) -> None:
    seen: list[int] = []
    fetching = fetch([*give(2), ("refuse", 2, "media"), *give(9)])
    with pytest.raises(MediaError, match=r"truncated: 2\.jpg") as caught:
        seen.extend(fetching)
    assert seen == [0, 1]
    assert caught.value.reason == "truncated"
    notes = caught.value.__notes__
    assert notes[0] == "a note from below"
    assert notes[-1] == "while making the batch of job 2"
    with pytest.raises(FetchError, match="closed"):
        next(iter(fetching))


def test_an_error_of_the_plan_comes_in_its_turn(fetch: Fetch) -> None:
    def jobs() -> Iterator[tuple[str, int]]:
        yield from give(2)
        raise PlanError("no backend is left")

    seen: list[int] = []
    with pytest.raises(PlanError, match="no backend is left") as caught:
        seen.extend(fetch(jobs()))
    assert seen == [0, 1]
    assert caught.value.__notes__ == ["while planning the next batch"]


def test_a_consumer_that_stops_early_leaves_nothing(fetch: Fetch) -> None:
    for made in fetch(give(1000)):
        if made == 3:
            break


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_consumer_leaves_nothing(fetch: Fetch, error: type) -> None:
    def consume() -> None:
        for _ in fetch(give(1000)):
            raise error

    with pytest.raises(error):
        consume()


def test_a_consumer_that_is_forgotten_leaves_nothing(fetch: Fetch) -> None:
    batches = iter(fetch(give(1000)))
    next(batches)
    cycle: list[Any] = [batches]
    cycle.append(cycle)  # so that the garbage collector is what closes it


def test_close_stops_an_iteration_under_way(fetch: Fetch) -> None:
    fetching = fetch(give(1000))
    batches = iter(fetching)
    next(batches)
    fetching.close()
    fetching.close()
    with pytest.raises(FetchError, match="closed"):
        next(batches)


def test_it_is_iterated_over_once(fetch: Fetch) -> None:
    fetching = fetch(give(3))
    assert len(list(fetching)) == 3
    with pytest.raises(FetchError, match="iterate over the loader again"):
        next(iter(fetching))


def test_paused_it_begins_nothing_and_resumed_it_goes_on(fetch: Fetch) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[tuple[str, int]]:
        for number in range(20):
            taken.append(number)
            yield "give", number

    fetching = fetch(jobs(), batches=2)
    batches = iter(fetching)
    first = [next(batches)]
    for future in fetching._ahead.begun():
        assert future.wait(60)
    fetching.pause()
    begun = len(taken)
    first += [next(batches) for _ in range(begun - 1)]  # what is ready is delivered
    assert len(taken) == begun
    resuming = threading.Thread(target=fetching.resume)
    resuming.start()  # from another thread, while this one waits
    assert [*first, *batches] == list(range(20))
    resuming.join()


def test_a_pause_that_nobody_ends_is_said_so(fetch: Fetch) -> None:
    fetching = fetch(give(3), timeout_s=0.05)
    fetching.pause()
    with pytest.raises(FetchError, match=r"the fetcher is paused; call resume\(\)"):
        next(iter(fetching))


def test_its_report_adds_up(fetch: Fetch, mode: str) -> None:
    fetching = fetch([("bytes", 1, 1000)] * 8)
    assert fetching.report.delivered == 0
    batches = iter(fetching)
    next(batches)
    report = fetching.report
    assert report.delivered == 1
    assert report.ready + report.making == (0 if mode == "inline" else 4)
    for _ in batches:
        pass
    report = fetching.report
    assert (report.delivered, report.ready, report.making) == (8, 0, 0)
    assert 0 < report.first_s <= report.waited_s <= report.elapsed_s
    assert report.making_s > 0
    # Bytes are always known of what crosses to another process, each tensor's on whole lines.
    assert report.nbytes == (8 * 1024 if mode == "process" else 0)


def test_the_time_of_day_may_jump(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("time.time", lambda: next(jumps))
    assert list(fetch(give(20))) == list(range(20))


def test_closed_from_another_thread_while_the_consumer_waits(
    fetch: Fetch, mode: str, tmp_path: Path
) -> None:
    if mode == "inline":
        pytest.skip("the consumer makes the batch itself")
    bell, gate = tmp_path / "bell", tmp_path / "gate"
    os.mkfifo(bell)
    os.mkfifo(gate)
    fetching = fetch([("announced", 0, str(bell), str(gate))])
    errors: list[Exception] = []

    def consume() -> None:
        try:
            next(iter(fetching))
        except FetchError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    bell.read_bytes()  # it has begun, and hangs
    closing = threading.Thread(target=fetching.close)
    closing.start()
    consumer.join()
    open_gate(gate)
    closing.join()
    assert "closed" in str(errors[0])
