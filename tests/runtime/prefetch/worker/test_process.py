"""The worker process: what it shares, what it says, and how its end is told."""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from factory.errors import CacheError, FetchError
from factory.runtime.prefetch.batch_fetcher import BatchFetcher, Prefetch
from factory.runtime.prefetch.executors import BatchFuture
from factory.runtime.prefetch.worker.process import BatchWorker, ProcessExecutor
from tests.runtime.traces import left, traces
from tests.runtime.work import Gathering, Opened, name, open_gate, perform

Make = Callable[..., BatchWorker[Any, Any]]


@pytest.fixture(autouse=True)
def no_trace_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "shared" in request.fixturenames:  # it keeps its memory for the next test
        request.getfixturevalue("shared")
        yield
        return
    before = traces()
    yield
    assert not left(before)


@pytest.fixture
def worker() -> Iterator[BatchWorker[Any, Any]]:
    """Return a process of the test's own; it starts with the first job."""
    made = BatchWorker(Opened(), workers=2, timeout_s=60)
    yield made
    made.close()


@pytest.fixture
def gathering() -> Iterator[BatchWorker[Any, Any]]:
    """Return a process whose batches are gathered where this one sees them."""
    made: BatchWorker[Any, Any] = BatchWorker(Gathering, workers=2, timeout_s=60)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[BatchWorker[Any, Any]]:
    """Return one process for the tests that leave it as it was."""
    made: BatchWorker[Any, Any] = BatchWorker(Opened(), workers=2, timeout_s=60)
    list(fetch(made, [("give", 0)]))
    yield made
    made.close()


def fetch(
    worker: BatchWorker[Any, Any] | None, jobs: Any, **settings: Any
) -> BatchFetcher[Any, Any]:
    make = settings.pop("make", perform)
    prefetch = Prefetch(mode="process", timeout_s=settings.pop("timeout_s", 60), **settings)
    return BatchFetcher(make, jobs, prefetch, describe=name, worker=worker)


def segments(worker: BatchWorker[Any, Any]) -> int:
    """Return how many segments are mapped here."""
    return len(worker._connections[0]._blocks._maps)


def test_batches_are_made_in_another_process_that_stays(worker: BatchWorker[Any, Any]) -> None:
    first = set(fetch(worker, [("pid", 0)] * 5))
    second = set(fetch(worker, [("pid", 0)] * 5))
    assert first == second == {worker.pid}
    assert os.getpid() not in first
    child = psutil.Process(worker.pid)
    worker.close()
    assert not child.is_running()


def test_a_fetcher_without_one_has_its_own_and_closes_it() -> None:
    (pid,) = fetch(None, [("pid", 0)])
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_two_fetchers_share_one_process(shared: BatchWorker[Any, Any]) -> None:
    """As a validation in the middle of an epoch does."""
    training = iter(fetch(shared, [("give", n) for n in range(20)]))
    assert [next(training) for _ in range(5)] == list(range(5))
    assert list(fetch(shared, [("give", n) for n in range(100, 130)])) == list(range(100, 130))
    assert list(training) == list(range(5, 20))


def test_tensors_are_views_of_shared_memory(shared: BatchWorker[Any, Any]) -> None:
    made = next(iter(fetch(shared, [("bytes", 7, 10**6)])))
    at = made.untyped_storage().data_ptr()
    spans = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "factory-batch" in line
    ]
    assert any(first <= at < last for first, last in spans)


def test_memory_is_used_again_when_a_batch_is_gone(shared: BatchWorker[Any, Any]) -> None:
    jobs = [("bytes", n % 256, 50_000 + n) for n in range(60)]
    for number, made in enumerate(fetch(shared, jobs, batches=3)):
        assert made.numel() == 50_000 + number
        assert int(made[0]) == int(made[-1]) == number
        del made
    # Those ahead, one being packed by each thread, one held here; other tests had four ahead.
    assert segments(shared) <= 4 + 2 + 1


def test_a_segment_too_small_is_replaced(shared: BatchWorker[Any, Any]) -> None:
    jobs = [("bytes", n, 2**10 * 4**n) for n in range(8)]
    for number, made in enumerate(fetch(shared, jobs, batches=1, workers=1)):
        assert made.numel() == 2**10 * 4**number
        assert (made == number).all()
        del made
    assert segments(shared) <= 4 + 2 + 1


def test_what_is_gathered_in_shared_memory_arrives_without_a_copy(
    gathering: BatchWorker[Any, Any],
) -> None:
    batches = iter(fetch(gathering, [("one", 1), ("over", 2)]))
    made = next(batches)
    assert next(batches) == 2
    assert (made == 2).all()


def test_memory_does_not_grow_over_an_epoch(gathering: BatchWorker[Any, Any]) -> None:
    seen = []
    for made in fetch(gathering, [("one", n % 100) for n in range(300)]):
        assert (made == len(seen) % 100).all()
        del made
        seen.append(segments(gathering))
    assert max(seen) <= 4 + 2 + 1
    assert seen[-1] == max(seen[:20])


def test_a_gathered_batch_that_is_kept_is_never_written_over(
    gathering: BatchWorker[Any, Any],
) -> None:
    kept = [made[5:7] for made in fetch(gathering, [("one", n) for n in range(40)])]
    gathering.close()  # nor taken away
    for number, made in enumerate(kept):
        assert (made == number).all()


def test_a_gathered_batch_outlives_the_process_that_made_it(
    gathering: BatchWorker[Any, Any],
) -> None:
    """And nothing of its memory is left once it is gone; see `no_trace_left`."""
    batches = iter(fetch(gathering, [("one", n) for n in range(100)]))
    first, second = next(batches), next(batches)
    psutil.Process(gathering.pid).kill()
    with pytest.raises(FetchError, match="was killed by SIGKILL"):
        list(batches)
    assert (first == 0).all()
    assert (second == 1).all()


def test_a_batch_of_more_segments_than_files_in_a_frame(
    gathering: BatchWorker[Any, Any],
) -> None:
    (made,) = fetch(gathering, [("many", 150)])
    assert [int(one[0]) for one in made] == list(range(150))


def test_a_job_that_takes_long_is_not_waited_for_by_the_next(
    worker: BatchWorker[Any, Any], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    list(fetch(worker, [("give", n) for n in range(60)]))
    executor: ProcessExecutor[Any, Any] = ProcessExecutor(worker, own=False)
    slow: BatchFuture[Any, Any] = BatchFuture(("gate", 0, str(gate)))
    quick: list[BatchFuture[Any, Any]] = [BatchFuture(("give", n)) for n in range(3)]
    for future in (slow, *quick):
        executor.submit(future)
    for future in quick:
        assert future.wait(60)
    assert not slow.done
    open_gate(gate)
    assert slow.wait(60)
    executor.close()


def test_a_batch_that_is_kept_is_never_written_over(worker: BatchWorker[Any, Any]) -> None:
    jobs = [("bytes", n, 1000) for n in range(40)]
    kept, parts = [], []
    for number, made in enumerate(fetch(worker, jobs)):
        if number % 4 == 0:
            kept.append(made)
        elif number % 4 == 1:
            parts.append(made[10:20])  # a part of it is enough
    worker.close()  # nor taken away
    for number, made in enumerate(kept):
        assert (made == 4 * number).all()
    for number, part in enumerate(parts):
        assert (part == 4 * number + 1).all()


def test_bytes_are_bounded_by_what_is_in_the_making_too(shared: BatchWorker[Any, Any]) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[tuple[str, int, int]]:
        for number in range(10):
            taken.append(number)
            yield "bytes", number, 2**20

    batches = iter(fetch(shared, jobs(), batches=8, megabytes=2))
    for number in range(10):
        next(batches)
        assert len(taken) == min(10, number + 3)  # the one delivered, and two ahead


def test_jobs_may_stay_here(shared: BatchWorker[Any, Any]) -> None:
    """As those of streams do, whose position is part of a checkpoint."""
    jobs = [("pid", number) for number in range(12)]
    fetcher = BatchFetcher(
        perform, jobs, Prefetch(mode="process"), worker=shared, here=lambda job: job[1] % 3 == 0
    )
    ours = [pid == os.getpid() for pid in fetcher]
    assert ours == [number % 3 == 0 for number in range(12)]


def test_its_log_is_ours(shared: BatchWorker[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "factory"):
        list(fetch(shared, [("say", 1, "%s of it is missing")]))
    assert "%s of it is missing" in caplog.messages


def test_an_error_says_where_it_came_from(shared: BatchWorker[Any, Any]) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(fetch(shared, [("refuse", 3, "plainly")]))
    trace, job = caught.value.__notes__
    assert trace.startswith("in the worker process:\nTraceback")
    assert "in refuse" in trace
    assert job == "while making the batch of job 3"


def test_an_error_that_cannot_travel_goes_as_text(shared: BatchWorker[Any, Any]) -> None:
    with pytest.raises(FetchError, match=r"tests\.runtime\.work\.UnwillingError: this and that"):
        list(fetch(shared, [("refuse", 3, "unwilling")]))


def test_a_batch_that_cannot_travel_is_an_error(shared: BatchWorker[Any, Any]) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        list(fetch(shared, [("lambda", 3)]))
    assert list(fetch(shared, [("give", 1)])) == [1]


def test_a_job_that_cannot_travel_is_an_error(shared: BatchWorker[Any, Any]) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        list(fetch(shared, [("give", lambda: 0)]))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("SIGKILL", r"was killed by SIGKILL \(the system may have run out of memory\)"),
        ("exit", "ended by itself with exit code 3"),
    ],
)
def test_its_end_is_one_clear_error(how: str, said: str) -> None:
    worker: BatchWorker[Any, Any] = BatchWorker(Opened(), workers=1, timeout_s=60)
    seen: list[int] = []
    jobs = [("give", 1), ("give", 2), ("end", 3, how), *[("give", 4)] * 9]
    with pytest.raises(FetchError, match=said) as caught:
        seen.extend(fetch(worker, jobs, batches=3))
    assert seen == [1, 2]
    text = str(caught.value)
    assert f"(pid {worker.pid})" in text
    assert f"while it made ('end', 3, '{how}')" in text
    assert "lower prefetch.batches" in text
    assert "prefetch=thread does without that process" in text
    assert caught.value.__notes__ == ["while making the batch of job 3"]
    # The next iteration starts another one.
    assert list(fetch(worker, [("give", 5)])) == [5]
    worker.close()


def test_an_executor_whose_process_ended_starts_no_other(worker: BatchWorker[Any, Any]) -> None:
    """Jobs that are begun while the news is on its way would run for nobody."""
    executor: ProcessExecutor[Any, Any] = ProcessExecutor(worker, own=False)
    deadly: BatchFuture[Any, Any] = BatchFuture(("end", 0, "SIGKILL"))
    later: BatchFuture[Any, Any] = BatchFuture(("give", 1))
    for future in (deadly, later):
        executor.submit(future)
        assert future.wait(60)
        assert isinstance(future.error, FetchError)
        assert "was killed by SIGKILL" in str(future.error)
        pid = worker.pid
    executor.close()
    assert f"(pid {pid})" in str(deadly.error)


def test_killed_from_outside_while_a_read_hangs(
    worker: BatchWorker[Any, Any], tmp_path: Path
) -> None:
    bell, gate = tmp_path / "bell", tmp_path / "gate"
    os.mkfifo(bell)
    os.mkfifo(gate)
    batches = iter(fetch(worker, [("give", 0), ("announced", 1, str(bell), str(gate))]))
    next(batches)
    bell.read_bytes()
    psutil.Process(worker.pid).kill()
    with pytest.raises(FetchError, match="was killed by SIGKILL"):
        next(batches)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_that_are_meant_for_the_trainer_are_left_to_it(
    shared: BatchWorker[Any, Any], number: str
) -> None:
    pid = shared.pid
    assert list(fetch(shared, [("signal", 0, number), ("give", 1)])) == [0, 1]
    assert shared.pid == pid


def test_a_process_that_cannot_be_started(
    worker: BatchWorker[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FetchError, match=r"cannot be started \(.*prefetch=thread") as caught:
        list(fetch(worker, [("give", 0)]))
    assert caught.value.__notes__ == ["while starting the worker process for the batch of job 0"]


def test_a_process_that_ends_at_its_start(
    worker: BatchWorker[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FetchError, match="ended by itself with exit code 1 while it started"):
        list(fetch(worker, [("give", 0)]))


def test_what_cannot_be_opened_keeps_its_error(tmp_path: Path) -> None:
    error = CacheError("the catalog is another one")
    worker: BatchWorker[Any, Any] = BatchWorker(Opened(error), workers=2, timeout_s=60)
    with pytest.raises(CacheError, match="the catalog is another one"):
        list(fetch(worker, [("give", 0), ("give", 1)]))
    worker.close()


def test_what_cannot_be_sent_is_said_before_anything_starts() -> None:
    with pytest.raises(FetchError, match="at the top of a module, or: prefetch=thread"):
        list(fetch(None, [("give", 0)], make=lambda job: job))


def test_what_was_opened_is_closed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    worker: BatchWorker[Any, Any] = BatchWorker(Opened(mark=str(mark)), workers=1, timeout_s=60)
    list(fetch(worker, [("give", 0)]))
    assert not mark.exists()
    worker.close()
    assert mark.read_text() == "closed"


def test_a_stall_shows_what_the_process_does(shared: BatchWorker[Any, Any], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    jobs = [("give", 0), *(("gate", n, str(gate)) for n in (1, 2, 3))]
    batches = iter(fetch(shared, jobs, timeout_s=0.3))
    next(batches)
    with pytest.raises(FetchError) as caught:
        next(batches)
    text = str(caught.value)
    assert "no batch within prefetch.timeout_s=0.3 s: job 1 is still in the making" in text
    assert "wait for a worker: 1: job 3" in text
    assert "in the making: 2: job 1 (for 0." in text
    assert f"In the worker process (pid {shared.pid}):\n" in text
    assert text.count("in pass_gate") == 2
    assert "in test_a_stall_shows" not in text  # the consumer is who asks
    open_gate(gate)  # for both
    assert list(fetch(shared, [("give", 9)])) == [9]


def test_a_stall_is_shown_where_the_interpreter_is_held(worker: BatchWorker[Any, Any]) -> None:
    list(fetch(worker, [("give", 0)]))  # its start takes longer than that
    with pytest.raises(FetchError) as caught:
        list(fetch(worker, [("hold", 1)], timeout_s=0.3))
    text = str(caught.value)
    assert "which did not answer:" in text
    assert "in hold_interpreter" in text
    worker.close(wait=False)


def test_a_stall_of_a_process_that_is_stopped(worker: BatchWorker[Any, Any]) -> None:
    list(fetch(worker, [("give", 0)]))
    with pytest.raises(FetchError, match="it is stopped, or hangs in the system"):
        list(fetch(worker, [("end", 1, "SIGSTOP")], timeout_s=0.3))
    worker.close(wait=False)


def test_closing_does_not_wait_for_one_that_the_system_holds(
    worker: BatchWorker[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.runtime.prefetch.worker.connection.CLOSE_S", 0.05)
    list(fetch(worker, [("give", 0)]))
    process = worker._connections[0].process
    process.send_signal(signal.SIGSTOP)
    kill = process.kill
    monkeypatch.setattr(process, "kill", lambda: None)  # as in a read that cannot be interrupted
    closing = threading.Thread(target=worker.close, kwargs={"wait": False})
    closing.start()
    closing.join(10)
    ended = not closing.is_alive()
    kill()
    process.wait()
    closing.join(10)
    assert ended


def test_batches_that_cannot_be_taken_here_are_an_error_at_once(
    worker: BatchWorker[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = socket.recv_fds

    def without_files(sock: socket.socket, size: int, most: int) -> tuple[Any, ...]:
        data, files, flags, address = whole(sock, size, most)
        for file in files:
            os.close(file)  # as where no more may be open
        return data, [], flags, address

    monkeypatch.setattr(socket, "recv_fds", without_files)
    with pytest.raises(
        FetchError, match=r"cannot be taken \(.*Too many open files; raise"
    ) as caught:
        list(fetch(worker, [("bytes", 0, 10**5)]))
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert list(fetch(worker, [("give", 0)])) == [0]  # by another one


@pytest.mark.parametrize("own", [True, False])
def test_a_job_that_comes_after_the_end_starts_nothing(
    worker: BatchWorker[Any, Any], own: bool
) -> None:
    executor: ProcessExecutor[Any, Any] = ProcessExecutor(worker, own=own)
    executor.close()
    executor.submit(BatchFuture(("give", 0)))
    assert worker.pid is None


def test_closing_does_not_wait_for_a_start() -> None:
    worker: BatchWorker[Any, Any] = BatchWorker(Opened(), workers=2, timeout_s=60)
    fetcher = fetch(worker, [("give", 0)])
    fetcher._ahead.fill()
    child = psutil.Process(worker.pid)
    worker.close()
    assert not child.is_running()
    fetcher.close()
