"""Rows that are not published yet are found, published once, and forgotten when told to."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.store import TensorStore
from factory.cache.write_buffer import EncodedRow, WriteBuffer, joined_rows
from factory.errors import CacheError
from factory.storage.local import LocalStorage


def keys(*numbers: int) -> Keys:
    return recipe_keys({}, [{"n": n} for n in numbers])


def fields(*numbers: float) -> dict[str, torch.Tensor]:
    return {"latents": torch.tensor(numbers, dtype=torch.float32)[:, None].repeat(1, 3)}


def labels(count: int) -> list[str]:
    return [f"sample {n}" for n in range(count)]


def store(root: Path, **settings: float) -> TensorStore:
    return TensorStore(LocalStorage(str(root)), "cache", None, **settings)  # type: ignore[arg-type]


def test_a_row_is_found_before_it_is_published_and_gathered_afterwards(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path))
    rows.add({"kind": "a"}, keys(1, 2), fields(1, 2), labels(2))
    here, other = rows.find(keys(2, 3))
    assert here is not None
    assert here.fields["latents"][here.at].tolist() == [2, 2, 2]
    assert other is None
    assert not rows.store.contains(keys(1, 2)).any()
    rows.publish()
    assert not len(rows)
    assert rows.find(keys(1)) == [None]
    assert torch.equal(rows.store.gather(keys(2, 1))["latents"], fields(2, 1)["latents"])
    rows.publish()
    assert len(rows.store.snapshot().records) == 1


def test_a_shard_is_published_when_it_has_its_rows_or_its_bytes(tmp_path: Path) -> None:
    by_rows = WriteBuffer(store(tmp_path / "rows", shard_rows=3))
    for n in range(4):
        by_rows.add({}, keys(n), fields(n), labels(1))
    assert by_rows.store.contains(keys(*range(4))).tolist() == [True, True, True, False]
    by_size = WriteBuffer(store(tmp_path / "size", shard_mb=24 / 2**20))  # two rows
    by_size.add({}, keys(1), fields(1), labels(1))
    assert len(by_size) == 1
    by_size.add({}, keys(2), fields(2), labels(1))
    assert not len(by_size)


def test_with_many_shapes_the_largest_goes_first(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path, shard_mb=24 / 2**20))
    for width in range(1, 5):
        rows.add({}, keys(width), {"latents": torch.ones(1, width)}, labels(1))
    assert rows.store.contains(keys(1, 2, 3, 4)).tolist() == [False] * 4
    for width in range(5, 7):
        rows.add({}, keys(width), {"latents": torch.ones(1, width)}, labels(1))
    assert rows.store.contains(keys(1, 2, 3, 4, 5, 6)).tolist() == [False] * 4 + [True, True]


def test_a_row_that_is_added_again_is_published_once(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path))
    for _ in range(2):
        rows.add({}, keys(1, 2), fields(1, 2), labels(2))
    rows.publish()
    (record,) = rows.store.snapshot().records.values()
    assert record.rows == 2


def test_processes_that_encode_the_same_write_shards_of_their_own(tmp_path: Path) -> None:
    one, other = WriteBuffer(store(tmp_path)), WriteBuffer(store(tmp_path), look_seconds=0)
    one.add({}, keys(1, 2), fields(1, 2), labels(2))
    other.add({}, keys(2, 3), fields(2, 3), labels(2))
    one.publish()
    other.publish()
    assert other.look()
    got = other.store.gather(keys(1, 2, 3))["latents"]
    assert torch.equal(got, fields(1, 2, 3)["latents"])


def test_others_rows_are_not_looked_for_at_every_miss(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path))
    assert [rows.look() for _ in range(3)] == [True, False, False]


def test_rows_are_forgotten_by_their_recipe(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path))
    rows.add({"epoch": 1}, keys(1), fields(1), labels(1))
    rows.add({"epoch": 2}, keys(2), fields(2), labels(1))
    rows.discard(lambda recipe: recipe["epoch"] == 1)
    rows.publish()
    assert rows.store.contains(keys(1, 2)).tolist() == [False, True]


def test_a_copy_in_another_process_starts_empty(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path), look_seconds=5)
    rows.add({}, keys(1), fields(1), labels(1))
    copy = pickle.loads(pickle.dumps(rows))
    assert not len(copy)
    assert copy.look_seconds == 5
    copy.publish()
    assert copy.store.snapshot().records == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_with_its_label(tmp_path: Path, bad: float) -> None:
    rows = WriteBuffer(store(tmp_path))
    with pytest.raises(CacheError, match="NaN or infinity for 'sample 1'"):
        rows.add({}, keys(1, 2), fields(1, bad), labels(2))
    assert not len(rows)


def test_rows_are_joined_in_the_order_asked_for() -> None:
    one, other = fields(1, 2), fields(3, 4)
    rows = [EncodedRow(other, 1), EncodedRow(one, 0), EncodedRow(other, 0), EncodedRow(one, 0)]
    assert torch.equal(joined_rows(rows)["latents"], fields(4, 1, 3, 1)["latents"])
    assert joined_rows([]) == {}
    with pytest.raises(CacheError, match="rows of two shapes"):
        joined_rows([EncodedRow(one, 0), EncodedRow({"latents": torch.ones(1, 4)}, 0)])


def test_a_shard_that_cannot_be_written_is_an_error_and_its_rows_are_lost(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path))
    rows.add({}, keys(1), fields(1), labels(1))
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(Exception, match="cache"):
        rows.publish()
    assert not len(rows)
    assert np.array_equal(rows.find(keys(1)), [None])


def test_what_is_encoded_beforehand_is_published_in_as_many_rows(tmp_path: Path) -> None:
    made = store(tmp_path, shard_rows=3)
    with made.writer({}) as writer:
        writer.add(keys(*range(7)), fields(*range(7)), labels(7))
    made.refresh()
    assert sorted(record.rows for record in made.snapshot().records.values()) == [1, 3, 3]


def test_what_does_not_fit_into_a_full_shard_waits_for_the_next(tmp_path: Path) -> None:
    rows = WriteBuffer(store(tmp_path, shard_rows=3))
    rows.add({}, keys(1, 2), fields(1, 2), labels(2))
    rows.add({}, keys(3, 4), fields(3, 4), labels(2))
    assert [shard.rows for shard in rows.store.snapshot().index.shards] == [3]
    assert len(rows) == 1
    assert torch.equal(rows.store.gather(keys(3, 1))["latents"], fields(3, 1)["latents"])
    rows.publish()
    assert rows.store.contains(keys(1, 2, 3, 4)).all()
