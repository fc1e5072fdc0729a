"""Streams: how rows become batches, what waits, and how it goes on after a mark."""

import io
import json
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.backends.pixels import Picture
from factory.backends.streaming.backend import StreamBackend
from factory.backends.streaming.batcher import (
    BucketBuffer,
    StreamBatch,
    StreamBatcher,
    StreamPosition,
)
from factory.backends.streaming.blocks import ShardBlocks, StreamSample
from factory.catalog.captions.sources import ColumnCaptions, InstanceCaptions, TextFileCaptions
from factory.catalog.catalog import SampleCrop
from factory.catalog.row_filters import RowFilter
from factory.errors import EmptyBackendError, PlanError, TableError
from factory.storage.huggingface import HuggingFaceStorage
from factory.storage.huggingface_stream import RowStream, ShardRows
from factory.storage.local import LocalStorage
from tests.support.hub import hub
from tests.support.streams import picture, stream, write_shards

SHARDS, ROWS = 5, 12
ALL = SHARDS * ROWS
TRUNCATED = picture(1, (96, 64), "JPEG")[:20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("stream") / "set", SHARDS, ROWS)


def keys(batch: StreamBatch) -> list[str]:
    return [sample.picture.key for sample in batch.samples]


def told(batch: StreamBatch) -> tuple[Any, ...]:
    return batch.number, batch.bucket, keys(batch), batch.duplicates


def assembly(backend: StreamBackend, batch_size: int = 4, **more: Any) -> StreamBatcher:
    return StreamBatcher(backend, backend.open(), batch_size=batch_size, seed=3, **more)


def one_pass(backend: StreamBackend, batch_size: int = 4) -> list[StreamBatch]:
    """Return the batches of the first pass."""
    made, batches = assembly(backend, batch_size), []
    while True:
        batch = next(made)
        if made.pass_index:
            made.close()
            return batches
        batches.append(batch)


@settings(deadline=None, max_examples=15)
@given(
    shuffled=st.integers(0, 70),
    buffer=st.integers(8, 80),
    batch_size=st.integers(1, 8),
)
def test_a_pass_gives_every_row_once_and_counts_repeats(
    folder: str, shuffled: int, buffer: int, batch_size: int
) -> None:
    batches = one_pass(stream(folder, shuffle_buffer=shuffled, buffer=buffer), batch_size)
    given = Counter(key for batch in batches for key in keys(batch))
    assert len(given) == ALL
    assert sum(given.values()) - ALL == sum(batch.duplicates for batch in batches)
    for batch in batches:
        assert len(batch.samples) == batch_size
        assert {sample.bucket for sample in batch.samples} == {batch.bucket}
        assert len(set(keys(batch))) == batch_size - batch.duplicates or batch.duplicates


@settings(deadline=None, max_examples=12)
@given(
    shuffled=st.integers(0, 40),
    buffer=st.integers(8, 40),
    batch_size=st.integers(1, 8),
    stops=st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_it_goes_on_exactly_after_any_mark(
    folder: str, shuffled: int, buffer: int, batch_size: int, stops: list[int]
) -> None:
    backend = stream(folder, shuffle_buffer=shuffled, buffer=buffer)
    whole = assembly(backend, batch_size)
    marks, batches = [whole.mark()], []
    for _ in range(32):
        batches.append(told(next(whole)))
        marks.append(whole.mark())
    whole.close()
    for stop in stops:
        saved = json.loads(json.dumps(marks[stop].to_dict()))
        again = assembly(backend, batch_size, mark=StreamPosition.from_dict(saved))
        # Never more than what waits, in whole blocks.
        assert again.rows_read <= buffer + 2 * backend.block
        assert [told(next(again)) for _ in range(32 - stop)] == batches[stop:]
        assert again.mark() == marks[32]
        again.close()


def test_the_order_is_the_datasets_own_where_nothing_is_shuffled(tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "set", 3, 4, sizes=[(64, 64)])
    captions = [s.captions[0] for b in one_pass(stream(plain, shuffle_buffer=0)) for s in b.samples]
    assert captions == [f"picture {number}" for number in range(12)]


def test_passes_and_seeds_differ_and_runs_do_not(folder: str) -> None:
    backend = stream(folder)
    first, again = one_pass(backend), one_pass(backend)
    assert [told(batch) for batch in first] == [told(batch) for batch in again]
    made = assembly(backend)
    both = [next(made) for _ in range(2 * len(first))]
    assert [keys(batch) for batch in both[len(first) :]] != [keys(batch) for batch in first]
    made.close()
    other = StreamBatcher(backend, backend.open(), batch_size=4, seed=4)
    assert keys(next(other)) != keys(first[0])
    other.close()


def sample(position: int, bucket: str, nbytes: int = 10) -> StreamSample:
    cut = SampleCrop((8, 8), (0, 0), (8, 8))
    return StreamSample(
        position, bucket, Picture(position, str(position), "", cut), (8, 8), bytes(nbytes), ("a",)
    )


def test_what_is_due() -> None:
    waiting = BucketBuffer(batch_size=2, rows=10, nbytes=100)
    assert waiting.due(0) is waiting.oldest() is None
    waiting.add(sample(0, "rare"))
    waiting.add(sample(1, "often"))
    assert waiting.due(9) is None
    waiting.add(sample(2, "often"))
    assert waiting.due(9) == "often"  # full
    assert [s.position for s in waiting.take("often")] == [1, 2]
    assert waiting.due(9) is None
    assert waiting.due(10) == "rare"  # its first sample has waited for ten rows
    waiting.add(sample(9, "large", nbytes=95))
    assert waiting.nbytes == 105
    assert waiting.due(9) == "rare"  # too much is held: the one that waited longest
    waiting.take("rare")
    assert (waiting.nbytes, len(waiting), waiting.due(9)) == (95, 1, None)


def test_few_rows_wait_and_few_bytes(folder: str) -> None:
    backend = stream(folder, buffer=9)
    made = assembly(backend, 8)
    for _ in range(40):
        next(made)
        positions = made.mark().waiting
        assert len(positions) <= 9
        assert not positions or made.mark().taken - positions[0] <= 9
    made.close()


def test_filters_captions_and_bad_rows_are_counted(tmp_path: Path) -> None:
    broken = {0: None, 1: b"", 2: b"no picture at all", 3: TRUNCATED}
    bad = write_shards(tmp_path / "set", 2, 10, broken=broken)
    backend = stream(
        bad,
        filters=[RowFilter("about.score", maximum=1.75), RowFilter("caption", one_of=[
            f"picture {n}" for n in range(20) if n != 10
        ])],
        minimum_aspect_ratio=0.9,
    )  # fmt: skip
    made = assembly(backend)
    counts = {}
    while made.pass_index == 0:
        counts = made.mark().counts
        next(made)
    made.close()
    assert {name: count for name, count in counts.items() if name.startswith("dropped")} == {
        "dropped: no picture": 1,
        "dropped: empty file": 1,
        "dropped: not a picture": 1,
        "dropped: truncated header": 1,
        "dropped: filter about.score": 2,
        "dropped: filter caption": 1,
        "dropped: minimum_aspect_ratio": 4,
    }
    assert counts["rows"] == 20


def test_a_stream_without_a_usable_row_says_why(folder: str) -> None:
    nothing = stream(folder, minimum_image_size=5000)
    with pytest.raises(EmptyBackendError, match="60 dropped: minimum_image_size"):
        next(assembly(nothing))


def test_captions_of_every_kind(folder: str) -> None:
    (first, *_) = one_pass(stream(folder, caption=InstanceCaptions("a photo"), buffer=60))
    assert {s.captions for s in first.samples} == {("a photo",)}
    with pytest.raises(EmptyBackendError, match="60 dropped: no caption"):
        next(assembly(stream(folder, caption=Silent())))


class Silent(ColumnCaptions):
    """Captions that say nothing."""

    def _texts(self, key: str, raw: Any) -> Any:
        return ()


def test_the_next_block_is_read_meanwhile(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = threading.Event()
    plain = ShardRows.__next__

    def watched(self: ShardRows) -> Any:
        row = plain(self)
        if (row.shard, row.index) == (0, 9):
            ahead.set()
        return row

    monkeypatch.setattr(ShardRows, "__next__", watched)
    backend = stream(folder, shuffle_buffer=0)
    monkeypatch.setattr(StreamBackend, "block", 5)
    blocks = ShardBlocks(backend, backend.open(), seed=0, pass_index=0)
    assert len(blocks.read()) == 5
    assert ahead.wait(30)  # nobody asked for the second block yet
    assert blocks.rows_read == 5
    blocks.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("factory-stream")]


# ── Datasets of every kind ───────────────────────────────────────────────────────────────


def test_a_saved_dataset_and_tars(folder: str, tmp_path: Path) -> None:
    from datasets import load_dataset

    load_dataset(folder, split="train").save_to_disk(tmp_path / "saved")
    saved = stream(str(tmp_path / "saved"), samples=None)
    batches = one_pass(saved)
    assert len({key for batch in batches for key in keys(batch)}) == ALL
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for number in range(6):
            for suffix, data in (("png", picture(number, (64, 64))), ("txt", b"words")):
                info = tarfile.TarInfo(f"{number:04}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    tars = StreamBackend(
        name="tars",
        storage=HuggingFaceStorage(str(tmp_path / "tars"), image_column="png"),
        caption=ColumnCaptions(("txt",)),
        resolution=64,
    )
    made = assembly(tars, 3)
    assert {s.captions for s in next(made).samples} == {("words",)}
    made.close()


def test_a_dataset_that_says_its_length(tmp_path: Path) -> None:
    shards = Path(write_shards(tmp_path / "set", 2, 5))
    described = (
        "dataset_info:\n  features:\n  - {name: image, dtype: image}\n"
        "  - {name: caption, dtype: string}\n"
        "  splits:\n  - {name: train, num_bytes: 1, num_examples: 10}\n"
    )
    (shards / "README.md").write_text(f"---\n{described}---\n")
    backend = stream(str(shards), samples=None)
    assert backend.epoch_samples(backend.open()) == 10
    (shards / "README.md").unlink()
    with pytest.raises(PlanError, match=r"data\.backends\.big\.samples"):
        backend.epoch_samples(backend.open())


def test_missing_columns_are_told_at_once(folder: str) -> None:
    with pytest.raises(TableError, match=r"did you mean 'about\.score'\?"):
        stream(folder, filters=[RowFilter("about.scor", minimum=1)]).open()
    with pytest.raises(TableError, match=r"did you mean 'image'\?"):
        RowStream(HuggingFaceStorage(folder, image_column="imag"))
    with pytest.raises(TableError, match="not pictures"):
        RowStream(HuggingFaceStorage(folder, image_column="about"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"storage": LocalStorage(".")}, r"storage@data\.backends\.big=huggingface"),
        ({"caption": TextFileCaptions()}, r"data/caption@data\.backends\.big"),
        ({"max_samples": 5}, r"set data\.backends\.big\.samples"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"buffer": 0}, "buffer must be at least 1"),
        ({"shuffle_buffer": -1}, "shuffle_buffer must be at least 0"),
    ],
)
def test_what_a_stream_refuses(settings: dict[str, Any], said: str) -> None:
    given = {"storage": HuggingFaceStorage("a/b"), **settings}
    with pytest.raises((ValueError, TypeError), match=said):
        StreamBackend(name="big", **given)


# ── A hub ────────────────────────────────────────────────────────────────────────────────

HUB = """
import json
from factory.storage.huggingface import HuggingFaceStorage
from factory.storage.huggingface_stream import RowStream

stream = RowStream(HuggingFaceStorage("acme/set"), ["caption"])
rows = stream.rows(3)
first = [next(rows).cells[0] for _ in range(5)]
state, index = rows.state, rows.index
rows.close()
again = stream.rows(3, state, index)
then = next(again).cells[0]
again.close()
loose = RowStream(HuggingFaceStorage("acme/set", revision="loose")).rows(0)
found = [row.error for row in loose]
print(json.dumps({"first": first, "then": then, "shards": stream.shards, "loose": found}))
"""


def test_a_hub_sends_only_what_is_read(folder: str, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.png").write_bytes(picture(1, (8, 8)))
    with hub({"main": Path(folder), "loose": tmp_path / "loose"}) as served:
        said = served.run(HUB, tmp_path / "home")
        # The first shard tells the columns.
        assert served.fetched() == {"part-0000.parquet", "part-0003.parquet"}
    assert "as Parquet or tar" in said.pop("loose")[0]
    assert said == {
        "first": [f"picture {number}" for number in range(36, 41)],
        "then": "picture 41",
        "shards": SHARDS,
    }


def test_rows_with_outside_paths_say_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from datasets import Dataset, Features, Value

    (tmp_path / "secret.png").write_bytes(picture(1, (64, 64)))
    features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
    rows = {"image": [{"bytes": None, "path": "../secret.png"}] * 3}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    backend = stream(str(tmp_path / "set"), caption=InstanceCaptions(prompt="a"))
    with pytest.raises(EmptyBackendError, match=r"3 dropped: unsafe path; .*'\.\./secret\.png'"):
        one_pass(backend)
    assert caplog.text.count("unsafe path") == 1
