"""Batches that follow one another are described together, each as if it were alone."""

import itertools
import pickle
import threading
from collections.abc import Iterator, Sequence
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

from factory import ImageBackend, TextEmbedBackend, Workspace
from factory.backends.encode_mode import EncodeMode
from factory.backends.prepared import PreparedBackend
from factory.cache.row_locations import LocationFiles
from factory.catalog.captions.sources import Captions, FilenameCaptions, TextFileCaptions
from factory.catalog.catalog import SampleCaptions
from factory.encoder.hashed_text import HashedText
from factory.registry.precompute import fill_captions
from factory.runtime.batches.request import (
    AT_FIRST,
    TOGETHER,
    BatchMetadata,
    BatchRequest,
    GroupedRequests,
    PlannedRequests,
    RequestGroup,
    StepNumber,
    group_requests,
)
from factory.sampling.evaluation import EvalPlan
from factory.sampling.passes import PlanBackend
from factory.sampling.plan import Plan, PlanStep
from factory.sampling.rank_shares import RankLayout
from factory.storage.local import LocalStorage
from factory.storage.memory import MemoryStorage
from tests.catalog.fakes import ENGINE
from tests.support.pictures import write_pictures

COUNT = 12
Rows = NDArray[np.int64]


@pytest.fixture(scope="module", params=["by key", "by row"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreparedBackend:
    """Twelve pictures of two shapes with captions that were encoded."""
    root = tmp_path_factory.mktemp("metadata")
    if request.param == "by key":
        return spoken_source(root, FilenameCaptions(dropout=0.3))
    made = spoken_source(root, TextFileCaptions(dropout=0.3))
    made.locate()
    assert made.locations
    return made


def spoken_source(root: Path, caption: Captions, word: str = "picture") -> PreparedBackend:
    """Return pictures with captions that were encoded; of every third one there are two."""
    for path in write_pictures(root / "p", COUNT, sizes=((96, 64), (64, 96))):
        lines = ["", *(f"{word} {path.stem} {n}" for n in range(1 + (int(path.stem) % 3 == 0))), ""]
        path.with_suffix(".txt").write_text("\n".join(lines))
    backend = ImageBackend(
        name="pics", prefix="p", storage=LocalStorage(str(root)), resolution=64, alignment=16,
        caption=caption,
    )  # fmt: skip
    catalog = backend.catalog(backend.scan(None, ENGINE), 0)
    text = TextEmbedBackend(
        name="text", cache=Workspace(MemoryStorage(root.name)), encoder=HashedText()
    )
    fill_captions(text, [*text.own_texts(), *catalog.all_texts()], ENGINE)
    return PreparedBackend(backend, catalog, text=text)


def fields(metadata: BatchMetadata) -> list[Any]:
    """Return what the metadata says, in values that can be compared."""
    crops, text = metadata.crops, metadata.text
    assert text is not None
    arrays = [
        metadata.rows, metadata.original_size, crops.intermediary, crops.offset, crops.target,
        text.refs.shard, text.refs.row, text.refs.checksum,
    ]  # fmt: skip
    return [metadata.keys, metadata.captions, *(array.tolist() for array in arrays)]


def describe(source: PreparedBackend, epoch: int = 0) -> Any:
    return lambda rows: BatchMetadata.of(source, rows, seed=3, epoch=epoch)


def requests(*batches: tuple[str, Sequence[int]]) -> list[BatchRequest]:
    """Return a part for each batch, its backend and its rows: every second place of them."""
    steps = [
        PlanStep(0, number, number, name, "96x64", np.array(rows), 0, 0)
        for number, (name, rows) in enumerate(batches)
    ]
    return [BatchRequest(step, np.arange(0, len(step.rows), 2)) for step in steps]


@given(batches=st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=5), min_size=1))
def test_a_batch_described_with_others_is_described_as_alone(
    source: PreparedBackend, batches: list[list[int]]
) -> None:
    rows = [np.array(each) for each in batches]
    near = RequestGroup(rows)
    for number in reversed(range(len(rows))):
        found = near.metadata(number, describe(source))
        assert fields(found) == fields(describe(source)(rows[number]))


def test_parts_keep_their_order_and_are_described_with_those_of_their_backend() -> None:
    asked: list[list[int]] = []

    class NotedError(Exception):
        """What is to be described was noted."""

    def note(rows: Rows) -> BatchMetadata:
        asked.append(rows.tolist())
        raise NotedError

    given = requests(("a", [0, 1, 2]), ("b", [3]), ("a", [4, 5]), ("a", [6]))
    found = list(group_requests(given))

    assert [request.step for request in found] == [request.step for request in given]
    for request in found:
        with pytest.raises(NotedError):
            request.metadata(note)
    assert asked == [[0, 2, 4, 6], [3], [0, 2, 4, 6], [0, 2, 4, 6]]


def test_what_was_planned_comes_before_the_error_of_what_cannot_be() -> None:
    def planned() -> Iterator[BatchRequest]:
        yield from requests(*[("a", [0, 1])] * 100)
        raise OSError("a plan that ends in mid-air")

    found: list[int] = []
    with pytest.raises(OSError, match="in mid-air"):
        found.extend(request.step.step for request in group_requests(planned()))
    assert found == list(range(100))


def test_threads_that_ask_at_once_have_all_described_once(source: PreparedBackend) -> None:
    asked = []
    ready = threading.Barrier(4)

    def count(rows: Rows) -> BatchMetadata:
        asked.append(rows)
        return describe(source)(rows)

    near = RequestGroup([np.array([n, n + 1]) for n in range(4)])

    def ask(number: int) -> list[int]:
        ready.wait()
        return near.metadata(number, count).rows.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [[n, n + 1] for n in range(4)]
    assert len(asked) == 1


def test_a_batch_that_is_asked_for_again_is_described_again(source: PreparedBackend) -> None:
    near = RequestGroup([np.array([1, 2]), np.array([3])])
    first = fields(near.metadata(0, describe(source)))
    # Whoever made it may have put substitutes into the rows that it was given.
    for _ in range(3):
        near.metadata(1, describe(source)).rows[:] = 7
    assert fields(near.metadata(0, describe(source))) == first
    assert near.metadata(1, describe(source)).rows.tolist() == [3]


def test_a_failure_is_met_by_each_and_not_remembered(source: PreparedBackend) -> None:
    near = RequestGroup([np.array([1]), np.array([2])])

    def fail(rows: Rows) -> BatchMetadata:
        raise OSError(f"{len(rows)} rows")

    for number in (0, 1):
        with pytest.raises(OSError, match="2 rows"):
            near.metadata(number, fail)
    assert near.metadata(1, describe(source)).rows.tolist() == [2]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_captions_lie_where_their_keys_say_whoever_was_asked(
    tmp_path: Path, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = spoken_source(tmp_path, TextFileCaptions(dropout=dropout))
    assert source.text is not None
    rows = np.arange(COUNT)
    by_key = [describe(source, epoch)(rows) for epoch in range(4)]
    source.locate()
    asked: list[str] = []
    keys = TextEmbedBackend.keys
    monkeypatch.setattr(
        TextEmbedBackend, "keys", lambda self, some: asked.extend(some) or keys(self, some)
    )
    for epoch, known in enumerate(by_key):
        asked.clear()
        found = describe(source, epoch)(rows)
        assert fields(found) == fields(known)
        own = [f"picture {n:04d} 0" for n in range(COUNT) if n % 3]
        # No key is made of a caption that a sample has in every epoch.
        assert asked == [caption for caption in found.captions if caption not in own]
        assert asked


def checked_captions(source: PreparedBackend, kept: LocationFiles) -> list[str]:
    """Return all captions of a source, which are found where they are said to lie."""
    source.locate(kept)
    known = describe(source)(np.arange(COUNT))
    assert known.text is not None
    read = source.read_text(known.captions, located=known.text)["embeds"]
    assert torch.equal(read, source.read_text(known.captions)["embeds"])
    return known.captions


def test_places_of_captions_are_those_of_their_texts(tmp_path: Path) -> None:
    kept, found = LocationFiles(tmp_path / "places"), []
    first = spoken_source(tmp_path, TextFileCaptions())
    changed = spoken_source(tmp_path, TextFileCaptions(), word="another")
    text = first.text
    assert text is not None
    fill_captions(text, changed.catalog.all_texts(), ENGINE)
    for catalog in (first.catalog, changed.catalog, first.catalog):
        source = PreparedBackend(first.backend, catalog, text=replace(text))
        found.append(checked_captions(source, kept))
    assert found[0] == found[2] != found[1]
    assert len(list((tmp_path / "places/text").iterdir())) == 2


def test_places_of_captions_are_those_of_the_captions_that_the_texts_are_cut_into(
    tmp_path: Path,
) -> None:
    kept = LocationFiles(tmp_path / "places")
    lines = spoken_source(tmp_path, TextFileCaptions())
    text, catalog = lines.text, lines.catalog
    assert text is not None
    whole = replace(catalog, captions=TextFileCaptions(split_lines=False))
    fill_captions(text, whole.all_texts(), ENGINE)
    for each in (catalog, whole, catalog):
        checked_captions(PreparedBackend(lines.backend, each, text=replace(text)), kept)


@pytest.mark.parametrize("mode", [EncodeMode.on_demand, EncodeMode.transient])
def test_captions_that_are_encoded_later_are_found_by_their_keys(
    tmp_path: Path, mode: EncodeMode
) -> None:
    source = replace(spoken_source(tmp_path, TextFileCaptions()), encode_text_mode=mode)
    source.locate()
    assert not source.locations


def test_captions_that_lie_elsewhere_by_now_are_found_all_the_same(tmp_path: Path) -> None:
    place = Workspace(LocalStorage(str(tmp_path)), scratch_dir=str(tmp_path / "scratch"))
    text = TextEmbedBackend(name="text", cache=place, encoder=HashedText(), write_batch_size=3)
    captions = [f"caption {n}" for n in range(9)]
    fill_captions(text, captions, ENGINE)
    backend = ImageBackend(name="pics", storage=LocalStorage(str(tmp_path)), resolution=64)
    source = PreparedBackend(backend, None, text=text)  # type: ignore[arg-type]
    wanted = source.read_text(captions)["embeds"]
    none = np.zeros(len(captions), np.bool_)
    located = source.locate_text(SampleCaptions(np.arange(len(captions)), captions, none))
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

    def note(rows: Rows) -> BatchMetadata:
        asked.append(len(rows))
        raise NotedError

    alike = AT_FIRST // 2
    few, many = list(range(2 * alike)), list(range(3 * TOGETHER))
    for request in group_requests(requests(*[("a", few)] * 100, ("a", many), ("a", [1]))):
        with pytest.raises(NotedError):
            request.metadata(note)
    # Every second place counts; each batch is asked for alone, and nothing is kept of a failure.
    groups = [count for count, _ in itertools.groupby(asked)]  # two in a row of 1024
    assert groups == [64, 128, 256, 512, 1024, 6 * alike, 3 * TOGETHER // 2, 1]


def test_pickled_requests_are_numbers_that_the_plan_makes_them_of_again() -> None:
    shape = {"order": np.arange(40), "offsets": np.array([0, 40]), "buckets": ("b",)}
    plan = Plan([PlanBackend(name="a", **shape)], batch_size=8, seed=0)
    evaluation = EvalPlan(PlanBackend(name="e", **shape), 7)
    planned = PlannedRequests(plan, {"e": evaluation})
    grouped = GroupedRequests(planned)
    firsts = [("", 0, 0), ("e", 0, 0), ("", 1, 3), ("", 0, 2)]
    for name, epoch, step in firsts:
        layout = RankLayout(1, 2, 1 if name else 2)
        made = list(planned.since(StepNumber(name, epoch, step, 0, layout)))
        steps = evaluation.steps() if name else plan.steps(epoch)
        assert len(made) == (steps - step) * layout.micros
        for request in made:
            number = pickle.loads(pickle.dumps(request))
            again = grouped.at(number)
            assert again.number == number == request.number
            assert again.rows.tolist() == request.rows.tolist()
            assert again.step.epoch == request.step.epoch
            assert again.near is not None
