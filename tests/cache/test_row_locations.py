"""Where rows lie is kept on this machine, and never taken for what it is not."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from factory.cache.format.recipe import Keys
from factory.cache.maintenance.verify import drop_shard
from factory.cache.row_locations import (
    LocationFiles,
    RowLocations,
    RowQuery,
    _path,
    _write,
    locate_rows,
    locate_rows_lazily,
)
from factory.cache.store import TensorStore, UnusableRowsError
from tests.support.stores import drop

SAMPLES = 300
MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]
# Samples have rows of the store in the opposite order; every third one is not asked for.
WANTED = np.flatnonzero(np.arange(SAMPLES) % 3)


class KeysOf:
    """Makes the keys of samples, and counts."""

    def __init__(self, keys: Keys) -> None:
        """Hold the key of each sample."""
        self.keys, self.asked = keys, 0

    def __call__(self, rows: NDArray[np.int64]) -> Keys:
        """Return some keys."""
        self.asked += len(rows)
        return self.keys[rows]


@pytest.fixture
def keys(keys_of: MakeKeys) -> KeysOf:
    return KeysOf(keys_of(SAMPLES)[::-1].copy())


@pytest.fixture
def filled(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> TensorStore:
    with store.writer({"kind": "test"}) as writer:
        writer.add(keys_of(SAMPLES), {"field": rows_of(SAMPLES)})
    store.refresh()
    return store


def placed(
    store: TensorStore, keys: KeysOf, kept: LocationFiles | None, identity: str = "a"
) -> RowLocations:
    return locate_rows(store, RowQuery(SAMPLES, WANTED, keys, identity), kept)


def read(store: TensorStore, placement: RowLocations, rows: list[int]) -> Any:
    found = placement.at(np.array(rows))
    return store.read(found)["field"][:, 0].tolist()


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_are_read_from_where_they_lie(
    filled: TensorStore, keys: KeysOf, tmp_path: Path, on_disk: bool
) -> None:
    placement = placed(filled, keys, LocationFiles(tmp_path / "photos") if on_disk else None)
    assert read(filled, placement, [1, 2, 298, 1]) == [298, 297, 1, 298]
    with pytest.raises(UnusableRowsError) as caught:
        read(filled, placement, [1, 0, 2, 3])
    assert caught.value.places.tolist() == [1, 3]


def test_the_next_process_makes_no_key(filled: TensorStore, keys: KeysOf, tmp_path: Path) -> None:
    kept = LocationFiles(tmp_path / "photos")
    placed(filled, keys, kept)
    assert keys.asked == len(WANTED)
    again = placed(filled, keys, kept)
    assert keys.asked == len(WANTED)
    assert read(filled, again, [4, 5]) == [295, 294]


def test_another_identity_or_snapshot_is_looked_up_anew(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    kept = LocationFiles(tmp_path / "photos")
    placed(filled, keys, kept)
    placed(filled, keys, kept, identity="b")
    assert keys.asked == 2 * len(WANTED)
    with filled.writer({"kind": "test"}) as writer:
        writer.add(keys_of(1, start=999), {"field": rows_of(1)})
    filled.refresh()
    placed(filled, keys, kept)
    assert keys.asked == 3 * len(WANTED)


@pytest.mark.parametrize("damage", ["empty", "pickle", "cut", "zeros", "numbers"])
def test_a_damaged_file_is_made_again(
    filled: TensorStore, keys: KeysOf, tmp_path: Path, damage: str
) -> None:
    kept = LocationFiles(tmp_path / "photos")
    placed(filled, keys, kept)
    (path,) = tmp_path.glob("photos/*.places")
    data, columns = path.read_bytes(), 16 * SAMPLES
    damaged = {
        "empty": b"",
        "pickle": b"\x80\x04pickle",
        "cut": data[:-8],
        "zeros": data[:-columns] + bytes(columns),  # what a machine leaves that lost its power
        "numbers": data[:-4] + b"\7" * 4,  # of shards that there are not
    }
    path.write_bytes(damaged[damage])
    assert read(filled, placed(filled, keys, kept), [1, 298]) == [298, 1]
    assert keys.asked == 2 * len(WANTED)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written_to_is_done_without(
    filled: TensorStore, keys: KeysOf
) -> None:
    placement = placed(filled, keys, LocationFiles(Path("/proc/nowhere")))
    assert read(filled, placement, [1]) == [298]


def test_old_files_of_the_same_backend_are_removed(
    filled: TensorStore, keys: KeysOf, tmp_path: Path
) -> None:
    other = placed(filled, keys, LocationFiles(tmp_path / "art"))
    first = placed(filled, keys, LocationFiles(tmp_path / "photos"))
    (tmp_path / "photos" / ".left.places.17").touch()  # by a process that was killed
    for number in range(6):
        placed(filled, keys, LocationFiles(tmp_path / "photos"), identity=str(number))
    assert len(list(tmp_path.glob("photos/*"))) == 4
    assert len(list(tmp_path.glob("art/*"))) == 1
    # What is mapped stays readable, file or no file.
    assert read(filled, first, [1]) == read(filled, other, [1]) == [298]


def test_what_others_wrote_meanwhile_is_found_after_one_more_look(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    mine = replace(filled)
    drop(filled, keys_of(3, start=297))  # of samples 0, 1 and 2
    mine.open()
    with filled.writer({"kind": "test"}) as writer:
        writer.add(keys_of(3, start=297), {"field": rows_of(3, start=297)})
    placement = placed(mine, keys, LocationFiles(tmp_path / "photos"))
    assert not placement.lacking.size
    assert keys.asked == len(WANTED)  # those that lacked were looked up by the keys they had
    assert read(mine, placement, [1, 2, 298]) == [298, 297, 1]
    assert len(list(tmp_path.glob("photos/*"))) == 1


def test_one_that_is_kept_with_gaps_tells_what_lacks(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, tmp_path: Path
) -> None:
    kept = LocationFiles(tmp_path / "photos")
    placed(filled, keys, kept)
    drop(filled, keys_of(2, start=297))  # of samples 1 and 2
    placement = placed(filled, keys, kept)
    assert placement.lacking.tolist() == [0, 1]  # of those asked for
    assert placement.keys.tolist() == keys.keys[1:3].tolist()
    assert len(list(tmp_path.glob("photos/*"))) == 1  # one with gaps is not kept,
    asked = RowQuery(SAMPLES, WANTED, keys, "a")
    path = _path(kept, asked, filled.snapshot())
    assert path is not None
    _write(path, (placement.shard, placement.row, placement.checksum))  # but if there is one,
    keys.asked = 0
    again = placed(filled, keys, kept)
    assert again.lacking.tolist() == [0, 1]
    assert again.keys.tolist() == keys.keys[1:3].tolist()
    assert keys.asked == 2  # only these keys are made


def test_what_was_found_before_is_taken_over_without_a_key(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    drop(filled, keys_of(2, start=297))  # of samples 1 and 2
    before = placed(filled, keys, None)
    for start, count in ((1000, 5), (297, 2)):  # others' rows, and those that lacked
        with filled.writer({"kind": "test"}) as writer:
            writer.add(keys_of(count, start=start), {"field": rows_of(count, start=start)})
    filled.refresh()
    keys.asked = 0
    asked, kept = RowQuery(SAMPLES, WANTED, keys, "a"), LocationFiles(tmp_path / "photos")
    after = locate_rows(filled, asked, kept, before)
    assert (keys.asked, after.lacking.size) == (0, 0)
    whole = locate_rows(filled, asked)
    for column in ("shard", "row", "checksum"):
        wanted = getattr(whole, column)
        assert np.array_equal(getattr(after, column), wanted)
    assert locate_rows(filled, asked, kept, after) is after
    keys.asked = 0
    locate_rows(filled, asked, kept)
    assert keys.asked == 0  # it was kept


def test_shards_that_are_numbered_anew_are_followed(
    store: TensorStore,
    keys: KeysOf,
    keys_of: MakeKeys,
    rows_of: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(start: int, count: int) -> None:
        with store.writer({"kind": "test"}) as writer:
            writer.add(keys_of(count, start=start), {"field": rows_of(count, start=start)})

    for start in range(0, SAMPLES, 50):
        write(start, 50)
    store.refresh()
    before = placed(store, keys, None)
    monkeypatch.setattr(store, "next_stamp", iter(range(1, 9)).__next__)  # by a clock behind
    write(1000, 1)
    store.refresh()
    after = locate_rows(store, RowQuery(SAMPLES, WANTED, keys, "a"), None, before)
    assert (after.shard[WANTED] == before.shard[WANTED] + 1).all()
    assert read(store, after, WANTED.tolist()) == (SAMPLES - 1 - WANTED).tolist()
    assert keys.asked == len(WANTED)


@pytest.mark.parametrize("what", ["rows", "shard"])
def test_nothing_is_taken_over_once_rows_are_gone(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, what: str
) -> None:
    before = placed(filled, keys, None)
    if what == "rows":
        drop(filled, keys_of(1, start=298))  # of sample 1
    else:
        drop_shard(filled, filled.snapshot().index.shards[0].name)
    after = locate_rows(filled, RowQuery(SAMPLES, WANTED, keys, "a"), None, before)
    lacking = np.flatnonzero(~filled.contains(keys.keys[WANTED]))
    assert lacking.size
    assert after.lacking.tolist() == lacking.tolist()
    assert after.keys.tolist() == keys.keys[WANTED[lacking]].tolist()


def test_samples_are_looked_up_when_they_are_first_asked_for(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, tmp_path: Path
) -> None:
    drop(filled, keys_of(1, start=298))  # of sample 1
    asked, kept = RowQuery(SAMPLES, WANTED, keys, "a"), LocationFiles(tmp_path / "photos")
    placement = locate_rows_lazily(filled, asked, kept)
    assert keys.asked == 0
    assert read(filled, placement, [2, 298, 2]) == [297, 1, 297]
    assert keys.asked == 2
    assert read(filled, placement, [4, 2]) == [295, 297]
    assert keys.asked == 3
    for _ in range(2):
        with pytest.raises(UnusableRowsError) as caught:
            read(filled, placement, [1, 2])
        assert caught.value.places.tolist() == [0]
    assert keys.asked == 4


def test_nothing_is_looked_up_later_where_it_is_kept_or_the_store_is_empty(
    store: TensorStore, keys: KeysOf, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    asked, kept = RowQuery(SAMPLES, WANTED, keys, "a"), LocationFiles(tmp_path / "photos")
    with pytest.raises(UnusableRowsError):
        read(store, locate_rows_lazily(store, asked, kept), [1])
    assert keys.asked == 0
    with store.writer({"kind": "test"}) as writer:
        writer.add(keys_of(SAMPLES), {"field": rows_of(SAMPLES)})
    store.refresh()
    placed(store, keys, kept)
    keys.asked = 0
    assert read(store, locate_rows_lazily(store, asked, kept), [1, 2]) == [298, 297]
    assert keys.asked == 0
