"""What was written of completed steps is read back, whatever happened to the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from factory.errors import CacheError, StorageError
from factory.ledger.file_format import LedgerHeader
from factory.ledger.ledger import Ledger
from factory.ledger.reader import ledger_files, read_file, read_ledger
from factory.runtime.batches.batch import Batch, Replacement

STEPS_OF_AN_EPOCH = 10


def batch(global_step: int, rows: list[int], **settings) -> Batch:
    """A batch with as much in it as the ledger looks at."""
    epoch, step = divmod(global_step, STEPS_OF_AN_EPOCH)
    none = torch.zeros(len(rows), 2)
    given = {
        "backend": "a", "bucket": "64x64", "epoch": epoch, "step": step,
        "global_step": global_step, "rows": torch.tensor(rows),
        "keys": [f"a/{row}.png" for row in rows], "captions": [""] * len(rows),
        "original_size": none, "target_size": none, "crop_top_left": none,
        "valid": torch.ones(len(rows)),
    }  # fmt: skip
    return Batch(**{**given, **settings})


def run(ledger: Ledger, steps: range, rows: int = 0, micros: int = 1) -> None:
    """Hand out and complete some steps; step n uses the rows 10 n, 10 n + 1, ... and `rows`."""
    for step in steps:
        for micro in range(micros):
            ledger.note(batch(step, [10 * step + micro, rows]))
        ledger.commit(step // STEPS_OF_AN_EPOCH, step % STEPS_OF_AN_EPOCH + 1)


def test_completed_steps_are_told_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", every=3)
    about = LedgerHeader(0, 1, 2, "f" * 32, 7, {"a": "i" * 32})
    ledger.begin(about)
    run(ledger, range(25), micros=2)
    ledger.close()
    [file] = ledger_files(tmp_path / "ledger")
    assert file.name == "step000000001-rank00000-of-00001.arrows"
    told = read_ledger(tmp_path / "ledger")
    assert list(told) == list(range(25))
    step = told[13]
    assert (step.epoch, step.step, step.backend, step.bucket) == (1, 3, "a", "64x64")
    assert step.rows.tolist() == [130, 0, 131, 0]
    assert [(each.rank, each.micro) for each in step.micros] == [(0, 0), (0, 1)]
    assert step.missing == []
    assert step.about.fingerprint == about.fingerprint
    assert step.about.identities == {"a": "i" * 32}
    assert list(read_ledger(tmp_path / "ledger", first=4, last=6)) == [4, 5, 6]


def test_batches_that_no_step_used_are_not_recorded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    run(ledger, range(3))
    ledger.note(batch(3, [1]))  # fetched ahead by the trainer
    ledger.restart()
    ledger.note(batch(3, [2]))
    ledger.commit(0, 4)
    ledger.note(batch(4, [3]))
    ledger.close()
    told = read_ledger(tmp_path)
    assert list(told) == [0, 1, 2, 3]
    assert told[3].rows.tolist() == [2]


def test_steps_done_again_are_no_micro_batches_of_their_first_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    run(ledger, range(4), rows=1)
    ledger.restart()
    run(ledger, range(2, 6), rows=2)
    ledger.close()
    told = read_ledger(tmp_path)
    assert [told[n].rows.tolist() for n in range(6)] == [
        [0, 1], [10, 1], [20, 2], [30, 2], [40, 2], [50, 2],
    ]  # fmt: skip


def test_the_later_file_counts_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step000000000-else.arrows").write_bytes(b"")
    for now, rows in ((2000, 1), (1000, 2), (3000, 3)):
        monkeypatch.setattr("factory.ledger.ledger.time.time_ns", lambda now=now: now)
        ledger = Ledger(tmp_path)
        run(ledger, range(2), rows=rows)
        ledger.close()
        assert read_ledger(tmp_path)[1].rows.tolist() == [10, rows]
    assert read_ledger(tmp_path)[0].about.started == 3000


def test_nothing_is_written_before_the_first_completed_step(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.begin(LedgerHeader())
    ledger.note(batch(0, [1]))
    ledger.flush()
    ledger.close()
    assert list(tmp_path.iterdir()) == []
    assert read_ledger(tmp_path / "ledger") == {}


def test_a_flush_writes_what_is_completed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    run(ledger, range(2))
    assert read_ledger(tmp_path) == {}
    ledger.flush()
    assert list(read_ledger(tmp_path)) == [0, 1]
    ledger.close()


def test_replacements_and_keys_of_streams_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin(LedgerHeader(streams=("s",)))
    gone = Replacement(1, 5, "a/5.png", "decode", "truncated: no end", 6, "a/6.png")
    ledger.note(batch(0, [4, 6], replaced=(gone,)))
    ledger.note(batch(1, [0, 1], backend="s", keys=["x.jpg", "ÿ.jpg"]))
    ledger.commit(0, 2)
    ledger.close()
    told = read_ledger(tmp_path)
    assert told[0].micros[0].replaced == (gone,)
    assert told[0].micros[0].keys is None
    assert told[1].micros[0].keys == ("x.jpg", "ÿ.jpg")
    assert list(read_ledger(tmp_path, using={"a": 6, "s": "x.jpg"})) == [0, 1]
    assert list(read_ledger(tmp_path, using={"a": 5})) == []


def test_the_memory_of_a_batch_may_be_used_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    used = batch(0, [1, 2])
    ledger.note(used)
    used.rows.zero_()
    ledger.commit(0, 1)
    ledger.close()
    assert read_ledger(tmp_path)[0].rows.tolist() == [1, 2]


def test_a_file_cut_off_anywhere_is_read_up_to_its_last_whole_batch(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, every=2)
    ends = []
    for first in (0, 2):
        run(ledger, range(first, first + 2))
        ends.append(ledger_files(tmp_path)[0].stat().st_size)
    ledger.close()
    [file] = ledger_files(tmp_path)
    content = file.read_bytes()
    assert len(content) > ends[-1]  # the mark of the end
    cut = tmp_path / "cut"
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        found = [step for _, record in read_file(cut) for step in record["global_step"].to_pylist()]
        assert found == list(range(2 * sum(end <= length for end in ends))), length
    # A disk that lost power may leave zeros at the end.
    file.write_bytes(content[: ends[0]] + bytes(100))
    assert list(read_ledger(tmp_path)) == [0, 1]


def recorded(folder: Path) -> tuple[Path, list[int]]:
    """Write three records of two steps each; return the file, and where each record ends."""
    ledger = Ledger(folder, every=2)
    ends = []
    for first in (0, 2, 4):
        run(ledger, range(first, first + 2))
        ends.append(ledger_files(folder)[0].stat().st_size)
    ledger.close()
    return ledger_files(folder)[0], ends


@pytest.mark.parametrize("zeros", [1, 300])
def test_damage_before_the_end_is_refused(tmp_path: Path, zeros: int) -> None:
    file, ends = recorded(tmp_path)
    content = file.read_bytes()
    for place in range(0, ends[-1] - 40, 13):
        after = content[place + zeros :]
        if content[place : place + zeros] == bytes(zeros) or len(after) < 40:
            continue
        file.write_bytes(content[:place] + bytes(zeros) + after)
        with pytest.raises(CacheError, match=r"is damaged|is no file of a ledger"):
            read_ledger(tmp_path)


def test_a_ledger_is_a_stream_that_arrow_reads(tmp_path: Path) -> None:
    file, _ = recorded(tmp_path)
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    assert table["global_step"].to_pylist() == list(range(6))


def test_a_ledger_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    file, _ = recorded(tmp_path / "now")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    with pa.ipc.new_stream(str(tmp_path / "before.arrows"), table.schema) as stream:
        stream.write_table(table, 2)
    before, now = read_ledger(tmp_path), read_ledger(tmp_path / "now")
    assert [step.rows.tolist() for step in before.values()] == [
        step.rows.tolist() for step in now.values()
    ]


def write_ranks(folder: Path, ranks: int, steps: range, rows: int, **settings) -> None:
    for rank in range(ranks):
        ledger = Ledger(folder)
        ledger.begin(LedgerHeader(rank, ranks, **settings))
        run(ledger, steps, rows=100 * rows + rank)
        ledger.close()


def test_of_steps_done_twice_the_later_files_count(tmp_path: Path) -> None:
    write_ranks(tmp_path, 2, range(6), rows=1)
    write_ranks(tmp_path, 4, range(4, 8), rows=2)
    told = read_ledger(tmp_path)
    assert list(told) == list(range(8))
    assert told[3].rows.tolist() == [30, 100, 30, 101]
    assert told[4].rows.tolist() == [40, 200, 40, 201, 40, 202, 40, 203]
    assert told[4].about.ranks == 4
    # Once more from the same step with as many ranks, of which one was killed early.
    write_ranks(tmp_path, 4, range(4, 8), rows=3)
    newest = sorted(tmp_path.glob("*again1*"))
    assert len(newest) == 4
    newest[2].unlink()
    assert read_ledger(tmp_path)[5].rows.tolist()[1::2] == [300, 301, 202, 303]


def test_ranks_that_are_missing_are_named(tmp_path: Path) -> None:
    write_ranks(tmp_path, 4, range(2), rows=1)
    ledger_files(tmp_path)[1].unlink()
    assert read_ledger(tmp_path)[0].missing == [1]


def test_ranks_that_work_on_the_same_samples_count_once(tmp_path: Path) -> None:
    write_ranks(tmp_path, 4, range(2), rows=1, context_parallel=2)
    step = read_ledger(tmp_path)[1]
    assert len(step.micros) == 2
    assert step.missing == []
    for file in ledger_files(tmp_path)[2:]:
        file.unlink()
    assert read_ledger(tmp_path)[1].missing == [2]


def test_steps_done_again_by_one_process_are_another_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin(LedgerHeader())
    run(ledger, range(8), rows=1)
    ledger.begin(LedgerHeader())  # a checkpoint was loaded
    run(ledger, range(5, 7), rows=2)
    ledger.close()
    told = read_ledger(tmp_path)
    assert [told[step].rows[1] for step in range(8)] == [1, 1, 1, 1, 1, 2, 2, 1]
    assert len(ledger_files(tmp_path)) == 2


def test_another_layout_is_another_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin(LedgerHeader())
    run(ledger, range(2))
    ledger.begin(LedgerHeader(micros=2))
    run(ledger, range(2, 4), micros=2)
    ledger.close()
    told = read_ledger(tmp_path)
    assert [len(told[step].micros) for step in range(4)] == [1, 1, 2, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
from factory.ledger.ledger import Ledger
from tests.ledger.test_ledger import run
ledger = Ledger(Path(sys.argv[1]), every=4)
run(ledger, range(8))
ledger.flush()  # a checkpoint
class Half:
    def __init__(self, whole): self.whole = whole
    def write(self, data):
        self.whole.write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
ledger._file._file = Half(ledger._file._file)
run(ledger, range(8, 20))
"""


def test_a_process_killed_in_the_middle_of_a_write_keeps_what_was_flushed(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False, timeout=500
    )
    assert done.returncode == -9
    assert list(read_ledger(tmp_path)) == list(range(8))
    # The run continues from its checkpoint, into another file.
    ledger = Ledger(tmp_path)
    run(ledger, range(8, 12))
    ledger.close()
    assert list(read_ledger(tmp_path)) == list(range(12))


def test_a_full_disk_stops_with_the_setting_to_change(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    ledger = Ledger(tmp_path, every=2)
    run(ledger, range(2))
    ledger._file._file.close()
    ledger._file._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
    with pytest.raises(StorageError, match=r"data\.ledger=null"):
        run(ledger, range(2, 4))
    ledger.close()
    assert list(read_ledger(tmp_path)) == [0, 1]


def test_other_files_and_later_formats_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.arrows"
    table = pa.table({"a": [1]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(CacheError, match="is no file of a ledger"):
        list(read_file(file))
    later = LedgerHeader().schema().with_metadata({b"factory.ledger": b'{"version": 99}'})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, later):
        pass
    with pytest.raises(CacheError, match="version 99"):
        list(read_file(file))


def test_a_hundred_thousand_samples_take_few_bytes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ledger = Ledger(tmp_path)
    for step in range(1000):
        ledger.note(batch(step, draw.integers(0, 10_000_000, 100).tolist()))
        ledger.commit(step // STEPS_OF_AN_EPOCH, step % STEPS_OF_AN_EPOCH + 1)
    ledger.close()
    size = sum(file.stat().st_size for file in ledger_files(tmp_path))
    assert size < 4.5 * 100_000  # 10 million rows are 24 bits
