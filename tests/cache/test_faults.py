"""Is damage found, named and mended, and never read as if it were sound?"""

import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cache.format import safetensors_file as container_module
from factory.cache.format.recipe import Keys, recipe_keys
from factory.cache.format.safetensors_file import DamagedError, header, parse
from factory.cache.format.segment import ShardStamp, pack_segment, read_segment
from factory.cache.index import snapshot as snapshot_module
from factory.cache.maintenance.verify import drop_shard, inspect
from factory.cache.store import TensorStore
from factory.errors import CacheError
from tests.cache.conftest import RECIPE
from tests.support.examples import examples
from tests.support.stores import drop, verify

MakeKeys = Callable[..., Keys]
Make = Callable[..., torch.Tensor]

ROWS = 20


@pytest.fixture
def filled(store: TensorStore, keys_of: MakeKeys, rows_of: Make) -> TensorStore:
    """A store with one shard of 20 rows, closed."""
    write(store, keys_of(ROWS), rows_of(ROWS))
    store.close()
    return store


def write(store: TensorStore, keys: Keys, rows: torch.Tensor) -> None:
    """Publish rows and see them."""
    with store.writer(recipe=RECIPE) as writer:
        writer.add(keys, {"field": rows})
    store.refresh()


@pytest.fixture
def shard(filled: TensorStore, tmp_path: Path) -> Path:
    """The file of the shard."""
    return next((tmp_path / "cache/images/shards").iterdir())


@pytest.fixture
def segment(filled: TensorStore, tmp_path: Path) -> Path:
    """The file of the index segment."""
    return next((tmp_path / "cache/images/index").iterdir())


def flip(path: Path, at: int) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_a_flipped_bit_is_found_at_the_first_read(
    filled: TensorStore, shard: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    flip(shard, 4096 + 256 * 7 + 3)
    message = rf"row 7 of .*{shard.name} does not match its checksum; delete .*{shard.name} and"
    with pytest.raises(CacheError, match=message):
        filled.gather(keys_of(ROWS))
    with pytest.raises(CacheError, match="row 7"):
        filled.gather(keys_of(ROWS))
    assert filled.gather(keys_of(7))["field"][:, 0].tolist() == list(range(7))
    (problem,) = verify(filled)
    assert "1 row of" in problem
    assert "set cache.damaged=rebuild" in problem
    assert "first row 7" in problem
    assert shard.name in problem


def test_checksums_can_be_switched_off(filled: TensorStore, shard: Path, keys_of: MakeKeys) -> None:
    flip(shard, 4096 + 256 * 7)
    assert filled.gather(keys_of(ROWS), verify=False)["field"][7, 0] == 7 ^ 4


def test_a_row_is_checked_once(
    filled: TensorStore, keys_of: MakeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.gather(keys_of(5))
    monkeypatch.setattr("factory.cache.gather.gather_rows.digest", lambda parts: 0)
    filled.gather(keys_of(5))
    with pytest.raises(CacheError, match="row 5"):
        filled.gather(keys_of(6))


def test_a_damaged_row_is_dropped_and_built_again(
    filled: TensorStore, shard: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    flip(shard, 4096 + 256 * 7)
    drop(filled, keys_of(1, start=7))
    assert filled.contains(keys_of(ROWS)).tolist() == [n != 7 for n in range(ROWS)]
    write(filled, keys_of(1, start=7), rows_of(1, start=7))
    assert filled.gather(keys_of(ROWS))["field"][:, 0].tolist() == list(range(ROWS))


def test_a_damaged_shard_is_dropped_and_built_again(
    filled: TensorStore, shard: Path, segment: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(CacheError, match=shard.name):
        filled.gather(keys_of(1))
    drop_shard(filled, shard.name)
    assert not shard.exists()
    assert not segment.exists()
    assert filled.problems == []
    write(filled, keys_of(ROWS), rows_of(ROWS))
    assert filled.gather(keys_of(ROWS))["field"][:, 0].tolist() == list(range(ROWS))


@pytest.mark.parametrize("name", ["../../escape.safetensors", "x", ""])
def test_only_shards_can_be_dropped(filled: TensorStore, name: str) -> None:
    with pytest.raises(CacheError, match="not the name of a shard"):
        drop_shard(filled, name)


@pytest.mark.parametrize("left", [0, 5, 4096, 4096 + 100])
def test_a_truncated_shard_counts_as_missing(
    filled: TensorStore, shard: Path, keys_of: MakeKeys, rows_of: Make, left: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    shard.write_bytes(shard.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        assert not filled.contains(keys_of(ROWS)).any()
    assert f"{shard.name} is {left} bytes" in filled.problems[0]
    assert "1 problems" in caplog.text
    write(filled, keys_of(ROWS), rows_of(ROWS))
    assert filled.gather(keys_of(ROWS))["field"][:, 0].tolist() == list(range(ROWS))


def test_a_shard_truncated_after_the_store_opened_is_named(
    filled: TensorStore, shard: Path, keys_of: MakeKeys
) -> None:
    filled.open()
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(CacheError, match=f"{shard.name} is 5000 bytes, .* start again"):
        filled.gather(keys_of(1))


def test_a_shard_deleted_after_the_store_opened_is_named(
    filled: TensorStore, shard: Path, keys_of: MakeKeys
) -> None:
    filled.open()
    shard.unlink()
    with pytest.raises(CacheError, match=f"{shard.name} .* start again"):
        filled.gather(keys_of(1))


def test_an_index_without_its_shard_counts_as_missing(
    filled: TensorStore, shard: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    shard.unlink()
    assert not filled.contains(keys_of(ROWS)).any()
    assert f"{shard.name} is gone; its {ROWS} rows count as missing" in filled.problems[0]
    assert verify(filled) == filled.problems
    write(filled, keys_of(ROWS), rows_of(ROWS))
    assert filled.contains(keys_of(ROWS)).all()


@pytest.mark.parametrize("small", [0, 1000])
def test_an_older_row_counts_again_when_the_newer_is_lost(
    filled: TensorStore,
    shard: Path,
    keys_of: MakeKeys,
    rows_of: Make,
    monkeypatch: pytest.MonkeyPatch,
    small: int,
) -> None:
    monkeypatch.setattr(snapshot_module, "SMALL", small)
    write(filled, keys_of(2), rows_of(2, start=50))
    newer = next(path for path in shard.parent.iterdir() if path != shard)
    newer.unlink()
    filled.refresh()
    assert filled.gather(keys_of(2))["field"][:, 0].tolist() == [0, 1]


def test_a_shard_without_its_index_is_reported_and_not_read(
    filled: TensorStore, shard: Path, segment: Path, keys_of: MakeKeys
) -> None:
    segment.unlink()
    assert not filled.contains(keys_of(ROWS)).any()
    found = inspect(filled)
    assert found.problems == []
    (leftover,) = found.leftovers
    assert f"{shard.name} is in no index" in leftover


@pytest.mark.parametrize("at", [3, 100, 4096, 4500, -1])
def test_a_damaged_segment_counts_as_missing(
    filled: TensorStore, segment: Path, keys_of: MakeKeys, rows_of: Make, at: int
) -> None:
    flip(segment, at)
    assert not filled.contains(keys_of(ROWS)).any()
    assert segment.name in filled.problems[0]
    assert "count as missing" in filled.problems[0]
    write(filled, keys_of(ROWS), rows_of(ROWS))
    assert filled.gather(keys_of(ROWS))["field"][:, 0].tolist() == list(range(ROWS))


@pytest.mark.parametrize("kind", ["shard", "segment"])
@pytest.mark.parametrize(("found", "mend"), [("3", "upgrade data-back"), ("1", "delete the cache")])
def test_another_format_is_not_guessed_at(
    filled: TensorStore, shard: Path, segment: Path, keys_of: MakeKeys, kind: str,
    found: str, mend: str,
) -> None:  # fmt: skip
    path = {"shard": shard, "segment": segment}[kind]
    old = b'"cache_format":"2"'
    path.write_bytes(path.read_bytes().replace(old, old.replace(b"2", found.encode())))
    with pytest.raises(CacheError, match=rf"in cache format {found}.*{mend}"):
        filled.gather(keys_of(1))


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        """Return what unpickling would call."""
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_offered_as_a_shard_is_never_loaded(
    filled: TensorStore, shard: Path, keys_of: MakeKeys
) -> None:
    size = shard.stat().st_size
    shard.write_bytes(pickle.dumps(Trap()).ljust(size, b"\0"))
    with pytest.raises(CacheError, match="pickles among them, are never loaded"):
        filled.gather(keys_of(1))
    assert any("never loaded" in problem for problem in verify(filled))


def test_foreign_files_are_left_alone(
    filled: TensorStore, shard: Path, segment: Path, keys_of: MakeKeys
) -> None:
    (segment.parent / "latents.pt").write_bytes(pickle.dumps(Trap()))
    (segment.parent / segment.name.replace(segment.name[:4], "ffff", 1)).write_bytes(
        pickle.dumps(Trap())
    )
    (shard.parent / "latents.pt").write_bytes(pickle.dumps(Trap()))
    assert filled.contains(keys_of(ROWS)).all()
    assert len(filled.problems) == 2
    assert len(verify(filled)) == 3


def test_a_segment_that_points_out_of_the_cache_is_refused(
    filled: TensorStore, shard: Path, segment: Path, keys_of: MakeKeys
) -> None:
    sound = read_segment(np.fromfile(segment, np.uint8), segment.name)
    away = replace(sound.shards[0], name="../../../secrets.safetensors")
    segment.write_bytes(pack_segment(replace(sound, places=(ShardStamp(sound.stamp, away),))))
    assert not filled.contains(keys_of(ROWS)).any()
    assert "no shard" in filled.problems[0]


def test_an_index_that_belongs_to_another_shard_is_refused(
    filled: TensorStore, shard: Path, keys_of: MakeKeys, rows_of: Make
) -> None:
    write(filled, keys_of(ROWS, start=100), rows_of(ROWS).float().int())
    other = next(path for path in shard.parent.iterdir() if path != shard)
    shard.write_bytes(other.read_bytes())
    other.write_bytes(shard.read_bytes()[:4096].replace(b"field", b"plain") + b"\0" * 256 * ROWS)
    filled.close()
    with pytest.raises(CacheError, match="does not hold the 20 rows that its index lists"):
        filled.gather(keys_of(1, start=100))


@pytest.mark.parametrize("checked", [True, False])
def test_an_index_that_points_beyond_its_shard_is_refused(
    filled: TensorStore, segment: Path, keys_of: MakeKeys, checked: bool
) -> None:
    sound = read_segment(np.fromfile(segment, np.uint8), segment.name)
    segment.write_bytes(pack_segment(replace(sound, row=sound.row + np.uint32(1))))
    with pytest.raises(CacheError, match=f"lists a row beyond its {ROWS}"):
        filled.gather(keys_of(ROWS), verify=checked)
    assert any("beyond" in problem for problem in verify(filled))


def test_headers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_module, "HEADER_LIMIT", 4000)
    with pytest.raises(DamagedError, match="no safetensors file"):
        parse(np.frombuffer(SOUND, np.uint8), "file")
    with pytest.raises(CacheError, match="over the limit of 4000"):
        header([], {})


def test_two_recipes_share_a_folder(filled: TensorStore, keys_of: MakeKeys) -> None:
    other = recipe_keys({"encoder": "other"}, {"row": range(ROWS)})
    assert not filled.contains(other).any()
    with filled.writer(recipe={"encoder": "other"}) as writer:
        writer.add(other, {"latents": torch.ones(ROWS, 2)})
    filled.refresh()
    assert filled.gather(other)["latents"].shape == (ROWS, 2)
    assert filled.gather(keys_of(ROWS))["field"].shape == (ROWS, 64)


SOUND = header([("a", "F16", (2, 3)), ("b", "U8", (4,))], {"note": "x"}) + bytes(16)


def test_the_sound_file_is_taken_apart() -> None:
    metadata, tensors = parse(np.frombuffer(SOUND, np.uint8), "file")
    assert metadata["note"] == "x"
    assert tensors["a"].shape == (2, 3)
    assert tensors["b"].data.size == 4


@settings(max_examples=examples(300))
@given(
    st.one_of(
        st.binary(max_size=200),
        st.integers(0, len(SOUND) - 1).map(lambda n: SOUND[:n]),
        st.tuples(st.integers(0, 300), st.integers(1, 255)).map(
            lambda pair: SOUND[: pair[0]] + bytes([SOUND[pair[0]] ^ pair[1]]) + SOUND[pair[0] + 1 :]
        ),
    )
)
def test_no_bytes_whatever_raise_anything_but_cache_errors(data: bytes) -> None:
    for read in (
        lambda found: parse(found, "file"),
        lambda found: read_segment(found, "0" * 16 + "-" + "0" * 32 + ".safetensors"),
    ):
        try:
            read(np.frombuffer(data, np.uint8))
        except CacheError:
            continue


FIELD = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
NOTE = {"__metadata__": {"cache_format": "2"}}


@pytest.mark.parametrize(
    "table",
    [
        [],
        {"a": FIELD},
        {"a": FIELD, "__metadata__": 3},
        {"a": FIELD, "__metadata__": {}},
        {"a": FIELD, "__metadata__": {"cache_format": "new"}},
        {**NOTE},
        {**NOTE, "a": 3},
        {**NOTE, "a": FIELD, "b": FIELD},
        {
            **NOTE,
            **{
                name: {**FIELD, "shape": [2], "data_offsets": [at, at + 2]}
                for name, at in (("a", 0), ("b", 1))
            },
        },
        {**NOTE, "a": {**FIELD, "shape": [5]}},
        {**NOTE, "a": {**FIELD, "shape": [True, 4]}},
        {**NOTE, "a": {**FIELD, "shape": [-4], "data_offsets": [0, -4]}},
        {**NOTE, "a": {**FIELD, "shape": [3], "data_offsets": [1, 4]}},
        {**NOTE, "a": {**FIELD, "shape": [3], "data_offsets": [0, 3]}},
        {**NOTE, "a": {**FIELD, "shape": [8], "data_offsets": [0, 8]}},
        {**NOTE, "a": {**FIELD, "dtype": "F4"}},
        {**NOTE, "a": {**FIELD, "dtype": ["U8"]}},
        {**NOTE, "a": {**FIELD, "data_offsets": "04"}},
    ],
)
def test_headers_that_do_not_fit_their_data_are_refused(table: object) -> None:
    text = json.dumps(table).encode()
    data = len(text).to_bytes(8, "little") + text + b"data"
    with pytest.raises(DamagedError, match="file"):
        parse(np.frombuffer(data, np.uint8), "file")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"{", b"1" * 10_000])
def test_headers_that_are_no_table_are_refused(text: bytes) -> None:
    data = len(text).to_bytes(8, "little") + text
    with pytest.raises(DamagedError, match="damaged"):
        parse(np.frombuffer(data, np.uint8), "file")
