"""Are rows published whole, once, and only if they are sound?"""

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from factory.cache import writer as writer_module
from factory.cache.format.recipe import Keys
from factory.cache.store import TensorStore
from factory.errors import CacheError, StorageError
from factory.storage import LocalStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import verify

Make = Callable[..., torch.Tensor]
MakeKeys = Callable[..., Keys]

FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@dataclass(frozen=True)
class FullDisk(LocalStorage):
    """A disk on which only files whose key holds a word find room."""

    room_for: str = "shards"

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Fail as a full disk does."""
        if self.room_for not in key:
            raise StorageError(f"cannot write {key}: no space left")
        super().write(key, data)


def files(tmp_path: Path, kind: str) -> list[Path]:
    """Return what was published."""
    return sorted((tmp_path / "cache/images" / kind).glob("*"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_numbers_that_are_not_finite_name_their_sample(
    store: TensorStore, keys_of: MakeKeys, dtype: torch.dtype, bad: float
) -> None:
    rows = torch.ones(3, 4)
    rows[1, 2] = bad
    fields = {"latents": rows.to(dtype)}
    if dtype == torch.float8_e4m3fn:  # has no infinity; NaN stands for it
        fields["latents"].view(torch.uint8)[1, 2] = 0x7F if bad > 0 else 0xFF
    with store.writer(recipe=RECIPE) as writer:
        with pytest.raises(CacheError, match=r"'latents' holds NaN or infinity for 'b.png'"):
            writer.add(keys_of(3), fields, labels=["a.png", "b.png", "c.png"])
        with pytest.raises(CacheError, match=keys_of(3)[1].tobytes().hex()):
            writer.add(keys_of(3), fields)
    store.refresh()
    assert not store.contains(keys_of(3)).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_finite_numbers_are_stored(
    store: TensorStore, keys_of: MakeKeys, dtype: torch.dtype
) -> None:
    info = torch.finfo(dtype)
    rows = torch.tensor([[info.max], [info.min], [info.tiny], [0.0]], dtype=torch.float64)
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(4), {"field": rows.to(dtype)})
    assert torch.equal(store.gather(keys_of(4))["field"].double(), rows.to(dtype).double())


def test_counts_that_disagree_name_the_samples(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        with pytest.raises(CacheError, match=r"3 samples .*'a', 'b', 'c'.* field 'mask': 2"):
            writer.add(
                keys_of(3), {"field": rows_of(3), "mask": rows_of(2)}, labels=["a", "b", "c"]
            )
        with pytest.raises(CacheError, match=r"and 2 more.*labels: 1"):
            writer.add(keys_of(5), {"field": rows_of(5)}, labels=["a"])


@pytest.mark.parametrize(
    "fields", [{}, {"x": torch.tensor(1.0)}, {"x": torch.zeros(1, dtype=torch.complex64)}]
)
def test_rows_that_cannot_be_stored_are_refused(
    store: TensorStore, keys_of: MakeKeys, fields: dict[str, torch.Tensor]
) -> None:
    with store.writer(recipe=RECIPE) as writer, pytest.raises(CacheError, match="field"):
        writer.add(keys_of(1), fields)


def test_a_key_is_stored_once(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        twice = np.concatenate([keys_of(3), keys_of(3)])
        writer.add(twice, {"field": rows_of(6)})
        for _ in range(3):
            writer.add(keys_of(5), {"field": rows_of(5, start=0)})
    assert store.gather(keys_of(5))["field"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert sum(record.rows for record in store.snapshot().index.shards) == 5
    assert len(files(tmp_path, "shards")) == 1


def test_a_key_is_stored_once_across_shards(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        for start in (0, 500, 250, 0):
            writer.add(keys_of(500, start), {"field": rows_of(500, start)})
    assert sum(record.rows for record in store.snapshot().index.shards) == 1000
    assert store.gather(keys_of(1000))["field"][:, 0].tolist() == list(range(1000))


def test_shards_are_closed_at_their_size(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(600), {"field": rows_of(600)})  # 256 bytes each, 256 to a shard
        assert len(files(tmp_path, "shards")) == len(files(tmp_path, "index")) == 2
    assert [path.stat().st_size for path in files(tmp_path, "shards")].count(4096 + 65536) == 2
    assert len(files(tmp_path, "shards")) == 3


def test_a_row_larger_than_a_shard_has_one_of_its_own(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(2), {"field": rows_of(2, width=20_000)})
    assert len(files(tmp_path, "shards")) == 2
    assert store.gather(keys_of(2))["field"][:, -1].tolist() == [0, 1]


def test_each_shape_has_a_shard_of_its_own(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        for start in range(0, 40, 4):
            width = 8 + start % 8
            writer.add(keys_of(4, start), {"field": rows_of(4, start, width=width)})
    assert len(store.snapshot().index.shards) == 2
    even = np.concatenate([keys_of(4, start) for start in range(0, 40, 8)])
    assert store.gather(even)["field"].shape == (20, 8)


def test_many_shapes_do_not_fill_the_memory(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    limit = writer_module._OPEN_SHARDS * 2**16
    with store.writer(recipe=RECIPE) as writer:
        for n in range(20):
            writer.add(keys_of(100, start=100 * n), {"field": rows_of(100, width=120 + n)})
            assert sum(group.used() for group in writer._groups.values()) <= limit
    assert store.contains(keys_of(2000)).all()


def test_an_exception_throws_away_what_is_open_and_keeps_the_rest(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    def interrupted() -> None:
        with store.writer(recipe=RECIPE) as writer:
            writer.add(keys_of(300), {"field": rows_of(300)})
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert store.contains(keys_of(300)).sum() == 256
    assert verify(store) == []
    assert len(files(tmp_path, "shards")) == 1


@pytest.mark.parametrize("room_for", ["shards", "index", "nothing"])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make, room_for: str
) -> None:
    full = FullDisk(root=str(tmp_path), room_for=room_for)
    store = TensorStore(full, "cache/images")
    with pytest.raises(StorageError, match="no space left"), store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(3), {"field": rows_of(3)})
    store.refresh()
    assert not store.contains(keys_of(3)).any()
    assert files(tmp_path, "shards") == files(tmp_path, "index") == []


def test_a_writer_that_failed_takes_no_more_rows(
    tmp_path: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    store = TensorStore(FullDisk(root=str(tmp_path)), "cache/images", shard_mb=1 / 1024)
    writer = store.writer(recipe=RECIPE)
    with pytest.raises(StorageError):
        writer.add(keys_of(9), {"field": rows_of(9)})
    with pytest.raises(CacheError, match="failed to publish"):
        writer.add(keys_of(9), {"field": rows_of(9)})
    writer.close()
    assert not store.contains(keys_of(9)).any()


def test_a_closed_writer_takes_no_more_rows(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(1), {"field": rows_of(1)})
    writer.close()
    with pytest.raises(CacheError, match="was closed"):
        writer.add(keys_of(2), {"field": rows_of(2)})


def test_a_writer_that_wrote_nothing_leaves_nothing(store: TensorStore, tmp_path: Path) -> None:
    with store.writer(recipe=RECIPE):
        pass
    assert files(tmp_path, "shards") == files(tmp_path, "index") == []


def test_rows_are_taken_from_any_memory_layout(store: TensorStore, keys_of: MakeKeys) -> None:
    field = torch.arange(24.0, requires_grad=True).reshape(4, 6).T
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys_of(6), {"field": field})
    assert torch.equal(store.gather(keys_of(6))["field"], field)


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Switch threads every microsecond, so that those which may collide do."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("busy_threads")
def test_threads_share_a_writer(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> None:
    with store.writer(recipe=RECIPE) as writer:

        def add(first: int) -> None:
            for start in range(first, first + 400, 20):  # every row comes from two threads
                writer.add(keys_of(30, start), {"field": rows_of(30, start)})

        run_threads(add, [200 * n for n in range(8)])
    assert store.gather(keys_of(1800))["field"][:, 0].tolist() == list(range(1800))
    assert sum(record.rows for record in store.snapshot().index.shards) == 1810


def test_writers_side_by_side_never_collide(
    store: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    def write(start: int) -> None:
        with store.writer(recipe=RECIPE) as writer:
            writer.add(keys_of(300, start), {"field": rows_of(300, start)})

    run_threads(write, [300 * n for n in range(6)])
    store.refresh()
    assert store.gather(keys_of(1800))["field"][:, 0].tolist() == list(range(1800))


def run_threads(function: Callable[[int], None], items: list[int]) -> None:
    """Run the function in a thread for each item; a failure of one fails the test."""
    errors: list[Exception] = []

    def guarded(item: int) -> None:
        try:
            function(item)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
