"""Batches that follow one another are described together, each as if it were alone."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from factory import CachePlace, ImageBackend, TextEmbedBackend
from factory.backends.precompute import fill_captions
from factory.backends.source import Source
from factory.catalog.captions import FilenameCaptions
from factory.encoder.hashed_text import HashedText
from factory.runtime.outline import TOGETHER, Neighbours, Outline
from factory.runtime.part import Part, together
from factory.runtime.sent_once import Receiver, Sender
from factory.sampling.plan import PlanStep
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import ENGINE
from tests.pictures import write_pictures

COUNT = 12
Rows = NDArray[np.int64]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Twelve pictures of two shapes with captions that were encoded."""
    root = tmp_path_factory.mktemp("outlined")
    write_pictures(root / "p", COUNT, sizes=((96, 64), (64, 96)))
    backend = ImageBackend(
        name="pics", prefix="p", storage=LocalStorage(str(root)), resolution=64, alignment=16,
        caption=FilenameCaptions(dropout=0.3),
    )  # fmt: skip
    catalog = backend.catalog(backend.scan(None, ENGINE), 0)
    text = TextEmbedBackend(
        name="text", cache=CachePlace(MemoryStorage("outlined")), encoder=HashedText()
    )
    fill_captions(text, [*text.own_texts(), *catalog.all_texts()], ENGINE)
    return Source(backend, catalog, text=text)


def told(outline: Outline) -> list[Any]:
    """Return what an outline says, in values that can be compared."""
    cuts, text = outline.cuts, outline.text
    assert text is not None
    arrays = [
        outline.rows, outline.original_size, cuts.intermediary, cuts.crop, cuts.target,
        text.found.shard, text.found.row, text.found.checksum,
    ]  # fmt: skip
    return [outline.keys, outline.captions, *(array.tolist() for array in arrays)]


def describe(source: Source, epoch: int = 0) -> Any:
    return lambda rows: Outline.of(source, rows, seed=3, epoch=epoch)


def parts(*batches: tuple[str, Sequence[int]]) -> list[Part]:
    """Return a part for each batch, its backend and its rows: every second place of them."""
    steps = [
        PlanStep(0, number, number, name, "96x64", np.array(rows), 0, 0)
        for number, (name, rows) in enumerate(batches)
    ]
    return [Part(step, np.arange(0, len(step.rows), 2)) for step in steps]


@given(batches=st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=5), min_size=1))
def test_a_batch_described_with_others_is_described_as_alone(
    source: Source, batches: list[list[int]]
) -> None:
    rows = [np.array(each) for each in batches]
    near = Neighbours(rows)
    for number in reversed(range(len(rows))):
        found = near.outline(number, describe(source))
        assert told(found) == told(describe(source)(rows[number]))


def test_parts_keep_their_order_and_are_described_with_those_of_their_backend() -> None:
    asked: list[list[int]] = []

    class NotedError(Exception):
        """What is to be described was noted."""

    def note(rows: Rows) -> Outline:
        asked.append(rows.tolist())
        raise NotedError

    given = parts(("a", [0, 1, 2]), ("b", [3]), ("a", [4, 5]), ("a", [6]))
    found = list(together(given))

    assert [part.step for part in found] == [part.step for part in given]
    for part in found:
        with pytest.raises(NotedError):
            part.outline(note)
    assert asked == [[0, 2, 4, 6], [3], [0, 2, 4, 6], [0, 2, 4, 6]]


def test_threads_that_ask_at_once_have_all_described_once(source: Source) -> None:
    asked = []
    ready = threading.Barrier(4)

    def count(rows: Rows) -> Outline:
        asked.append(rows)
        return describe(source)(rows)

    near = Neighbours([np.array([n, n + 1]) for n in range(4)])

    def ask(number: int) -> list[int]:
        ready.wait()
        return near.outline(number, count).rows.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [[n, n + 1] for n in range(4)]
    assert len(asked) == 1


def test_a_batch_that_is_asked_for_again_is_described_again(source: Source) -> None:
    near = Neighbours([np.array([1, 2]), np.array([3])])
    first = told(near.outline(0, describe(source)))
    # Its maker may have put substitutes into the rows that it was given.
    for _ in range(3):
        near.outline(1, describe(source)).rows[:] = 7
    assert told(near.outline(0, describe(source))) == first
    assert near.outline(1, describe(source)).rows.tolist() == [3]


def test_a_failure_is_met_by_each_and_not_remembered(source: Source) -> None:
    near = Neighbours([np.array([1]), np.array([2])])

    def fail(rows: Rows) -> Outline:
        raise OSError(f"{len(rows)} rows")

    for number in (0, 1):
        with pytest.raises(OSError, match="2 rows"):
            near.outline(number, fail)
    assert near.outline(1, describe(source)).rows.tolist() == [2]


def test_parts_in_another_process_are_described_together(source: Source) -> None:
    alone = parts(("a", [0, 1, 2]), ("a", [4, 5]))
    sender, receiver = Sender(), Receiver()
    there = [receiver.loads(sender.dumps(part)) for part in together(alone)]
    asked: list[list[int]] = []

    def note(rows: Rows) -> Outline:
        asked.append(rows.tolist())
        return describe(source)(rows)

    for part, lonely in zip(there, alone, strict=True):
        assert told(part.outline(note)) == told(lonely.outline(describe(source)))
    assert asked == [[0, 2, 4]]


def test_captions_that_lie_elsewhere_by_now_are_found_all_the_same(tmp_path: Path) -> None:
    place = CachePlace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    text = TextEmbedBackend(name="text", cache=place, encoder=HashedText(), write_batch_size=3)
    captions = [f"caption {n}" for n in range(9)]
    fill_captions(text, captions, ENGINE)
    backend = ImageBackend(name="pics", storage=LocalStorage(str(tmp_path)), resolution=64)
    source = Source(backend, None, text=text)  # type: ignore[arg-type]
    wanted = source.read_text(captions)["embeds"]
    located = source.locate_text(captions)
    assert located is not None
    before = {record.name for record in text.store.snapshot().index.shards}
    text.store.close()

    # As if another process had written all rows anew and removed what they were in.
    other = replace(text, cache=place)
    rows = other.store.gather(other.keys(captions), pad=True)
    with other.store.writer(other.recipe) as writer:
        writer.add(other.keys(captions), {"embeds": rows["embeds"].clone()})
    for name in before:
        other.store.shard_files.delete(name)

    found = source.read_text(captions, located=located)["embeds"]
    assert torch.equal(found, wanted)


def test_so_many_samples_are_described_together_and_at_least_one_batch() -> None:
    asked: list[int] = []

    class NotedError(Exception):
        """What is to be described was noted."""

    def note(rows: Rows) -> Outline:
        asked.append(len(rows))
        raise NotedError

    alike = TOGETHER // 3
    third = list(range(2 * alike))  # of which every second place counts
    sizes = [third, third, third, third, list(range(3 * TOGETHER)), [1]]
    for part in together(parts(*(("a", each) for each in sizes))):
        with pytest.raises(NotedError):
            part.outline(note)
    assert asked == [3 * alike] * 3 + [alike, 3 * TOGETHER // 2, 1]
