"""Any batch of a stream by number: threads, epochs, checkpoints, other processes."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from factory.backends.streaming.batcher import StreamBatch, StreamBatcher
from factory.backends.streaming.source import StreamSource
from factory.errors import PlanError, ResumeError, StorageError
from factory.storage.huggingface_stream import ShardRows
from tests.support.streams import stream, write_shards

SHARDS, ROWS = 5, 12
ALL = SHARDS * ROWS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("stream") / "set", SHARDS, ROWS)


def told(batch: StreamBatch) -> tuple[Any, ...]:
    keys = [sample.picture.key for sample in batch.samples]
    return batch.number, batch.bucket, keys, batch.duplicates


@pytest.fixture
def source(folder: str) -> Iterator[StreamSource]:
    made = StreamSource(stream(folder), batch_size=4, seed=3)
    yield made
    made.close()


def expected(folder: str, count: int) -> list[tuple[Any, ...]]:
    backend = stream(folder)
    made = StreamBatcher(backend, backend.open(), batch_size=4, seed=3)
    batches = [told(next(made)) for _ in range(count)]
    made.close()
    return batches


def test_threads_get_the_same_whoever_asks_first(source: StreamSource, folder: str) -> None:
    numbers = [3, 0, 1, 2, 7, 5, 4, 6]  # as many as are kept
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(numbers, pool.map(lambda n: source.batch(0, n), numbers), strict=True))
    assert [told(found[n]) for n in range(8)] == expected(folder, 8)
    one_by_one = StreamSource(source.backend, batch_size=4, seed=3)
    for number in range(8):
        one_by_one.batch(0, number)
    assert source.rows_read == one_by_one.rows_read  # nothing was made twice
    one_by_one.close()


def test_earlier_batches_are_made_again(source: StreamSource, folder: str) -> None:
    wanted = expected(folder, 30)
    assert told(source.batch(0, 29)) == wanted[29]
    assert told(source.batch(0, 2)) == wanted[2]
    assert told(source.batch(0, 20)) == wanted[20]


def test_epochs_follow_one_another(source: StreamSource, folder: str) -> None:
    assert source.batches_per_pass() == 6  # samples=24
    wanted = expected(folder, 20)
    assert told(source.batch(1, 0)) == wanted[6]
    assert told(source.batch(3, 1)) == wanted[19]


def test_an_epoch_that_was_cut_short_loses_nothing(source: StreamSource, folder: str) -> None:
    wanted = expected(folder, 10)
    for number in range(5):  # some ahead of what is trained on
        source.batch(0, number)
    source.end_epoch(0, 2)
    assert told(source.batch(1, 0)) == wanted[2]
    assert told(source.batch(2, 0)) == wanted[8]
    state = source.state_dict(1, 3)
    resumed = StreamSource(source.backend, batch_size=4, seed=3)
    resumed.load_state_dict(state, 1, 3)
    assert told(resumed.batch(1, 3)) == wanted[5]
    assert told(resumed.batch(2, 1)) == wanted[9]
    resumed.close()


def test_a_checkpoint_behind_what_was_prefetched(source: StreamSource, folder: str) -> None:
    for number in range(15):
        source.batch(0, number)
    state = json.loads(json.dumps(source.state_dict(0, 9)))
    resumed = StreamSource(source.backend, batch_size=4, seed=3)
    resumed.load_state_dict(state, 0, 9)
    assert [told(resumed.batch(0, n)) for n in range(9, 15)] == expected(folder, 15)[9:]
    assert resumed.rows_read < source.rows_read
    assert resumed.counts == source.counts
    resumed.close()


def test_a_state_of_other_settings_is_left_out(
    source: StreamSource, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.batch(0, 5)
    state = source.state_dict(0, 6)
    other = StreamSource(stream(folder, buffer=20), batch_size=4, seed=3)
    for saved, why in ((state, "settings"), (None, "the checkpoint has none")):
        other.load_state_dict(saved, 2, 5)
        assert why in caplog.text
        assert other.batch(2, 5).number == 0
        assert other.batch(3, 0).number == 1
    other.close()


def test_another_mixture_goes_on_where_the_stream_was(source: StreamSource, folder: str) -> None:
    source.batch(0, 9)
    moved = StreamSource(source.backend, batch_size=4, seed=3)
    moved.load_state_dict(source.state_dict(0, 8), 0, 2)
    assert told(moved.batch(0, 2)) == expected(folder, 9)[8]
    moved.close()


def test_a_dataset_that_changed_is_told(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "set", 2, 12)
    source = StreamSource(stream(shards), batch_size=4, seed=3)
    source.batch(0, 3)
    state = source.state_dict(0, 4)
    assert state["mark"]["waiting"]
    source.close()
    for file in Path(shards).iterdir():
        file.unlink()
    write_shards(tmp_path / "set", 2, 12, broken=dict.fromkeys(range(24)))
    resumed = StreamSource(stream(shards), batch_size=4, seed=3)
    resumed.load_state_dict(state, 0, 4)
    with pytest.raises(ResumeError, match=r"storage\.revision"):
        resumed.batch(0, 4)


def test_a_failing_read_loses_nothing(
    source: StreamSource, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.batch(0, 1)
    healthy = ShardRows.__next__

    def failing(self: ShardRows) -> Any:
        raise StorageError("the network is down")

    monkeypatch.setattr(ShardRows, "__next__", failing)
    with pytest.raises(StorageError, match="down"):
        source.batch(0, 19)
    monkeypatch.setattr(ShardRows, "__next__", healthy)
    assert told(source.batch(0, 19)) == expected(folder, 20)[19]


def test_a_read_that_hangs_does_not_hold_the_end_back(
    source: StreamSource, folder: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("factory.backends.streaming.blocks.CLOSE_S", 0.05)
    monkeypatch.setattr("factory.backends.streaming.source.CLOSE_S", 0.05)
    source.batch(0, 0)
    whole = source.batches_per_pass()  # as the plan has asked
    hangs, let_go = threading.Event(), threading.Event()
    plain = ShardRows.__next__

    def hanging(self: ShardRows) -> Any:
        hangs.set()
        let_go.wait(60)
        return plain(self)

    monkeypatch.setattr(ShardRows, "__next__", hanging)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as others:
        asked = pool.submit(source.batch, 0, 40)
        assert hangs.wait(30)
        # In a thread: they are asked when a checkpoint is saved, and when the run is reported.
        place: list[Any] = []
        asking = threading.Thread(target=lambda: place.extend(
            [source.state_dict(0, 1)["batch"], source.counts["batches"], source.ordinal(1, 0)]
        ), daemon=True)  # fmt: skip
        asking.start()
        asking.join(10)
        source.close()
        loading = others.submit(source.load_state_dict, None, 0, 0)
        refused = loading.exception(10)
        monkeypatch.setattr("factory.backends.streaming.source.CLOSE_S", 60)
        closing = others.submit(source.close)  # known to hang: closed at once
        failed = closing.exception(10)
        let_go.set()
        assert failed is None
        assert "hangs in a read that began before" in str(refused)
        assert place == [1, 1, whole]
        assert "hangs in a read" in caplog.text
        assert told(asked.result(60)) == expected(folder, 41)[40]


def test_a_buffer_below_one_batch(folder: str) -> None:
    with pytest.raises(PlanError, match="buffer=24 holds no batch of 32"):
        StreamSource(stream(folder), batch_size=32, seed=0)


SCRIPT = """
import json, sys
from factory.backends.streaming.source import StreamSource
from tests.support.streams import stream

place, state = json.loads(sys.argv[1])
source = StreamSource(stream(place), batch_size=4, seed=3)
source.load_state_dict(state, 0, 10)
made = [source.batch(0, n).samples for n in range(10, 14)]
keys = [[sample.picture.key for sample in samples] for samples in made]
print(json.dumps({"keys": keys, "read": source.rows_read}))
source.close()
"""


def test_another_process_goes_on(folder: str) -> None:
    source = StreamSource(stream(folder), batch_size=4, seed=3)
    for number in range(14):
        source.batch(0, number)
    arguments = json.dumps([folder, source.state_dict(0, 10)])
    source.close()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments],
        capture_output=True, text=True, check=True, timeout=500,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["keys"] == [list(batch[2]) for batch in expected(folder, 14)[10:]]
    assert said["read"] < ALL
