"""Batches of a stream: pixels, strips, and pictures that turn out damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factory.backends.streaming.source import StreamSource
from factory.engine.local_engine import LocalEngine
from factory.errors import MediaError
from factory.media.composite import Composite
from factory.runtime.batches.batch import Batch
from factory.runtime.batches.request import BatchRequest
from factory.runtime.batches.stream_collate import stream_batch
from factory.sampling.plan import PlanStep
from tests.support.pictures import colour
from tests.support.streams import picture, stream, write_shards


def batch(folder: str, rows: list[int] | None = None, number: int = 0, **settings: Any) -> Batch:
    """Return rows of a batch of four, in the dataset's order."""
    source = StreamSource(stream(folder, shuffle_buffer=0, **settings), batch_size=4, seed=1)
    planned = np.arange(number * 4, number * 4 + 4)
    step = PlanStep(0, 0, 0, "big", "stream", planned, 0, 0, number)
    places = np.arange(4) if rows is None else np.array(rows)
    made = stream_batch(source, BatchRequest(step, places), LocalEngine(1), 1)
    source.close()
    return made


def shards(tmp_path: Path, broken: dict[int, bytes | None] | None = None) -> str:
    return write_shards(tmp_path / "set", 1, 8, sizes=[(96, 64)], broken=broken)


def cut_short(number: int) -> bytes:
    whole = picture(number, (96, 64), "JPEG")
    return whole[: len(whole) - 20]  # behind its header, which is looked at as it is read


def test_each_rank_gets_its_rows(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    whole = batch(folder, number=1)
    assert whole.captions == [f"picture {number}" for number in range(4, 8)]
    halves = [batch(folder, rows, number=1) for rows in ([0, 1], [2, 3])]
    assert halves[0].keys + halves[1].keys == whole.keys
    assert whole.pixels is not None
    assert torch.equal(torch.cat([half.pixels for half in halves]), whole.pixels)
    assert [tuple(p[0, 0].tolist()) for p in whole.pixels] == [colour(n) for n in range(4, 8)]
    assert whole.original_size.tolist() == [[96, 64]] * 4


def test_damaged_pictures_are_replaced_and_named(tmp_path: Path) -> None:
    folder = shards(tmp_path, broken={0: cut_short(0), 2: cut_short(2)})
    made = batch(folder)
    numbers = [int(caption.removeprefix("picture ")) for caption in made.captions]
    assert (numbers[1], numbers[3]) == (1, 3)
    assert {numbers[0], numbers[2]} <= {1, 3}
    assert made.pixels is not None
    assert [tuple(p[0, 0].tolist()) for p in made.pixels] == [colour(n) for n in numbers]
    assert [(each.place, each.row, each.substitute) for each in made.replaced] == [
        (0, 0, numbers[0]),
        (2, 2, numbers[2]),
    ]
    assert made.rows.tolist() == numbers
    assert made.replaced[1].key == "000000/000000002.img"
    assert made.replaced[1].reason.startswith("truncated")


def test_substitutes_are_the_same_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    folder = shards(tmp_path, broken={4: cut_short(4), 5: cut_short(5)})
    whole = batch(folder, number=1)
    halves = [batch(folder, rows, number=1) for rows in ([0, 1], [2, 3])]
    assert halves[0].keys + halves[1].keys == whole.keys
    assert halves[0].replaced == whole.replaced


def test_a_batch_without_a_whole_picture_is_an_error(tmp_path: Path) -> None:
    folder = shards(tmp_path, broken={number: cut_short(number) for number in range(4)})
    with pytest.raises(MediaError, match=r"truncated.* all 4 samples of a batch of stream 'big'"):
        batch(folder)


def test_strips_of_a_stream(tmp_path: Path) -> None:
    made = batch(shards(tmp_path), composite=Composite(2, 1), resolution=32, alignment=8)
    assert made.original_size.tolist() == [[48, 64]] * 4
    width, height = map(int, made.bucket.split("x"))
    assert width < height
    assert made.pixels is not None
    assert made.pixels.shape == (4, height, width, 3)
