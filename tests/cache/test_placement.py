"""Where rows lie is kept on this machine, and never taken for what it is not."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from factory.cache.placement import Kept, Placement, place
from factory.cache.recipe import Keys
from factory.cache.store import TensorStore, UnusableRowsError

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


def placed(store: TensorStore, keys: KeysOf, kept: Kept | None, identity: str = "a") -> Placement:
    return place(store.snapshot(), keys, (SAMPLES, WANTED), identity, kept)


def read(store: TensorStore, placement: Placement, rows: list[int]) -> Any:
    found = placement.at(np.array(rows))
    return store.read(found, placement.snapshot)["field"][:, 0].tolist()


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_are_read_from_where_they_lie(
    filled: TensorStore, keys: KeysOf, tmp_path: Path, on_disk: bool
) -> None:
    placement = placed(filled, keys, Kept(tmp_path / "places", "photos") if on_disk else None)
    assert read(filled, placement, [1, 2, 298, 1]) == [298, 297, 1, 298]
    with pytest.raises(UnusableRowsError) as caught:
        read(filled, placement, [1, 0, 2, 3])
    assert caught.value.places.tolist() == [1, 3]


def test_the_next_process_makes_no_key(filled: TensorStore, keys: KeysOf, tmp_path: Path) -> None:
    kept = Kept(tmp_path, "photos")
    placed(filled, keys, kept)
    assert keys.asked == len(WANTED)
    again = placed(filled, keys, kept)
    assert keys.asked == len(WANTED)
    assert read(filled, again, [4, 5]) == [295, 294]


def test_another_identity_or_snapshot_is_looked_up_anew(
    filled: TensorStore, keys: KeysOf, keys_of: MakeKeys, rows_of: Make, tmp_path: Path
) -> None:
    kept = Kept(tmp_path, "photos")
    placed(filled, keys, kept)
    placed(filled, keys, kept, identity="b")
    assert keys.asked == 2 * len(WANTED)
    with filled.writer({"kind": "test"}) as writer:
        writer.add(keys_of(1, start=999), {"field": rows_of(1)})
    filled.refresh()
    placed(filled, keys, kept)
    assert keys.asked == 3 * len(WANTED)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04pickle", None])
def test_a_damaged_file_is_made_again(
    filled: TensorStore, keys: KeysOf, tmp_path: Path, damage: bytes | None
) -> None:
    kept = Kept(tmp_path, "photos")
    placed(filled, keys, kept)
    (path,) = tmp_path.glob("photos-*.places")
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    assert read(filled, placed(filled, keys, kept), [1]) == [298]
    assert keys.asked == 2 * len(WANTED)


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_written_to_is_done_without(
    filled: TensorStore, keys: KeysOf
) -> None:
    placement = placed(filled, keys, Kept(Path("/proc/nowhere"), "photos"))
    assert read(filled, placement, [1]) == [298]


def test_old_files_of_the_same_backend_are_removed(
    filled: TensorStore, keys: KeysOf, tmp_path: Path
) -> None:
    other = placed(filled, keys, Kept(tmp_path, "art"))
    first = placed(filled, keys, Kept(tmp_path, "photos"))
    for number in range(6):
        placed(filled, keys, Kept(tmp_path, "photos"), identity=str(number))
    assert len(list(tmp_path.glob("photos-*"))) == 4
    assert len(list(tmp_path.glob("art-*"))) == 1
    # What is mapped stays readable, file or no file.
    assert read(filled, first, [1]) == read(filled, other, [1]) == [298]
