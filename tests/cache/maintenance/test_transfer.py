"""Does copying between caches spread no damage, mend what it can, and list only what is there?"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from factory.cache.format.recipe import Keys
from factory.cache.maintenance.garbage import collect
from factory.cache.maintenance.lease import LeaseTakenError, alone
from factory.cache.maintenance.transfer import Transfer, compare, copy
from factory.cache.store import TensorStore
from factory.errors import AccessDeniedError
from factory.storage import LocalStorage, MemoryStorage
from tests.cache.conftest import RECIPE
from tests.support.stores import drop, verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]
# A full shard of these rows.
FULL = 256


@dataclass(frozen=True)
class Watched(MemoryStorage):
    """A storage that notes what is written, and takes so many shards and no more."""

    written: list[str] = field(default_factory=list, compare=False)
    shards_left: list[int] = field(default_factory=list, compare=False)

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write while that is allowed."""
        if self.shards_left and "/shards/" in key:
            if not self.shards_left[0]:
                raise AccessDeniedError(f"cannot write {key}: the account may only read now")
            self.shards_left[0] -= 1
        self.written.append(key)
        super().write(key, data)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> TensorStore:
    """An empty store in a remote storage."""
    name = f"target-{request.node.name}".replace("/", "-")
    return TensorStore(Watched(name=name), "cache", shard_mb=1 / 16)


@pytest.fixture(params=["none", "zstd"])
def source(
    request: pytest.FixtureRequest, tmp_path: Path, keys_of: MakeKeys, rows_of: Make
) -> TensorStore:
    """A store with three shards and a drop."""
    storage = LocalStorage(root=str(tmp_path))
    store = TensorStore(storage, "cache/images", shard_mb=1 / 16, compression=request.param)
    for start in range(0, 3 * FULL, FULL):
        write(store, keys_of(FULL, start), rows_of(FULL, start))
    drop(store, keys_of(5))
    return store


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


def copied(source: TensorStore, target: TensorStore, *, verify: bool = False) -> Transfer:
    """Copy what is missing; return what it was."""
    transfer = compare(source, target, verify=verify)
    copy(source, target, transfer)
    target.refresh()
    return transfer


def damage(store: TensorStore, number: int, *, row: int = 0) -> str:
    """Damage a row of a plain shard, or a packed one as a whole; return the shard's name."""
    record = sorted(store.snapshot().records.values(), key=lambda each: each.name)[number]
    key = store.shard_files.key(record.name)
    data = bytearray(store.storage.read(key))
    data[4096 + 256 * row if record.size > FULL * 256 else len(data) // 2] ^= 4
    store.storage.write(key, bytes(data))
    store.close()
    return record.name


def rows_there(store: TensorStore, keys: Keys) -> list[int]:
    """Return the numbers of the rows that a store holds."""
    present = keys[store.contains(keys)]
    return store.gather(present)["field"][:, 0].tolist()  # type: ignore[no-any-return]


def test_rows_and_drops_are_copied_once(
    source: TensorStore, target: TensorStore, keys_of: MakeKeys
) -> None:
    transfer = copied(source, target)
    assert (transfer.shards, len(transfer.pieces), transfer.problems) == (3, 4, [])
    assert rows_there(target, keys_of(3 * FULL)) == list(range(5, 3 * FULL))
    again = copied(source, target)
    assert (again.pieces, again.known) == ([], 3)
    assert verify(target) == []


def test_a_shard_stands_before_its_piece_of_the_index(
    source: TensorStore, target: TensorStore
) -> None:
    copied(source, target)
    written = target.storage.written  # type: ignore[attr-defined]
    for name, (record,) in compare(target, TensorStore(MemoryStorage("none"), "x")).pieces[:3]:
        shard, piece = target.shard_files.key(record.name), target.index_files.key(name)
        assert written.index(shard) < written.index(piece)


def test_damage_is_not_spread(source: TensorStore, target: TensorStore, keys_of: MakeKeys) -> None:
    name = damage(source, 1, row=3)
    transfer = copied(source, target)
    (problem,) = transfer.problems
    assert name in problem
    assert "not copied" in problem
    assert transfer.shards == 2
    assert name not in target.shard_files.listed()
    there = rows_there(target, keys_of(3 * FULL))
    assert there == [*range(5, FULL), *range(2 * FULL, 3 * FULL)]
    assert verify(target) == []


def test_damage_of_rows_that_were_encoded_anew_keeps_nothing_back(
    tmp_path: Path, target: TensorStore, keys_of: MakeKeys, rows_of: Make
) -> None:
    source = TensorStore(LocalStorage(root=str(tmp_path)), "cache/images", shard_mb=1 / 16)
    write(source, keys_of(FULL), rows_of(FULL))
    damage(source, 0, row=3)
    write(source, keys_of(1, start=3), rows_of(1, start=3))
    transfer = copied(source, target)
    assert (transfer.shards, transfer.problems) == (2, [])
    assert rows_there(target, keys_of(FULL)) == list(range(FULL))


@pytest.mark.parametrize("which", ["shard", "piece", "cut piece"])
def test_what_is_damaged_there_is_replaced(
    source: TensorStore, target: TensorStore, keys_of: MakeKeys, which: str
) -> None:
    copied(source, target)
    if which == "shard":
        name = damage(target, 2, row=9)
    else:
        name = max(target.index_files.listed())
        key = target.index_files.key(name)
        data = target.storage.read(key)
        target.storage.write(key, data[:-1] + (b"" if which == "cut piece" else b"\7"))
        target.close()
    found = copied(source, target)
    assert len(found.pieces) == (which == "cut piece")  # its size tells
    found = copied(source, target, verify=True)
    assert found.damaged == (set() if which == "cut piece" else {name})
    assert found.replaced == (which == "shard")
    assert verify(target) == []
    assert target.problems == []
    assert rows_there(target, keys_of(3 * FULL)) == list(range(5, 3 * FULL))
    assert compare(source, target, verify=True).pieces == []


def test_a_shard_damaged_at_both_ends_is_told_and_left(
    source: TensorStore, target: TensorStore
) -> None:
    copied(source, target)
    name = damage(target, 2, row=9)
    assert damage(source, 2, row=9) == name
    transfer = copied(source, target, verify=True)
    assert transfer.damaged == {name}
    assert name in transfer.problems[0]
    assert (transfer.shards, transfer.replaced) == (0, 0)


def test_a_target_that_turns_read_only_lists_what_it_has(
    source: TensorStore, target: TensorStore, keys_of: MakeKeys
) -> None:
    target.storage.shards_left.append(1)  # type: ignore[attr-defined]
    with pytest.raises(AccessDeniedError, match="may only read now") as raised:
        copied(source, target)
    assert raised.value.__notes__ == [
        "1 of 3 shards were copied before and stay; the same command goes on there"
    ]
    target.storage.shards_left.clear()  # type: ignore[attr-defined]
    assert len(rows_there(target, keys_of(3 * FULL))) in (FULL - 5, FULL)
    transfer = copied(source, target)
    assert (transfer.known, transfer.shards) == (1, 2)
    assert rows_there(target, keys_of(3 * FULL)) == list(range(5, 3 * FULL))


def test_garbage_of_the_target_is_left_alone_meanwhile(
    source: TensorStore, target: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []
    publish = type(target.index_files.storage).write

    def meanwhile(storage: Watched, key: str, data: bytes | memoryview) -> None:
        if "/shards/" in key:
            publish(storage, key, data)
            # The shard is in no index yet, and its name says that it is old.
            with pytest.raises(LeaseTakenError, match="copying to this cache is done by"):
                collect(target, min_age_s=0)
            refused.append(key)
        else:
            publish(storage, key, data)

    monkeypatch.setattr(Watched, "write", meanwhile)
    copied(source, target)
    assert len(refused) == 3
    assert target.shard_files.listed().keys() == target.snapshot().records.keys()
    assert [info.key for info in target.storage.objects() if "upkeep" in info.key] == []


def test_garbage_that_went_since_the_comparison_is_copied_again(
    source: TensorStore, target: TensorStore, keys_of: MakeKeys
) -> None:
    target.storage.shards_left.append(1)  # type: ignore[attr-defined]
    with pytest.raises(AccessDeniedError):
        copied(source, target)
    target.storage.shards_left.clear()  # type: ignore[attr-defined]
    for name in target.index_files.listed():  # as if it had been killed before it listed the shard
        target.index_files.delete(name)
    transfer = compare(source, target)
    assert transfer.known == 1
    assert len(collect(target, min_age_s=0)) == 1
    copy(source, target, transfer)
    target.refresh()
    assert target.problems == []
    assert rows_there(target, keys_of(3 * FULL)) == list(range(5, 3 * FULL))


def test_shards_whose_piece_of_the_index_is_damaged_here_are_not_compared(
    source: TensorStore, target: TensorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "factory.cache.index.snapshot.SMALL", 1
    )  # so that merged tables are read later
    source.close()
    copied(source, target)
    piece = min(source.index_files.listed())
    key = source.index_files.key(piece)
    source.storage.write(key, source.storage.read(key)[:-1] + b"\7")
    source.close()
    name = damage(target, 2, row=9)
    transfer = copied(source, target, verify=True)
    assert transfer.damaged == {name}
    (problem,) = transfer.problems
    assert piece in problem
    assert problem.endswith("is not compared")
    assert verify(target) == []


def test_a_cache_that_is_being_tidied_is_left_alone(
    source: TensorStore, target: TensorStore
) -> None:
    with (
        alone(target.storage, f"{target.folder}/upkeep", "removal of garbage"),
        pytest.raises(LeaseTakenError, match="removal of garbage"),
    ):
        copied(source, target)
    assert target.shard_files.listed() == {}
