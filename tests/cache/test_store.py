"""Do rows come back as they were written, in the order asked for?"""

import copy
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.format.safetensors_file import DTYPES
from factory.cache.store import TensorStore
from factory.errors import CacheError
from factory.storage import LocalStorage, MemoryStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import drop, verify

Make = Callable[..., torch.Tensor]
MakeKeys = Callable[..., Keys]


def fill(store: TensorStore, keys: Keys, **fields: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, fields)
    store.refresh()


def bits(tensor: torch.Tensor) -> bytes:
    """Return a tensor's bytes, whatever its type."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("code", list(DTYPES))
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 5)])
def test_every_dtype_and_shape_comes_back_bit_by_bit(
    store: TensorStore, keys_of: MakeKeys, code: str, shape: tuple[int, ...]
) -> None:
    values = torch.arange(4 * int(np.prod(shape)), dtype=torch.float32).reshape(4, *shape) % 7
    field = values.to(DTYPES[code])
    fill(store, keys_of(4), field=field, number=torch.arange(4))
    got = store.gather(keys_of(4))
    assert got["field"].dtype == field.dtype
    assert got["field"].shape == field.shape
    assert bits(got["field"]) == bits(field)
    assert got["number"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("part", [1, 0.3])
def test_shards_open_with_the_safetensors_library_alone(
    store: TensorStore, keys_of: MakeKeys, tmp_path: Path, part: float
) -> None:
    latents = torch.randn(40, 4, 8, 8).half()[: int(40 * part)]
    mask = torch.ones(len(latents), 77, dtype=torch.bool)
    scale = torch.randn(len(latents), dtype=torch.float64)
    fill(store, keys_of(len(latents)), latents=latents, mask=mask, scale=scale)
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    with safetensors.safe_open(str(path), framework="pt") as file:
        assert sorted(file.keys()) == ["latents", "mask", "scale"]
        assert torch.equal(file.get_tensor("latents"), latents)
        assert torch.equal(file.get_tensor("mask"), mask)
        assert torch.equal(file.get_tensor("scale"), scale)
        assert file.metadata() == {"format": "pt", "cache_format": "2"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_floats_open_with_the_safetensors_library_alone(
    store: TensorStore, keys_of: MakeKeys, tmp_path: Path, dtype: torch.dtype
) -> None:
    latents = torch.randn(9, 4, 8, 8).to(dtype)
    fill(store, keys_of(9), latents=latents)
    (path,) = (tmp_path / "cache/images/shards").iterdir()
    with safetensors.safe_open(str(path), framework="pt") as file:
        got = file.get_tensor("latents")
    assert got.dtype == dtype
    assert bits(got) == bits(latents)


def test_index_segments_open_with_the_safetensors_library_alone(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    fill(store, keys_of(5), field=rows_of(5))
    (path,) = (tmp_path / "cache/images/index").iterdir()
    with safetensors.safe_open(str(path), framework="np") as file:
        assert file.get_tensor("keys").shape == (5, 16)
        assert sorted(file.get_tensor("row")) == [0, 1, 2, 3, 4]
        assert '\\"encoder\\":\\"test\\"' in file.metadata()["content"]


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.integers(0, 199), min_size=1, max_size=40), rows=st.sampled_from([7, 200]))
def test_rows_come_in_the_order_asked_for(
    many: dict[int, TensorStore], order: list[int], rows: int
) -> None:
    keys = recipe_keys(RECIPE, {"row": order})
    got = many[rows].gather(keys)
    assert got["field"][:, 0].tolist() == order
    assert got["field"][:, -1].tolist() == order
    assert got["wide"][:, 0].tolist() == order


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TensorStore]:
    """200 rows in shards of 7 rows, and in one."""
    numbers = torch.arange(200, dtype=torch.int32)[:, None]
    fields = {"field": numbers.repeat(1, 8), "wide": numbers.repeat(1, 2048)}
    keys = recipe_keys(RECIPE, {"row": range(200)})
    root = LocalStorage(root=str(tmp_path_factory.mktemp("many")))
    stores = {}
    for rows in (7, 200):
        store = TensorStore(root, f"rows{rows}", shard_mb=rows * (8 + 2048) * 4 / 2**20)
        fill(store, keys, **fields)
        assert len(store.snapshot().index.shards) == -(-200 // rows)
        stores[rows] = store
    return stores


def test_rows_are_paired_with_keys_however_they_were_added(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    shuffled = np.random.default_rng(0).permutation(100)
    with store.writer(recipe=RECIPE) as writer:
        for part in np.split(shuffled, 10):
            writer.add(keys_of(100)[part], {"field": rows_of(100)[part]})
    assert store.gather(keys_of(100))["field"][:, 0].tolist() == list(range(100))


def test_out_is_filled_and_given_back(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    fill(store, keys_of(10), field=rows_of(10))
    out: dict[str, torch.Tensor] = {}
    first = store.gather(keys_of(4), out)
    assert first["field"] is out["field"]
    second = store.gather(keys_of(4, start=6), out)
    assert second["field"] is first["field"]
    assert second["field"][:, 0].tolist() == [6, 7, 8, 9]
    last = store.gather(keys_of(2), out)
    assert last["field"].data_ptr() == out["field"].data_ptr()
    assert last["field"][:, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.empty(4, 64),
        torch.empty(4, 63, dtype=torch.int32),
        torch.empty(3, 64, dtype=torch.int32),
        torch.empty(64, 4, dtype=torch.int32).T,
        torch.empty(4, 64, dtype=torch.int32, device="meta"),
    ],
)
def test_out_that_does_not_fit_is_refused(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, wrong: torch.Tensor
) -> None:
    fill(store, keys_of(4), field=rows_of(4))
    with pytest.raises(CacheError, match=r"out\['field'\] is .* 4 rows of field I32 \[64\]"):
        store.gather(keys_of(4), {"field": wrong})


def test_out_with_a_field_too_many_is_refused(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(4), field=rows_of(4))
    with pytest.raises(CacheError, match=r"out holds \['mask'\]"):
        store.gather(keys_of(4), {"mask": torch.empty(4)})


def test_rows_of_two_shapes_are_not_one_batch(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(2), field=rows_of(2, width=8))
    fill(store, keys_of(2, start=2), field=rows_of(2, width=9))
    with pytest.raises(CacheError, match=r"field I32 \[\d\]\) and \(field I32 \[\d\]"):
        store.gather(keys_of(4))
    assert store.gather(keys_of(2))["field"].shape == (2, 8)


def test_missing_rows_are_counted_with_the_way_out(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(3), field=rows_of(3))
    with pytest.raises(CacheError, match=r"2 of 5 rows .* not in the cache .*train\.py"):
        store.gather(keys_of(5))
    assert store.contains(keys_of(5)).tolist() == [True, True, True, False, False]


def test_nothing_is_found_in_a_cache_that_is_not_there(
    store: TensorStore, keys_of: MakeKeys
) -> None:
    assert not store.contains(keys_of(3)).any()
    assert store.gather(keys_of(0)) == {}
    assert verify(store) == []


def test_a_reader_sees_the_snapshot_it_opened(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(3), field=rows_of(3))
    reader = copy.copy(store)
    reader.open()
    fill(store, keys_of(3, start=3), field=rows_of(3, start=3))
    assert reader.contains(keys_of(6)).sum() == 3
    assert reader.gather(keys_of(3))["field"][:, 0].tolist() == [0, 1, 2]
    reader.refresh()
    assert reader.gather(keys_of(6))["field"][:, 0].tolist() == list(range(6))


def test_dropped_rows_are_gone_until_they_are_written_again(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(4), field=rows_of(4))
    drop(store, keys_of(2))
    assert store.contains(keys_of(4)).tolist() == [False, False, True, True]
    fill(store, keys_of(1), field=rows_of(1, start=70))
    assert store.contains(keys_of(4)).tolist() == [True, False, True, True]
    assert store.gather(keys_of(1))["field"][0, 0] == 70
    assert verify(store) == []


def test_the_newest_row_of_a_key_counts_even_if_a_clock_runs_backwards(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, second in enumerate([300, 200, 100]):
        monkeypatch.setattr("time.time_ns", lambda now=second: now * 10**9)
        other = copy.copy(store)  # one that knows of the others by what they published
        other.open()
        fill(other, keys_of(1), field=rows_of(1, start=number))
    assert store.gather(keys_of(1))["field"][0, 0] == 2
    drop(copy.copy(store), keys_of(1))
    store.refresh()
    assert not store.contains(keys_of(1)).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=1), unique=True, min_size=1, max_size=9))
def test_keys_that_share_their_first_half_are_told_apart(ends: list[bytes]) -> None:
    store = TensorStore(MemoryStorage(name=uuid.uuid4().hex), "cache")
    names = [end.rjust(16, b"\1") for end in ends]
    with store.writer(recipe={}) as writer:
        writer.add(names, {"field": torch.arange(len(names))})
    with store.writer(recipe={}) as writer:
        writer.add([b"\0".rjust(16, b"\1"), b"\0" * 16], {"field": torch.tensor([-1, -2])})
    store.refresh()
    last = store.gather(names)["field"].tolist()
    kept = [n if end != b"\0" else -1 for n, end in enumerate(ends)]
    assert last == kept


def test_a_store_is_a_value(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    fill(store, keys_of(3), field=rows_of(3))
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert "cache/images" in repr(again)
    assert again.gather(keys_of(3))["field"][:, 0].tolist() == [0, 1, 2]


def test_a_closed_store_opens_again(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    fill(store, keys_of(3), field=rows_of(3))
    store.close()
    assert store.contains(keys_of(3)).all()


def test_a_gathered_batch_may_be_written_to(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    fill(store, keys_of(3), field=rows_of(3))
    store.gather(keys_of(3))["field"].fill_(-1)
    assert store.gather(keys_of(3))["field"][:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "value"), [("shard_mb", 0), ("shard_mb", -1), ("prefix", "")])
def test_settings_that_cannot_work_are_refused(name: str, value: object) -> None:
    settings = {"prefix": "cache", "shard_mb": 1.0, name: value}
    with pytest.raises(ValueError, match=f"cache.{name}"):
        TensorStore(MemoryStorage(name="wrong"), **settings)  # type: ignore[arg-type]
